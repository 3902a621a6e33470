"""Real-time recurrent learning: the exact gradient, forward in time."""

from dataclasses import dataclass

from torch import Tensor

from loopgrad.gradients.columns import Columns
from loopgrad.gradients.influence import Carried, Influence
from loopgrad.gradients.online import Online, everywhere, of_columns
from loopgrad.gradients.patterns import Patterns


@dataclass(frozen=True)
class RTRL(Online):
    r"""Real-time recurrent learning: exact, with the influence of every number on the state carried forward.

    .. math:: J_{t+1} = \frac{\partial F}{\partial z} J_t + \frac{\partial F}{\partial p}, \qquad
       \frac{dL}{dp} = \sum_t \frac{\partial L_t}{\partial z_t} J_t

    per sample, for parameters, inputs and z_0 alike. A loss at every step (`readout=`, save="sum") is taken in where it
    arises; nothing of an update is kept, so a recursion may go on for ever. `ForwardMode` is the same for a few chosen
    parameters, with one tangent for each; here tangents of numbers that act on different features are pushed together,
    and J goes on by one matrix product. Which act where is found by a probe at random states, and checked at every
    update: where it does not hold, the recursion is run again and takes no number for zero.

    Args:
        scope: "sample" if samples do not see each other, "batch" if they do, as in batch normalisation: J is then one
            matrix for the whole batch.
        max_numbers: Most numbers that the tangents of an update may hold, lest a large cell fill the memory.

    Forward values are those of `BPTT`, bit for bit, except in attention, whose kernel with forward rules differs.

    Cost:
        Saves J, B n P numbers for B samples of n features and P numbers that are differentiated, at any T, and as many
        P for each number of a sample's answers. An update takes n + C tangents, C being about P / n for RNNs, LSTMs and
        GRUs and up to P for others, each of a few forward passes, and B n^2 P multiplications. While it runs, these
        tangents hold n + C times its widest intermediate and (n + C) P numbers. The probe evaluates a cycle on 16
        samples at least and takes n vector-Jacobian products of each evaluation, once per call. `xs` that require grad
        count with all their updates: an encoder of a long sequence makes P grow with T.
    Not recommended when:
        T is below about P, and the sequence is at hand: `CheckpointedBPTT` has the same gradient for less of both.
        n P beyond some millions.
    Reference:
        Williams and Zipser 1989, Neural Computation 1(2).

    Raises:
        ValueError: scope is not one of these; leaves of the state have no first dimension in common and scope is
            "sample".
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: Samples see each other and scope is "sample"; an operator of the cell has no forward-mode rule; or
            backward got create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import RTRL
        >>> gru = torch.nn.GRUCell(3, 4)
        >>> cell = type("Cell", (torch.nn.Module,), {"forward": lambda self, z, x, step: gru(x, z)})()
        >>> given = {"xs": torch.ones(50, 2, 3), "readout": lambda z, *_: z.square().sum(1), "save": "sum"}
        >>> rollout = RTRL()(cell, torch.zeros(2, 4), None, 50, **given)
        >>> rollout.outputs.mean().backward()
    """

    kind = "exact"
    references = ("williams1989learning",)

    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return the influence matrix of the initial state."""
        pattern, kept = of_columns(columns, patterns)
        return Influence.start(everywhere(kept), pattern, columns.of_state, like)

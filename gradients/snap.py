"""Sparse approximations of real-time recurrent learning: the entries of the influence that a few updates reach."""

from dataclasses import dataclass

from torch import Tensor

from loopgrad.gradients.checks import check_int
from loopgrad.gradients.columns import Columns
from loopgrad.gradients.influence import Carried, Influence, Traces, reach
from loopgrad.gradients.online import Online, of_columns
from loopgrad.gradients.patterns import Patterns


@dataclass(frozen=True)
class SnAp(Online):
    r"""Sparse n-step approximation: real-time recurrent learning that keeps what a number reaches within n updates.

    .. math:: \tilde J_{t+1} = M_n \odot \left(\frac{\partial F}{\partial z} \tilde J_t + \frac{\partial F}{\partial p}
       \right)

    with M_n ones where n updates can make J other than zero: n = 1 keeps the features on which a number acts
    immediately, a large n all that it ever reaches, and is then exact. The mask is found by a probe at random states
    and is the same at every update.

    Args:
        num_steps: n.
        scope: "sample" if samples do not see each other, "batch" if they do.
        max_numbers: Most numbers that the tangents of an update may hold, lest a large cell fill the memory.

    Cost:
        That of `RTRL` with the entries that are kept in place of all: B P numbers for n = 1 and RNNs, LSTMs and GRUs,
        whose weights act on one feature each, and products of their blocks. A dense recurrent matrix fills M_2, and
        then n = 2 is `RTRL`; the mask is for sparse ones, and for cells of several states.
    Not recommended when:
        `CheckpointedBPTT` fits. Where the gradient must go through features that a number does not act on itself: it
        is biased, and no larger n helps short of all.
        Weights that act on all features at once, as those of a first of two layers: then n = 1 is `RTRL` already.
    Reference:
        Menick et al. 2021, arXiv 2006.07232.

    Raises:
        ValueError: num_steps is below 1; see `RTRL`.
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: The features on which a number acts change from update to update (weights or inputs that are
            picked by `step`: give inputs as `xs`); see `RTRL`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import SnAp, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = SnAp(1)(cell, torch.zeros(16, 3), torch.ones(16, 3), num_steps=64)
        >>> rollout.state.square().mean().backward()
    """

    num_steps: int = 1

    kind = "biased"
    references = ("menick2021practical",)
    needs_pattern = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("SnAp", "num_steps", self.num_steps, 1)

    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return what is kept of the influence matrix of the initial state."""
        pattern, kept = of_columns(columns, patterns)
        kept = reach(kept, patterns.state, self.num_steps)
        return Influence.start(kept, pattern, columns.of_state, like)


@dataclass(frozen=True)
class DiagonalRTRL(Online):
    r"""Real-time recurrent learning with the diagonal of dF/dz: each feature remembers its own influence alone.

    .. math:: \tilde J_{t+1} = \mathrm{diag}\left(\frac{\partial F}{\partial z}\right) \tilde J_t +
       \frac{\partial F}{\partial p}

    The eligibility traces of e-prop, with a readout's own derivative for the learning signal. Exact where features act
    on themselves alone from update to update: diagonal linear recurrent units, and cells that mix features only on
    the way in and on the way out.

    Args:
        scope: "sample" if samples do not see each other, "batch" if they do.
        max_numbers: Most numbers that the tangents of an update may hold, lest a large cell fill the memory.

    Cost:
        Saves a number for each feature on which a parameter acts immediately: B P for RNNs, LSTMs, GRUs and recurrent
        units, at any T. The tangents of an update are those of `RTRL`, and the products are 1 / n of its.
    Not recommended when:
        Features depend on one another, as in an RNN with a full recurrent matrix, beyond what it takes to learn
        something: it is biased. `SnAp(1)` keeps more where a parameter acts on several features, for a little more.
        And `CheckpointedBPTT` fits.
    Reference:
        Bellec et al. 2020, Nature Communications 11, 3625; Zucchet et al. 2023, arXiv 2305.15947.

    Raises:
        ValueError: See `RTRL`.
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: The features on which a number acts change from update to update; see `SnAp` and `RTRL`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import DiagonalRTRL, Stationary
        >>> decay = torch.full((3,), 0.5, requires_grad=True)
        >>> cell = Stationary(lambda z, x: decay * z + x, parameters=[decay])
        >>> rollout = DiagonalRTRL()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=2)
        >>> torch.autograd.grad(rollout.state.sum(), decay)[0]
        tensor([2., 2., 2.])
    """

    kind = "biased"
    references = ("bellec2020solution", "zucchet2023online")
    needs_pattern = True

    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return the traces of the initial state."""
        pattern, kept = of_columns(columns, patterns)
        return Traces.start(kept, pattern, columns.of_state, like)

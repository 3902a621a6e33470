"""Backpropagation through time with the activations of every update kept in a short form."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_choice, check_int, only_one
from loopgrad.gradients.compression import FORMS, Form, Near, Thin
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, run
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.saved_short import SavedShort
from loopgrad.gradients.stepwise import cut


@dataclass(frozen=True)
class CompressedBPTT(Estimator):
    r"""Backpropagation through time over activations that are kept with fewer bits, or at a low rank.

    .. math:: \sum_t (\partial_\theta f_t)^T |_{\hat a_t} \hat J_{t+1}^T \cdots \hat J_{T-1}^T g

    The forward pass is exact. Backward takes every update's derivatives at what was kept of its activations a_t in
    place of a_t:

    - kept="bfloat16": rounded, within 2^-8 of each number;
    - kept="int8": in units of a 127th of the greatest magnitude of a row (the last dimension), within half of one;
    - rank=r: X (rows, features) as a product of rank r that holds its r largest directions, nearly as well as any
      does (its distance is that of the best one up to a factor that one iteration of power brings close to 1). r at
      least the rank of X is exact, and is not made where it saves nothing;
    - tolerance=e: X as the product of least rank with ||X - X_r||_F <= e ||X||_F, and whole where that saves nothing.

    Weights, inputs and z_0 are there anyway and stay exact, and so do tensors whose last dimension is below 8. An error
    in J_t is multiplied with the Jacobians behind it: the gradient of T updates is off by a multiple of T times the
    error of one where they do not grow, and by more where they do.

    Args:
        kept: "bfloat16" or "int8".
        rank: r, at least 1.
        tolerance: e, above 0 and below 1. Give one of the three.

    Cost:
        T cell evaluations, T vjps, and the making of the short forms; saves the graph of all T updates, O(T), with
        activations of float32 in half (bfloat16) or about a quarter (int8) of their bytes, or r (rows + features)
        numbers for each matrix. A tolerance takes a singular value decomposition of each, and what is kept depends on
        the numbers: `loopgrad.analysis.measure` says how much it is.
    Not recommended when:
        Checkpoints fit: `CheckpointedBPTT` has the exact gradient in O(sqrt T) for a second forward pass, so that a
        factor of 2 or 4 pays for short recursions only. At rank r, samples of a batch are compressed together.
    Reference:
        Çakar et al. 2026, arXiv 2604.17224 (low rank); Halko, Martinsson and Tropp 2011, arXiv 0909.4061.

    Raises:
        ValueError: Not exactly one of the three is given, or it is none of the above.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT, CompressedBPTT, Stationary
        >>> linear = torch.nn.Linear(16, 16)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> x, found = torch.ones(4, 16), []
        >>> for estimator in (BPTT(), CompressedBPTT("int8")):
        ...     found += torch.autograd.grad(estimator(cell, x, x, 9).state.sum(), linear.weight)
        >>> assert 0 < torch.dist(*found) < 0.05 * found[0].norm()
    """

    kept: Literal["bfloat16", "int8"] | None = None
    rank: int | None = None
    tolerance: float | None = None

    kind = "biased"
    memory = "O(T)"
    references = ("cakar2026laser", "halko2011finding")
    outputs = "emitted"
    by_sample = False

    def __post_init__(self) -> None:
        name, value = only_one(
            "CompressedBPTT",
            'kept="int8", rank=8 or tolerance=0.01',
            kept=self.kept,
            rank=self.rank,
            tolerance=self.tolerance,
        )
        if name == "rank":
            check_int("CompressedBPTT", name, value, 1)
        elif name == "tolerance":
            if not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ValueError(f"CompressedBPTT(tolerance={value!r}) must be a number above 0 and below 1")
        else:
            check_choice("CompressedBPTT", name, value, list(FORMS))

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion under autograd, with a short form of what each update saves."""
        if not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, vjps=0))
        known = [*cell.buffers(), *tree.tensors(state), *tree.tensors(inputs)]
        saved, inputs = SavedShort(self._form(), known), cut(inputs, range(num_steps))
        for step in range(num_steps):
            with saved.update(tree.tensors(state)):
                state = cell(state, tree.own_containers(inputs), step)
        saved.end()
        vjps = num_steps if any(map(requires_grad, tree.flatten(state)[0])) else 0
        return Rollout(state, Stats(cell_evaluations=num_steps, vjps=vjps))

    def _form(self) -> Form:
        if self.rank is not None:
            return Thin(self.rank)
        return Near(self.tolerance) if self.tolerance is not None else FORMS[self.kept or ""]

"""A recursion for forward gradients to estimate, and the exact gradients that cost as much memory or arithmetic.

The recursion is z <- rms_norm(z + W2 silu(W1 (z + x))), the loss sum(z_T * w), the gradient that of W1 and W2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from loopgrad.analysis import Cost, gradients_of, measure, reference_gradients
from loopgrad.analysis.agreement import Gradients
from loopgrad.analysis.counters import flop_counter
from loopgrad.experiments.benches.cells import StandardCell
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator
from loopgrad.gradients.budget import BudgetTooSmall

Measured = tuple[Estimator, Cost]


@dataclass(frozen=True)
class Setting:
    """Sizes of a problem.

    Attributes:
        batch_size: Samples.
        size: Features.
        num_steps: Updates T.
        shared: One w for all samples, or one for each.
    """

    batch_size: int
    size: int
    num_steps: int
    shared: bool = True

    @property
    def parameters(self) -> int:
        """P."""
        return 4 * self.size**2


class Problem:
    """A random cell with random first state, inputs and loss, in float32.

    The cell and a shared w depend on features and seed alone, so that they stay as batch and updates change.

    Args:
        setting: Sizes.
        seed: Seed of all its numbers.
    """

    def __init__(self, setting: Setting, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.setting = setting
        self.cell = StandardCell(setting.size, generator)
        rows = (setting.batch_size, setting.size)
        w = torch.randn(setting.size, generator=generator)
        self.state, self.inputs, own = (torch.randn(*rows, generator=generator) for _ in range(3))
        self.weight = w if setting.shared else own

    def loss(self, cell: nn.Module, estimator: Estimator) -> Tensor:
        """Return sum(z_T * w) in the dtype of the cell."""
        dtype = next(cell.parameters()).dtype
        state = estimator(cell, self.state.to(dtype), self.inputs.to(dtype), self.setting.num_steps).state
        return (state * self.weight.to(dtype)).sum()

    @cached_property
    def exact(self) -> Gradients:
        """The gradient by BPTT with the same weights in float64."""
        return reference_gradients(lambda cell: self.loss(cell, BPTT()), self.cell)

    def gradient(self, estimator: Estimator) -> Gradients:
        """Return one draw of the gradient by an estimator."""
        return gradients_of(lambda cell: self.loss(cell, estimator), self.cell)

    @cached_property
    def forward_flops(self) -> int:
        """FLOPs of one forward pass."""
        with torch.no_grad(), flop_counter() as counter:
            self.loss(self.cell, BPTT())
        return int(counter.get_total_flops())

    def cost(self, estimator: Estimator) -> Cost:
        """Return bytes and FLOPs of one forward and backward pass."""
        exclude = [self.state, self.inputs, self.weight]
        run = lambda: self.loss(self.cell, estimator)  # noqa: E731
        return measure(run, cell=self.cell, exclude=exclude, repeats=0, warmup=0)

    def forwards(self, cost: Cost) -> float:
        """Return FLOPs over those of one forward pass."""
        return cost.flops / self.forward_flops


def within_peak(problem: Problem, schedules: Sequence[Measured], peak: int) -> Measured | None:
    """Return the exact gradient of fewest FLOPs whose measured peak is at most `peak` bytes, None if none has.

    It is one of `schedules`, or what `CheckpointedBPTT` chooses from a budget, its trace of one update included in the
    FLOPs. A budget counts generator states, which the measured peak leaves out, and not the tensors of the loss, which
    it holds: where the peak is exceeded the budget is lowered by the excess.
    """
    fitting, budget = [pair for pair in schedules if pair[1].peak_bytes <= peak], peak
    while budget > 0:
        estimator = CheckpointedBPTT(memory_budget=budget)
        try:
            cost = problem.cost(estimator)
        except BudgetTooSmall:
            break
        if cost.peak_bytes <= peak:
            fitting.append((estimator, cost))
            break
        budget -= cost.peak_bytes - peak
    return min(fitting, key=lambda pair: (pair[1].flops, pair[1].peak_bytes), default=None)


def within_flops(schedules: Sequence[Measured], flops: int) -> Measured | None:
    """Return the exact gradient of least peak among `schedules` with at most that many FLOPs, None if none has."""
    fitting = [pair for pair in schedules if pair[1].flops <= flops]
    return min(fitting, key=lambda pair: (pair[1].peak_bytes, pair[1].flops), default=None)


def schedules(problem: Problem) -> list[Measured]:
    """Return BPTT and checkpointed gradients from little to much recomputation, each with its measured cost.

    Segments are sqrt T and powers of two; stored states of the binomial schedules are 0 to 4, then about every 4/3.
    """
    num_steps = problem.setting.num_steps
    tried: list[Estimator] = [BPTT(), CheckpointedBPTT()]
    tried += [CheckpointedBPTT(2**i) for i in range(num_steps.bit_length()) if 2**i < num_steps]
    snapshots = 0
    while snapshots < num_steps - 1:
        tried.append(CheckpointedBPTT("binomial", num_snapshots=snapshots))
        snapshots = max(snapshots + 1, snapshots * 4 // 3)
    return [(estimator, problem.cost(estimator)) for estimator in tried]

"""Parallel in time: all states of a recursion at once by Newton's method, and the exact gradient by a scan."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level as in_transform

from loopgrad.gradients import tree
from loopgrad.gradients.bptt import BPTT
from loopgrad.gradients.checkpointed import CheckpointedBPTT
from loopgrad.gradients.checks import check_choice, check_int, is_number
from loopgrad.gradients.compiled import is_compiled
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, run
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import is_floating, requires_grad
from loopgrad.gradients.implicit_verdict import Unconverged
from loopgrad.gradients.invertible import is_invertible
from loopgrad.gradients.newton import Blocks, allowed
from loopgrad.gradients.recursion_node import joined
from loopgrad.gradients.side_by_side import ask
from loopgrad.gradients.stepwise import asks, callers
from loopgrad.gradients.trajectory import TrajectoryPass, TrajectoryRecursion
from loopgrad.gradients.watched_step import watching


@dataclass
class ParallelStats(Stats):
    """Cost of a trajectory that is found at once; a call of the cell, and a product, is of all updates of a place.

    Attributes:
        iterations: Steps of Newton's method.
        levels: Batches of products that wait for one another in each: the sequential depth of its linear recursion.
        residuals: Before the first step and after each, the largest |z_{t+1} - f(z_t)| of a number of any sample over
            the largest |z| of that sample.
        backward_iterations: Scans that backward has taken beyond the first, with diagonal Jacobians.
        fallback: Whether the steps had run out, and the recursion was run one update after the other.
    """

    iterations: int = 0
    levels: int = 0
    residuals: list[float] = field(default_factory=list, compare=False)
    backward_iterations: int = 0
    fallback: bool = False

    def numbers(self) -> dict[str, float]:
        """Return the iterations, whether they had run out, and the largest residual."""
        return super().numbers() | {"iterations": float(self.iterations), "fallback": float(self.fallback)}


@dataclass(frozen=True)
class ParallelNewton(Estimator):
    r"""All states of a recursion at once, by Newton's method on the trajectory; exact gradient by a scan.

    .. math:: \delta_{t+1} = J_t \delta_t - r_t, \quad r_t = z_{t+1} - f_t(z_t); \qquad
       \lambda_t = J_t^T \lambda_{t+1} + c_t, \quad \frac{dL}{d\theta} = \sum_t (\partial_\theta f_t)^T \lambda_{t+1}

    From a guess of all z_t, each step calls the cell on all updates at once, as further samples of the batch, and
    solves the linear recursion by an associative scan: 2 log2 T products that wait for one another, in place of T
    updates (DEER). Backward is one scan more, and one product with all updates, exact at the states that were found.
    These are the sequential ones up to tolerance; a cell that is linear in its state takes one step.

    Args:
        jacobian: "full"; or "diagonal" (quasi-DEER): the derivative of each feature by itself alone, exact where
            features do not see each other. Elsewhere more steps lead to the same states, and backward repeats its scan
            until the whole Jacobians agree; if that takes more than max_iterations it takes full ones.
        damping: 0 for Newton's steps; above 0 those of Levenberg and Marquardt (ELK), |delta| being held down by
            this weight beside |r|: a tenth of it after a step that lowers a sample's residual, ten times as much after
            one that does not, which is not taken.
        tolerance: Largest residual |z_{t+1} - f(z_t)| of any number over the largest |z| of its sample; None for a
            hundred times the rounding of the state's dtype (1e-5 in float32, 2e-14 in float64).
        max_iterations: Most steps.
        on_unconverged: "raise"; or "fallback" where the tolerance is not met: the same recursion by `fallback`.
        fallback: `CheckpointedBPTT` or `BPTT`, for the whole batch.
        max_numbers: Most numbers that the Jacobians of all updates may hold, lest a large cell fill the memory.

    A cell may read `step` by its remainder by a divisor of cell.period alone: it is given an int that notes any other
    use in Python and in calls of torch. What C reads directly, such as step as an index of a list or an array of NumPy,
    cannot be noted; that is seen in the updates that are compared with themselves run alone: two cycles at the start,
    one in the middle, one at the end. `Rollout.stats` has iterations, levels and residuals; each step waits for the
    device once, to look at its residual.

    Cost:
        A step evaluates all T updates, takes D products with them for D features of the state (one, where features are
        seen not to see each other) and 2 B T D^3 operations for B samples; "diagonal": 3 B T D. Beforehand the first
        cycle is run by itself; and there and at the end some updates, up to four cycles, to check that they are those
        of the batch, at the end with a product each. Backward evaluates all once more, with as many products. Saves T
        states of D numbers. While it runs: the graphs of T updates, as BPTT, inputs repeated T times, and B T D^2
        numbers (several times that with damping); "diagonal": B T D.
    Not recommended when:
        Updates fill the device by themselves: this does more work, to wait less. The recursion's largest Lyapunov
        exponent is not negative: steps then grow in number with T, as they may where updates expand at the guess, which
        repeats the first states. D is beyond some hundreds, or features see each other and Jacobians are diagonal.
        Memory is short: `CheckpointedBPTT` keeps sqrt T states.
    Reference:
        Lim et al. 2024, arXiv 2309.12252; Gonzalez et al. 2024, arXiv 2407.19115; Danieli et al. 2025,
        arXiv 2510.21450; Gonzalez et al. 2025, arXiv 2508.16817.

    Raises:
        ValueError: An argument is out of range; the Jacobians would hold more than max_numbers; a leaf of the state
            is no floating tensor of float32 or float64, or has no batch; autocast is on.
        TypeError: The cell is a coupling, or torch.compile has compiled it.
        Unconverged: on_unconverged="raise", and the tolerance is not met.
        RuntimeError: Updates side by side are not those by themselves, in value or in derivative: the cell reads `step`
            other than by its period, samples see each other, or inputs that samples share look like a batch; an update
            draws random numbers or rewrites buffers; or backward got create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ParallelNewton, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(0.5 * linear(z) + x), parameters=linear)
        >>> rollout = ParallelNewton()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=64)
        >>> rollout.state.sum().backward()
        >>> rollout.stats.iterations < 10, rollout.stats.levels
        (True, 11)
    """

    jacobian: Literal["full", "diagonal"] = "full"
    damping: float = 0.0
    tolerance: float | None = None
    max_iterations: int = 100
    on_unconverged: Literal["raise", "fallback"] = "raise"
    fallback: Estimator = CheckpointedBPTT()
    max_numbers: int = 2**28

    kind = "exact"
    memory = "O(T)"
    references = ("lim2024parallelizing", "gonzalez2024towards", "danieli2025pararnn", "gonzalez2025predictability")
    outputs = "emitted"
    compiles = False

    def __post_init__(self) -> None:
        check_choice("ParallelNewton", "jacobian", self.jacobian, ("full", "diagonal"))
        check_choice("ParallelNewton", "on_unconverged", self.on_unconverged, ("raise", "fallback"))
        check_int("ParallelNewton", "max_iterations", self.max_iterations, 1)
        check_int("ParallelNewton", "max_numbers", self.max_numbers, 1)
        for name in ("damping", "tolerance"):
            value = getattr(self, name)
            if (value is not None or name == "damping") and not (is_number(value) and 0 <= value < float("inf")):
                raise ValueError(f"ParallelNewton({name}={value!r}) must be a finite number of at least 0")
        if not isinstance(self.fallback, CheckpointedBPTT | BPTT):
            raise ValueError("ParallelNewton(fallback=...) must be CheckpointedBPTT or BPTT, which are exact")

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Find all states; where there is one, or none, or nothing can be differentiated, run the updates."""
        graph, leaves = may_differentiate(cell, state, inputs), _floating(state)
        empty = all(leaf.dim() and not len(leaf) for leaf in leaves)
        if num_steps < 2 or empty or in_transform() is not None or torch.is_inference_mode_enabled():
            last = run(cell, state, inputs, range(num_steps))
            return Rollout(last, ParallelStats(num_steps, num_steps * any(map(requires_grad, _floating(last)))))
        self._check(cell, state)
        watched, watch = watching(cell)
        functional, stats = FunctionalCell(watched, state, inputs), ParallelStats(0, 0)
        forward = TrajectoryPass(functional, watch, num_steps, self, stats)
        found = forward.run(inputs)
        stats.residual = found.residual
        if not found.met:
            return self._unmet(cell, state, inputs, num_steps, stats)
        sources = functional.sources if graph else ()
        (states,) = joined(TrajectoryRecursion, forward, [found.states], [found.states, *sources], sources)
        rows, asked = forward.updates.rows, asks(inputs)
        for step in range(num_steps) if asked else ():
            ask(cell, inputs, functional.unflatten_state(rows.split(states[step], functional.state)), step)
        return Rollout(functional.unflatten_state(rows.split(states[-1], functional.state)), stats)

    def blocks(self) -> Blocks:
        """Return which Jacobians are taken."""
        return Blocks(self.jacobian == "full")

    def is_met(self, residual: float, dtype: torch.dtype, stats: ParallelStats) -> bool:
        """Whether a residual of states of a dtype is small enough to end the search."""
        return residual <= allowed(self, dtype)

    def check_size(self, num_steps: int, batch: int, features: int) -> None:
        """Raise ValueError if the Jacobians would hold more than max_numbers."""
        numbers = num_steps * batch * features * (features if self.jacobian == "full" else 1)
        if numbers > self.max_numbers:
            raise ValueError(
                f"ParallelNewton(jacobian={self.jacobian!r}) would keep {numbers} numbers, the Jacobians of "
                f"{num_steps} updates of {batch} samples with {features} features, and takes at most "
                f"max_numbers={self.max_numbers}: raise it, take jacobian='diagonal', or use CheckpointedBPTT()"
            )

    def _check(self, cell: nn.Module, state: Any) -> None:
        own = callers(cell)
        if is_invertible(own):
            raise TypeError(
                f"ParallelNewton takes steps between states, and those of {type(own).__name__} lie on a grid: use "
                "ReversibleBPTT() or BPTT(), or the cell inside"
            )
        if is_compiled(cell):
            raise TypeError(
                "ParallelNewton takes several products with one graph of the cell, which compiled code does not keep: "
                "leave the cell and its nets uncompiled, or use CheckpointedBPTT()"
            )
        leaves = _floating(state)
        narrow = [leaf.dtype for leaf in leaves if leaf.dtype.itemsize < 4]
        if narrow or any(torch.is_autocast_enabled(device) for device in {leaf.device.type for leaf in leaves}):
            what = f"a leaf of state is {narrow[0]}" if narrow else "autocast is on"
            raise ValueError(
                f"{what}, and ParallelNewton solves for states to a hundred times the rounding of their dtype: run the "
                "recursion in float32 or float64, or use BPTT() or CheckpointedBPTT()"
            )

    def _unmet(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int, stats: ParallelStats) -> Rollout:
        if self.on_unconverged == "raise":
            *_, before, last = [float("nan"), *stats.residuals]
            raise Unconverged(
                f"ParallelNewton: {stats.iterations} steps have left a relative residual of {last:.2g} ({before:.2g} "
                "before the last), which is above the tolerance. Raise max_iterations or tolerance, take damping=1.0 "
                "or jacobian='full', run fewer updates, or take on_unconverged='fallback', which runs them one by one. "
                "A recursion whose largest Lyapunov exponent is positive is not for this estimator"
            )
        fallen = self.fallback.rollout(cell, state, inputs, num_steps)
        stats.fallback, stats.residual = True, None
        stats.cell_evaluations += fallen.stats.cell_evaluations
        stats.vjps += fallen.stats.vjps
        return Rollout(fallen.state, stats, fallen.outputs)


def _floating(state: Any) -> list[Tensor]:
    return [leaf for leaf in tree.flatten(state)[0] if is_floating(leaf)]

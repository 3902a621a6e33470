"""TorchDEQ's own fixed-point layer behind our contract, so that the two can be compared on any cell in one line."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_choice, check_int
from loopgrad.gradients.contract import Estimator, Rollout, Stats, check_shapes, may_differentiate, period_of, run
from loopgrad.gradients.graphs import is_floating, merged
from loopgrad.gradients.stopped import Before

SOLVERS = ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden")


@dataclass(frozen=True)
class TorchDEQ(Estimator):
    """Gradient of torchdeq (extra [peers]): implicit differentiation or its phantom gradient, unchanged.

    The last state is that of torchdeq's forward solver, with at most num_steps updates and what the gradient adds.

    Args:
        gradient: "ift" for implicit differentiation, "hook_ift" for its form with a hook, or "phantom".
        f_solver: "fixed_point_iter", "anderson" or "broyden".
        b_solver: The same for backward.
        f_tol: Tolerance of the forward solver.
        b_tol: Tolerance of the backward solver; torchdeq's default is absolute, so it depends on the loss's scale.
        f_stop_mode: "abs" or "rel".
        b_stop_mode: "abs" or "rel".
        b_max_iter: Largest number of vector-Jacobian products of the cycle map in backward.
        num_steps: Cycles of the phantom gradient.
        damping: Damping of the phantom gradient.
        core: "sliced" or "indexing", torchdeq's two graphs.

    Cost:
        That of torchdeq; one cycle is evaluated for the graph and, for "ift", once more in backward.
    Not recommended when:
        Training with it: see docs/choosing.md for the faults that were shown of version 0.1.0, such
        as a silent one-step gradient for a small loss and a batch lost to one NaN. The initial state gets no gradient.
    Reference:
        Geng and Kolter 2023, arXiv 2310.18605.

    Raises:
        ImportError: torchdeq is not installed.
        ValueError: An argument is not one of the above, or a number is out of range.

    Example:
        >>> from loopgrad.gradients import TorchDEQ
        >>> TorchDEQ(b_solver="anderson", b_stop_mode="rel", b_tol=1e-3).kind
        'exact at a fixed point'
    """

    gradient: Literal["ift", "hook_ift", "phantom"] = "ift"
    f_solver: str = "fixed_point_iter"
    b_solver: str = "fixed_point_iter"
    f_tol: float = 1e-3
    b_tol: float = 1e-6
    f_stop_mode: str = "abs"
    b_stop_mode: str = "abs"
    b_max_iter: int = 40
    num_steps: int = 1
    damping: float = 1.0
    core: Literal["sliced", "indexing"] = "sliced"

    kind = "exact at a fixed point"
    memory = "O(1)"
    references = ("geng2023torchdeq",)
    not_differentiated = ("state",)
    lengths = False

    def __post_init__(self) -> None:
        check_choice("TorchDEQ", "gradient", self.gradient, ("ift", "hook_ift", "phantom"))
        check_choice("TorchDEQ", "core", self.core, ("sliced", "indexing"))
        for name in ("f_solver", "b_solver"):
            check_choice("TorchDEQ", name, getattr(self, name), SOLVERS)
        for name in ("f_stop_mode", "b_stop_mode"):
            check_choice("TorchDEQ", name, getattr(self, name), ("abs", "rel"))
        for name in ("f_tol", "b_tol"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"TorchDEQ({name}={getattr(self, name)}) must be a finite number of at least 0")
        for name in ("b_max_iter", "num_steps"):
            check_int("TorchDEQ", name, getattr(self, name), 1)
        if not 0 < self.damping <= 1:
            raise ValueError(f"TorchDEQ(damping={self.damping}) must be in (0, 1]")

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Hand the cycle map to torchdeq."""
        period, stats = period_of(cell), Stats(0, 0)
        if num_steps < period:
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, num_steps))
        try:
            from torchdeq import get_deq  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("TorchDEQ needs torchdeq: pip install 'loopgrad[peers]'") from error
        deq = get_deq(
            core=self.core,
            f_solver=self.f_solver,
            b_solver=self.b_solver,
            f_max_iter=num_steps // period,
            b_max_iter=self.b_max_iter,
            f_tol=self.f_tol,
            b_tol=self.b_tol,
            f_stop_mode=self.f_stop_mode,
            b_stop_mode=self.b_stop_mode,
            ift=self.gradient == "ift",
            hook_ift=self.gradient == "hook_ift",
            grad=self.num_steps if self.gradient == "phantom" else 1,
            tau=self.damping,
        ).train(may_differentiate(cell, state, inputs))
        leaves, unflatten = tree.flatten(state)
        carried = leaves

        def cycle(*given: Tensor) -> Any:
            nonlocal carried
            before = Before(given)
            after = run(cell, unflatten(merged(given, leaves)), inputs, range(num_steps - period, num_steps))
            check_shapes("TorchDEQ", state, after)
            carried = tree.flatten(after)[0]
            found = list(filter(is_floating, carried))
            _count(stats, period, found)
            if stats.stopped is None and torch.is_grad_enabled():  # the first cycle that is differentiated
                stats.stopped, stats.residual = before.stopped(found), before.moved(found)
            return found[0] if len(found) == 1 else tuple(found)

        starts = [leaf.detach() for leaf in leaves if is_floating(leaf)]
        outputs, _ = deq(cycle, starts[0] if len(starts) == 1 else tuple(starts))
        last = outputs[-1] if isinstance(outputs[-1], tuple | list) else [outputs[-1]]
        pairs = zip(last, filter(is_floating, leaves), strict=True)
        return Rollout(unflatten(merged([new.to(old.dtype).view_as(old) for new, old in pairs], carried)), stats)


def _count(stats: Stats, period: int, outputs: list[Tensor]) -> None:
    """Count one cycle, and each product that goes through it."""

    def product(_: Any) -> None:
        stats.vjps += period

    stats.cell_evaluations += period
    node = next((leaf.grad_fn for leaf in outputs if leaf.grad_fn is not None), None)
    if node is not None and torch.is_grad_enabled():
        node.register_prehook(product)

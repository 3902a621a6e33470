"""The backward pass of an implicit gradient: linearise, judge, solve, and fall back for the samples that fail."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from loopgrad.gradients import tree
from loopgrad.gradients.contract import Rollout, Stats, period_of
from loopgrad.gradients.fingerprint import Fingerprints
from loopgrad.gradients.graphs import (
    alias,
    check_nothing_hidden,
    free_nodes,
    is_floating,
    leaf_view,
    next_number,
    plus,
    pull_back,
    requires_grad,
    spread,
)
from loopgrad.gradients.implicit_verdict import Unconverged, Verdict, relative, unconverged
from loopgrad.gradients.linearised import Linearised, masked_inputs, without_lost
from loopgrad.gradients.recompute import GraphFree
from loopgrad.gradients.solvers import LINEAR
from loopgrad.gradients.solvers.estimate import ESTIMATE, estimated


def implicit_gradients(
    run: Any, saved: Any, stats: Any, cotangents: Any, wanted: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return the gradients of all tensors: implicit where that can be trusted, the fallback's elsewhere.

    Args:
        run: `ImplicitPass`, with the estimator as `how`.
        saved: Tensors of the last state and of the one that the fallback starts from.
        stats: Take the cost and the verdict.
        cotangents: Cotangents of the floating leaves of the last state; None for zero.
        wanted: Which floating leaves of the state, and then which other tensors, want a gradient.
    """
    cell, how, rows, needs = run.cell, run.how, run.rows, iter(wanted)
    first = spread(needs, cell.state)
    others = cell.stand_ins(list(needs))
    queue = iter(saved)
    leaves, start = (tree.together(queue, rest) for rest in (run.rest_last, run.rest_start))
    b, z = rows.join(cotangents), rows.join(leaves)
    cycle, runs = (cell, leaves, others, run.cycle_conditions, run.cycle, rows), 1
    f = Linearised(*cycle)
    _check_repeated(run, f.first, leaves, others)
    moved, size, largest = vector_norm(f.image - z, dim=1), vector_norm(f.image, dim=1), b.abs().amax(dim=1)
    finite = (moved + size + largest) < torch.inf  # nan is not
    forward = relative(moved, size)
    gated = how.on_unconverged in ("fallback", "raise")
    solved = finite & (forward <= how.forward_rtol) if gated else finite
    all_finite, any_solved, all_solved = torch.stack([finite.all(), solved.any(), solved.all()]).tolist()
    if not all_finite:

        def masked(cut: bool) -> tuple[Linearised, Tensor]:
            nonlocal runs
            runs += 1
            found = Linearised(*cycle, keep=finite, cut=cut)
            return found, found.image

        f = without_lost(masked, finite)
        b, largest = torch.where(finite.unsqueeze(1), b, 0.0), torch.where(finite, largest, 0.0)
    # a power of two, so that the scale of the loss changes nothing but the scale of the gradient
    scale = torch.ldexp(torch.ones_like(forward), largest.frexp().exponent).unsqueeze(1)
    unit = b / scale
    norm = vector_norm(unit, dim=1)
    w, left, products, handed_on = unit, norm, 0, torch.zeros_like(finite)
    if not any_solved:
        w = torch.zeros_like(unit)
    else:
        right = unit if all_solved else torch.where(solved.unsqueeze(1), unit, 0.0)
        if how.solver == ESTIMATE:
            w, left, _ = estimated(f.pull, right, *(saved[-2:] if run.estimate else (None, None)))
        else:
            w, left = _linear(f, right, how)
        products = f.vjps
        handed_on = handed_on if f.handed_on is None else f.handed_on
    backward, amplification = relative(left, norm), relative(vector_norm(w, dim=1), norm)
    backward = backward if all_solved else torch.where(solved, backward, 0.0)
    estimate = torch.maximum(amplification * forward, backward)
    passed = finite & (forward <= how.forward_rtol) & (estimate <= how.max_gradient_error)
    falls_back = finite & ~passed & (norm > 0) if how.on_unconverged == "fallback" else torch.zeros_like(finite)
    all_passed, any_back = torch.stack([passed.all(), falls_back.any()]).tolist()
    any_back = any_back and how.on_unconverged == "fallback"  # known where tensors hold no data, too
    verdict = Verdict(forward, backward, amplification, estimate, solved, passed, finite, products, any_back)
    used = passed if gated else finite & (vector_norm(w, dim=1) < torch.inf)
    of_state: list[Tensor | None] = [None] * len(first)  # at a fixed point z_0 changes nothing
    found: list[Tensor | None] = [None] * len(others)
    if any_solved:
        trusted = w * scale
        found = f.gradients(trusted if all_passed else torch.where(used.unsqueeze(1), trusted, 0.0))
    evaluations, vjps = (runs + f.reruns) * len(run.cycle) + 1, f.vjps * len(run.cycle)
    if any_back:
        del f, w
        keep = None if all_finite else finite
        start = [alias(leaf, run.first == 0 and needed) for leaf, needed in zip(start, first, strict=True)]
        seeds = torch.where(falls_back.unsqueeze(1), b, 0.0)
        cost, of_state, fallen = _fallback_gradients(run, start, leaves, others, seeds, keep)
        evaluations, vjps = evaluations + cost.cell_evaluations, vjps + cost.vjps
        found = list(map(plus, found, fallen))
    stats.cell_evaluations += evaluations
    stats.vjps += vjps
    stats.verdict = verdict
    stats.stopped = solved & (moved == 0) & handed_on
    if any_back:  # unless the fallback goes back to where they still moved
        stats.stopped &= ~falls_back | (rows.join(start) == z).all(dim=1)
    if not any_solved and not any_back:  # no sample has a gradient, which is not to say that there is none to wait for
        found = [torch.zeros_like(tensor) if tensor.requires_grad else None for tensor in others]
    if not all_passed and how.on_unconverged == "raise":
        raise Unconverged(
            f"ImplicitGradient: {unconverged(verdict)}. Run more updates, allow more with forward_rtol, "
            "max_gradient_error or max_vjps, or take on_unconverged='fallback'"
        )
    if not all_passed and how.on_unconverged == "warn":
        warnings.warn(f"ImplicitGradient: {unconverged(verdict)}", stacklevel=2)
    return [g for g, leaf in zip(of_state, cell.state, strict=True) if is_floating(leaf)] + found


def _check_repeated(run: Any, after: list[Any], leaves: list[Any], others: list[Tensor]) -> None:
    """Raise if the first update of the cycle does something else when it is run once more."""
    cell, step, met = run.cell, run.cycle.start, Fingerprints()
    met.note(step + 1, after)
    with run.cycle_conditions.restored(cell.cell) as buffers, GraphFree(cell.cell):
        met.compare(step + 1, cell.run_on(leaves, others, buffers, step, step + 1))
    met.judge("ImplicitGradient", "raise")


def _linear(f: Linearised, b: Tensor, how: Any) -> tuple[Tensor, Tensor]:
    """Solve (1 - J^T) w = b; return w and the norms of what is left."""
    solver = LINEAR[how.solver] if isinstance(how.solver, str) else how.solver
    tolerance, first, rest = how.rtol * vector_norm(b, dim=1), None, b
    known = how._last.solution if how.warm_start else None
    if known is not None and known.shape == b.shape and known.device == b.device and how.max_vjps > 1:
        guess = known.to(b.dtype) * vector_norm(b, dim=1, keepdim=True)
        left = b - (guess - f.pull(guess))
        better = (vector_norm(left, dim=1) < vector_norm(b, dim=1)).unsqueeze(1)
        first, rest = torch.where(better, guess, 0.0), torch.where(better, left, b)
    budget = how.max_vjps - f.vjps
    found = solver(f.pull, rest, tolerance, budget, how.check_every)
    w = found.solution if first is None else first + found.solution
    if how.warm_start:
        how._last.solution = w / vector_norm(b, dim=1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)
    return w, found.residual


class _StartingAt(nn.Module):
    """A cell whose first update is number `start`."""

    def __init__(self, cell: nn.Module, start: int):
        super().__init__()
        self.cell, self.start, self.period = cell, start, period_of(cell)

    def forward(self, state: Any, inputs: Any, step: int) -> Any:
        return self.cell(state, inputs, self.start + step)


def _fallback_gradients(
    run: Any, start: list[Any], last: list[Any], others: list[Tensor], b: Tensor, keep: Tensor | None
) -> tuple[Stats, list[Tensor | None], list[Tensor | None]]:
    """Return the cost of the fallback and its gradients of the state and the other tensors for the cotangent b."""
    cell, how, rows, since, runs, met = run.cell, run.how, run.rows, next_number(), 0, Fingerprints()
    met.note(run.num_steps, last if keep is None else rows.masked(last, keep))

    def fallen(cut: bool) -> tuple[Rollout, Tensor]:
        nonlocal runs
        runs += 1

        def fall_back(module: nn.Module, inputs: Any) -> Rollout:
            return how.fallback(_StartingAt(module, run.first), cell.unflatten_state(viewed), inputs, run.window)

        with run.start_conditions.restored(cell.cell) as buffers:
            entries, viewed = cell.leaf_views(others), [leaf_view(leaf) for leaf in start]
            if keep is not None:
                viewed = rows.masked(viewed, keep)
                entries = masked_inputs(cell, entries, rows, keep) if cut else entries
            rollout = cell.call(fall_back, entries, buffers)
        leaves = tree.flatten(rollout.state)[0]
        if how.forward == "unroll" and not cut:  # these updates have led to the last state before
            met.compare(run.num_steps, leaves if keep is None else rows.masked(leaves, keep))
        return rollout, rows.join(leaves).detach()

    rollout = fallen(False)[0] if keep is None else without_lost(fallen, keep)
    rollout.stats.cell_evaluations += (runs - 1) * run.window
    met.judge("ImplicitGradient", "raise")
    leaves, sources, stats = tree.flatten(rollout.state)[0], [*start, *others], rollout.stats
    asked = any(requires_grad(tensor) for tensor in sources)
    nodes = check_nothing_hidden(leaves, [*sources, *cell.frozen], since) if asked else []
    gradients = pull_back(leaves, rows.split(b), sources)
    del rollout, leaves
    free_nodes(nodes)
    return stats, gradients[: len(start)], gradients[len(start) :]

"""Where a recursion goes: residuals and norms of every stream, per update and per sample, and the cycle-map residual.

Three residuals that must not be mixed: of one update, of one stream a cycle apart, and of the joint cycle map F at the
point where the gradient is taken; the fixed-point premise of implicit gradients is about the last.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from loopgrad.analysis.precision import cast, evaluated_in, preserved_rng
from loopgrad.analysis.streams import Ends, Scalars, distances, state_leaves, stream_names
from loopgrad.gradients import tree
from loopgrad.gradients.contract import period_of

Array = np.ndarray


@dataclass(frozen=True)
class Trace:
    """Residuals and norms of one rollout of T updates over B samples, float64 numpy arrays, in units of the state.

    A stream is a leaf of the state, named "z_H" in a dict, "0" in a tuple, "a.b" nested, "state" if it is all there is.

    Attributes:
        streams: Names of the streams.
        num_steps: T.
        period: Updates in a cycle.
        at: Number of updates before the point z_at where F(z) - z is taken.
        dtype: Dtype in which the recursion ran (of each stream).
        map_dtype: Dtype in which F was evaluated at z_at (of each stream).
        norm: ||z_t|| per stream, (T + 1, B).
        scale: q90 over t of ||z_t|| per stream, (B,); it does not vanish at a fixed point of zero. The maximum over t
            where the q90 is zero.
        update: ||z_{t+1} - z_t|| per stream, (T, B); nan where the update handed the very tensor on.
        relative: update / scale, (T, B).
        cycle: ||z_{t+1} - z_{t+1-period}|| per stream, (T, B); nan where t + 1 < period.
        map: ||F(z) - z|| per stream at z_at, (B,), F the joint map of one cycle, all streams updated.
        map_relative: map / scale, (B,).
        joint: ||F(z) - z|| over all streams, the root of the sum of squares of `map`, (B,).
        joint_relative: joint over the root of the sum of squares of `scale`, (B,).
        lags: L, how many cycles back states were compared; 0 if that was not asked for.
        recurrence: ||z_cP - z_(c-p)P|| per stream for p = 1..L at the ends of cycles c = 1..C, (L, C, B);
            nan for p > c.
        turning: <d_c, d_(c-1)> per stream, d_c the move of cycle c, (C, B); nan for c = 1.
        reevaluated: Whether F was evaluated in another dtype than that of the recursion.
    """

    streams: tuple[str, ...]
    num_steps: int
    period: int
    at: int
    dtype: dict[str, str]
    map_dtype: dict[str, str]
    norm: dict[str, Array]
    scale: dict[str, Array]
    update: dict[str, Array]
    relative: dict[str, Array]
    cycle: dict[str, Array]
    map: dict[str, Array]
    map_relative: dict[str, Array]
    joint: Array
    joint_relative: Array
    lags: int
    recurrence: dict[str, Array]
    turning: dict[str, Array]
    reevaluated: bool

    def quantiles(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> dict[str, dict[str, list[float | None]]]:
        """Return quantiles over the samples, ready for JSON.

        Args:
            levels: Levels in [0, 1].

        Returns:
            For each stream "update" and "update_relative" (of the last update that touched it), "map" and
            "map_relative"; for "joint" the latter two. Each a list in the order of `levels`. A sample that is not
            finite counts as the largest; None where the quantile is not finite or the stream was never updated.
        """
        result = {}
        for stream in self.streams:
            # a state that has become nan was updated all the same
            moved = ~np.isnan(self.update[stream]) | np.isnan(self.norm[stream][1:])
            touched = np.flatnonzero(moved.any(axis=1))
            last = int(touched[-1]) if touched.size else None
            result[stream] = {
                "update": _quantiles(self.update[stream], last, levels),
                "update_relative": _quantiles(self.relative[stream], last, levels),
                "map": _quantiles(self.map[stream], ..., levels),
                "map_relative": _quantiles(self.map_relative[stream], ..., levels),
            }
        result["joint"] = {
            "map": _quantiles(self.joint, ..., levels),
            "map_relative": _quantiles(self.joint_relative, ..., levels),
        }
        return result


def record(
    cell: nn.Module,
    state: Any,
    inputs: Any,
    num_steps: int,
    *,
    at: int | None = None,
    upcast: torch.dtype = torch.float32,
    reevaluate: torch.dtype | None = None,
    lags: int = 0,
) -> Trace:
    """Run the recursion and record how far each update moves each stream of each sample.

    Only scalars are kept, on the device, and they are transferred once, at the end. Each update runs as it does in
    training (with autograd on, its graph dropped at once): under no_grad some modules take another kernel and move by
    1e-4. The cell stays in its train or eval mode, and the random number generators are put back.

    A residual of exactly zero in bfloat16 is no evidence of a fixed point: the update may be below the last bit.
    `reevaluate=torch.float64` computes F(z_at) anew in that dtype.

    Cost: T cell evaluations, and up to `period` more to complete the cycle that starts at z_at (numbered on from T),
        `period` more in the wider dtype with `reevaluate`; holds period + 1 states and the graph of one update.
    Not recommended when: the recursion is compiled as a whole; this calls the cell update by update.

    Args:
        cell: Module called as cell(state, inputs, step) -> state, with `period` updates in a cycle (default 1).
        state: z_0, a tree of floating tensors, each (batch, ...). Of a coupled cell, z_t is recorded, not its copy.
        inputs: What each update reads beside the state.
        num_steps: Number of updates T.
        at: Take F(z) - z at z_at, 0 <= at <= T. Default T. For a last-cycle gradient it is T - period.
        upcast: Narrowest dtype in which differences and norms are computed, float32 or wider.
        reevaluate: Floating dtype in which F is evaluated at z_at; default the cell's own.
        lags: Compare the ends of cycles up to so many cycles back, as `classify` needs; holds as many states.

    Returns:
        The trace.

    Raises:
        TypeError: The cell is not a module, a leaf of the state is not a floating tensor, upcast is narrower than
            float32, or the cell did not compute in `reevaluate`.
        ValueError: num_steps or at is out of range, the leaves differ in batch size, a stream is called "joint", or
            the cell changes its state in place.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import record
        >>> from loopgrad.gradients import Stationary
        >>> trace = record(Stationary(lambda z, x: z / 2), torch.ones(1, 4), None, num_steps=3)
        >>> trace.update["state"][:, 0].tolist(), trace.joint.tolist()
        ([1.0, 0.5, 0.25], [0.125])
    """
    at = num_steps if at is None else at
    _check_arguments(cell, num_steps, at, upcast)
    if isinstance(lags, bool) or not isinstance(lags, int) or lags < 0:
        raise ValueError(f"lags must be a number of cycles, an int of at least 0, got {lags!r}")
    state = _started(cell, state)
    names, period = stream_names(_visible(cell, state)), period_of(cell)
    batch = state_leaves(_visible(cell, state), names)[0].shape[0]
    scalars = Scalars(upcast)
    recent: dict[int, list[torch.Tensor]] = {0: state_leaves(_visible(cell, state), names)}
    _record_norms(scalars, names, recent[0], 0)
    ends = Ends(scalars, names, lags, recent[0])
    origin, arrival = state if at == 0 else None, None
    with preserved_rng(), torch.enable_grad():
        for step in range(max(num_steps, at + period if reevaluate is None else 0)):
            state, touched = _advance(cell, state, inputs, step, names)
            leaves = recent[step + 1] = state_leaves(_visible(cell, state), names)
            if step < num_steps:
                _record_norms(scalars, names, leaves, step + 1)
                moved = distances(leaves, recent[step], upcast)
                for name, value, touch in zip(names, moved, touched, strict=True):
                    if touch:
                        scalars.add(("update", name), step, value)
                if step + 1 >= period:
                    apart = distances(leaves, recent[step + 1 - period], upcast)
                    for name, value in zip(names, apart, strict=True):
                        scalars.add(("cycle", name), step, value)
                if (step + 1) % period == 0:
                    ends.add((step + 1) // period - 1, leaves)
            if step + 1 == at:
                origin = state
            if step + 1 == at + period:
                arrival = leaves
            recent.pop(step + 1 - period, None)
        start = state_leaves(_visible(cell, origin), names)
        if reevaluate is not None:
            with evaluated_in(cell, reevaluate):
                start, arrival = _cycle_in(cell, origin, inputs, at, period, reevaluate, names)
    assert arrival is not None
    for name, value in zip(names, distances(arrival, start, upcast), strict=True):
        scalars.add(("map", name), 0, value)
    map_dtype = {name: _short(leaf.dtype) for name, leaf in zip(names, arrival, strict=True)}
    dtype = {name: _short(leaf.dtype) for name, leaf in zip(names, recent[max(recent)], strict=True)}
    lengths = {"norm": num_steps + 1, "update": num_steps, "cycle": num_steps, "map": 1}
    found = scalars.arrays(lengths | ends.lengths(num_steps // period), names, batch)
    return _trace(found, names, num_steps, period, at, dtype, map_dtype, lags, reevaluate is not None)


def _record_norms(scalars: Scalars, names: Sequence[str], leaves: Sequence[torch.Tensor], time: int) -> None:
    for name, value in zip(names, distances(leaves, None, scalars.upcast), strict=True):
        scalars.add(("norm", name), time, value)


def _advance(cell: nn.Module, state: Any, inputs: Any, step: int, names: Sequence[str]) -> tuple[Any, list[bool]]:
    """Run one update; return the new state without its graph, and which streams it touched."""
    all_before = tree.tensors(state)
    versions = [_version(leaf) for leaf in all_before]
    after = cell(state, inputs, step)
    before, new = tree.tensors(_visible(cell, state)), state_leaves(_visible(cell, after), names)
    if versions != [_version(leaf) for leaf in all_before]:
        raise ValueError(
            f"the cell changes its state in place at step {step}, so the update cannot be measured: "
            "write z + f(z) instead of z.add_(f(z))"
        )
    touched = [leaf is not old for leaf, old in zip(new, before, strict=True)]
    # an untouched leaf stays the same object, so that the next update is compared with it rightly
    known = {id(leaf) for leaf in all_before}
    return tree.map_tensors(lambda leaf: leaf if id(leaf) in known else leaf.detach(), after), touched


def _started(cell: Any, state: Any) -> Any:
    return cell.couple(state) if hasattr(cell, "couple") else state


def _visible(cell: nn.Module, state: Any) -> Any:
    """Return what is recorded of a state: of a coupled cell's the copy that its next update reads."""
    return state.current if hasattr(cell, "couple") else state


def _cycle_in(
    cell: nn.Module, state: Any, inputs: Any, at: int, period: int, dtype: torch.dtype, names: Sequence[str]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    state, inputs = cast(state, dtype), cast(inputs, dtype)
    start = state_leaves(_visible(cell, state), names)
    device = start[0].device.type
    for step in range(at, at + period):
        # autocast would narrow the products of float32, which may be the wider dtype here
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            state, _ = _advance(cell, state, inputs, step, names)
    end = state_leaves(_visible(cell, state), names)
    for name, first, last in zip(names, start, end, strict=True):
        if last.dtype != first.dtype:
            raise TypeError(
                f"reevaluate={dtype}: the cell returned {name} in {last.dtype}, so it computes in a dtype of its own; "
                f"let the cell follow the dtype of its state"
            )
    return start, end


def _trace(
    found: dict[tuple[str, str], Array],
    names: tuple[str, ...],
    num_steps: int,
    period: int,
    at: int,
    dtype: dict[str, str],
    map_dtype: dict[str, str],
    lags: int,
    reevaluated: bool,
) -> Trace:
    norm = {name: found["norm", name] for name in names}
    update = {name: found["update", name] for name in names}
    residual = {name: found["map", name][0] for name in names}
    scale = {name: _scale(norm[name]) for name in names}
    joint = np.hypot.reduce(list(residual.values()))
    joint_scale = np.hypot.reduce(list(scale.values()))
    return Trace(
        streams=names,
        num_steps=num_steps,
        period=period,
        at=at,
        dtype=dtype,
        map_dtype=map_dtype,
        norm=norm,
        scale=scale,
        update=update,
        relative={name: _over(update[name], scale[name]) for name in names},
        cycle={name: found["cycle", name] for name in names},
        map=residual,
        map_relative={name: _over(residual[name], scale[name]) for name in names},
        joint=joint,
        joint_relative=_over(joint, joint_scale),
        lags=lags,
        recurrence={n: np.stack([found[f"lag {p}", n] for p in range(1, lags + 1)]) for n in names if lags},
        turning={n: found["turning", n] for n in names if lags},
        reevaluated=reevaluated,
    )


def _scale(norm: Array) -> Array:
    with np.errstate(invalid="ignore"):
        q90 = np.quantile(norm, 0.9, axis=0)
    return np.where(q90 == 0, norm.max(axis=0), q90)


def _over(residual: Array, scale: Array) -> Array:
    """Divide; a stream that never left zero has not moved: 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((scale == 0) & (residual == 0), 0.0, residual / scale)


def _quantiles(values: Array, index: Any, levels: Sequence[float]) -> list[float | None]:
    if index is None:
        return [None] * len(levels)
    chosen = values[index]
    if not np.isfinite(chosen).all():  # numpy would interpolate between infinities
        chosen = np.where(np.isnan(chosen), np.inf, chosen)
    with np.errstate(invalid="ignore"):
        found = np.quantile(chosen, levels)
    return [float(value) if np.isfinite(value) else None for value in found]


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_arguments(cell: Any, num_steps: Any, at: Any, upcast: Any) -> None:
    if not isinstance(cell, nn.Module):
        raise TypeError(
            f"cell must be an nn.Module called as cell(state, inputs, step), got {type(cell).__name__}: "
            "wrap a plain map fn(state, inputs) as Stationary(fn)"
        )
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps must be the number of updates, an int of at least 0, got {num_steps!r}")
    if not isinstance(at, int) or not 0 <= at <= num_steps:
        raise ValueError(f"at must be a number of updates between 0 and num_steps={num_steps}, got {at!r}")
    if upcast not in (torch.float32, torch.float64):
        raise TypeError(f"upcast must be torch.float32 or torch.float64, got {upcast}: narrower sums lose residuals")

"""Where a recursion goes: running it update by update and recording residuals and norms as a `Trace`."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from loopgrad.analysis.course import Course, check_options
from loopgrad.analysis.evaluation import leaving_torch_alone
from loopgrad.analysis.latent import Streams, check_shapes
from loopgrad.analysis.latent import latent as latent_leaves
from loopgrad.analysis.positions import Places, check_per
from loopgrad.analysis.precision import cast, evaluated_in, preserved_rng
from loopgrad.analysis.streams import Distance, counted, short, version
from loopgrad.analysis.trace import Trace, trace_of
from loopgrad.gradients import tree
from loopgrad.gradients.batch_dims import is_first, state_dims
from loopgrad.gradients.batch_first import batch_first, inside
from loopgrad.gradients.cell_call import check_cell
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.graphs import is_floating
from loopgrad.gradients.invertible import is_invertible, undoing
from loopgrad.gradients.options import Options


class NoInput(ValueError):
    """A cell that reads an input per update has none for an update beyond the end of the recursion."""


@leaving_torch_alone
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
    batch_dim: Any = 0,
    latent: Any = None,
    per: str = "sample",
    position_dim: Any = None,
    xs: Any = None,
    start: int = 0,
) -> Trace:
    """Run the recursion and record how far each update moves each stream of each sample, or of each position.

    Only scalars are kept, on the device, and they are transferred once, at the end. Each update runs as it does in
    training (with autograd on, its graph dropped at once): under no_grad some modules take another kernel and move by
    1e-4. The cell stays in its train or eval mode, and the random number generators are put back.

    A residual of exactly zero in bfloat16 is not evidence of a fixed point: the update may be below the last bit.
    `reevaluate=torch.float64` computes F(z_at) anew in that dtype.

    Cost:
        T cell evaluations, and up to `period` more to complete the cycle that starts at z_at (numbered on from T),
        `period` more in the wider dtype with `reevaluate`; holds period + 1 states and the graph of one update.
    Not recommended when:
        The recursion is compiled as a whole; this calls the cell update by update. Samples have lengths of their own:
        attach a `Recorder` to an estimator's call with `lengths=`, which has a trace for each length.

    Args:
        cell: Module called as cell(state, inputs, step) -> state, with `period` updates in a cycle (default 1).
        state: z_0, a tree of floating tensors, each (batch, ...), which are the streams; int, bool and None leaves are
            carried along. Of a coupled cell, z_t is recorded, not its copy.
        inputs: What each update reads beside the state.
        num_steps: Number of updates T.
        at: Take F(z) - z at z_at, 0 <= at <= T. Default T; or T - period where the cell fails beyond the end, as one
            that reads an input per update does: `Trace.at` says which. For a last-cycle gradient it is T - period.
        upcast: Narrowest dtype in which differences and norms are computed, float32 or wider.
        reevaluate: Floating dtype in which F is evaluated at z_at; default the cell's own.
        lags: Compare the ends of cycles up to so many cycles back, as `classify` needs; holds as many states.
        batch_dim: Where the batch is, as estimators are told.
        latent: Names of the leaves that are the latent state, such as ("z_H", "z_L"), or of parts of the state with all
            their leaves; others, such as accumulators and counters kept as floats, are carried along. None for all
            floating leaves.
        per: "position" for a sample of its own in each position, in streams (batch, positions, ...).
        position_dim: With per="position", which dimension of the streams that is, a tuple where there are several, as
            rows and columns; a mapping from streams to these where they differ. None for dimension 1.
        xs: An input per update, as estimators take it.
        start: Number of the first update, as estimators take it.

    Returns:
        The trace.

    Raises:
        TypeError: The cell is not a module, a leaf of the state can be neither judged nor carried, upcast is narrower
            than float32, the cell did not compute in `reevaluate`, or an optional argument is of the wrong type.
        ValueError: num_steps or at is out of range, the leaves differ in batch size, a stream is called "joint",
            the cell changes its state in place or its shape, or fails at an update beyond the end that the given `at`
            needs; batch_dim, latent or xs does not fit the state; or a stream has no positions, or not as many as
            another.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import record
        >>> from loopgrad.gradients import Stationary
        >>> trace = record(Stationary(lambda z, x: z / 2), torch.ones(1, 4), None, num_steps=3)
        >>> trace.update["state"][:, 0].tolist(), trace.joint.tolist()
        ([1.0, 0.5, 0.25], [0.125])
    """
    _check_arguments(cell, num_steps, num_steps if at is None else at)
    check_options(lags, upcast)
    check_per(per, position_dim)
    period = period_of(cell)
    ends = [num_steps, num_steps - period] if at is None else [at]
    with torch.inference_mode(False):  # there torch does not count what a cell writes
        state = tree.map_tensors(torch.clone, state)  # the caller's is left as it is
        inputs = tree.map_tensors(counted, inputs)
        xs = tree.map_tensors(counted, xs)
    own = undoing(cell)
    plain, state = state, state if own is None else own.couple(state)
    streams = Streams.checked(_visible(cell, state), latent)
    shown, batch_dims = streams.picked(_visible(cell, state)), _batch_dims(streams, plain, batch_dim)
    places = Places.of(per, streams.names, shown, batch_dims, position_dim)
    options = Options(xs, None, "last", start, None, None, batch_dim, num_steps)
    if not options.none:
        options.checked(plain)
        cell, inputs = options.around(cell, plain, state), options.steps(inputs, None, by_sample=True)
        batch_dim = options.dims(inputs, plain)
    cell, state, inputs = batch_first(cell, state, inputs, batch_dim, plain=plain)
    leaves, names = streams.leaves(_visible(cell, state)), streams.names

    def second(leaves: list[torch.Tensor]) -> list[torch.Tensor]:
        return [places.second(*pair) for pair in zip(names, leaves, strict=True)]

    course = Course(names, period, lags, upcast, places.axes)
    course.start(second(leaves))
    # states from which F may start or where it may have arrived
    kept = {0: state} if 0 in ends else {}
    with preserved_rng(), torch.enable_grad():
        for step in range(num_steps):
            state, touched = _advance(cell, state, inputs, step, streams)
            leaves = streams.leaves(_visible(cell, state))
            moved = zip(second(leaves), touched, strict=True)
            course.update([leaf if touch else None for leaf, touch in moved])
            if step + 1 in ends or step + 1 - period in ends:
                kept[step + 1] = state
        kept[num_steps] = state
        try:
            at = ends[0]
            begin, end = _cycle(cell, kept, inputs, at, num_steps, reevaluate, streams)
        except NoInput:
            if len(ends) == 1:
                raise
            at = ends[1]  # the cell has no input for an update beyond the end
            begin, end = _cycle(cell, kept, inputs, at, num_steps, reevaluate, streams)
    pairs = zip(second(end), second(begin), strict=True)
    residual = torch.stack([Distance(upcast, places.axes)(*pair) for pair in pairs]).cpu().double().numpy()
    map_dtype = {name: short(leaf.dtype) for name, leaf in zip(names, end, strict=True)}
    dtype = {name: short(leaf.dtype) for name, leaf in zip(names, leaves, strict=True)}
    (whole,) = course.episodes()
    found = dict(zip(names, residual, strict=True))
    return trace_of(course, whole, found, at, dtype, map_dtype, reevaluate is not None)


def _batch_dims(streams: Streams, plain: Any, batch_dim: Any) -> list[int]:
    """Return the dimension of the batch in each stream, as it was given."""
    batch = [0] * len(streams.floating)
    if not is_first(batch_dim):
        pairs = zip(tree.flatten(plain)[0], state_dims(plain, batch_dim), strict=True)
        batch = [dim or 0 for leaf, dim in pairs if is_floating(leaf)][: len(batch)]
    return streams.chosen(batch)


def _advance(cell: nn.Module, state: Any, inputs: Any, step: int, streams: Streams) -> tuple[Any, list[bool]]:
    """Run one update; return the new state without its graph, and which streams it touched."""
    state = tree.map_tensors(counted, state)
    before = streams.picked(_visible(cell, state))
    read = latent_leaves(state) if is_invertible(inside(cell)) else before
    versions, known = [version(leaf) for leaf in read], {id(leaf) for leaf in read}
    # containers of its own, and copies of what is carried along: the state may be run from once more
    own = tree.map_tensors(lambda leaf: leaf if id(leaf) in known else leaf.clone(), state)
    after = cell(own, inputs, step)
    new = streams.leaves(_visible(cell, after))
    if versions != [version(leaf) for leaf in read]:
        raise ValueError(
            f"the cell changes its state in place at step {step}, so the update cannot be measured: "
            "write z + f(z) instead of z.add_(f(z))"
        )
    check_shapes(new, before, streams.names)
    touched = [leaf is not old for leaf, old in zip(new, before, strict=True)]
    # an untouched leaf stays the same object, so that the next update is compared with it rightly
    return tree.map_tensors(lambda leaf: leaf if id(leaf) in known else leaf.detach(), after), touched


def _visible(cell: nn.Module, state: Any) -> Any:
    """Return what is recorded of a state: of a coupled cell's the copy that its next update reads."""
    own = undoing(inside(cell))
    return state if own is None else own.current(state)


def _cycle(
    cell: nn.Module,
    kept: dict[int, Any],
    inputs: Any,
    at: int,
    num_steps: int,
    dtype: torch.dtype | None,
    streams: Streams,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the streams at z_at and after the cycle that starts there, evaluated in `dtype` if one is given."""
    start, period = streams.leaves(_visible(cell, kept[at])), period_of(cell)
    if dtype is not None:
        with evaluated_in(cell, dtype):
            return _cycle_in(cell, cast(kept[at], dtype), cast(inputs, dtype), at, num_steps, dtype, streams)
    state = kept[min(at + period, num_steps)]
    for step in range(num_steps, at + period):
        state = _beyond(cell, state, inputs, step, at, num_steps, streams)
    return start, streams.leaves(_visible(cell, state))


def _cycle_in(
    cell: nn.Module, state: Any, inputs: Any, at: int, num_steps: int, dtype: torch.dtype, streams: Streams
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    start = streams.leaves(_visible(cell, state))
    device = start[0].device.type
    for step in range(at, at + period_of(cell)):
        # autocast would narrow the products of float32, which may be the wider dtype here
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            state = _beyond(cell, state, inputs, step, at, num_steps, streams)
    end = streams.leaves(_visible(cell, state))
    for name, first, last in zip(streams.names, start, end, strict=True):
        if last.dtype != first.dtype:
            raise TypeError(
                f"reevaluate={dtype}: the cell returned {name} in {last.dtype}, so it computes in a dtype of its own; "
                f"let the cell follow the dtype of its state"
            )
    return start, end


def _beyond(cell: nn.Module, state: Any, inputs: Any, step: int, at: int, num_steps: int, streams: Streams) -> Any:
    """Return the state after an update of the cycle that starts at z_at, which may lie beyond the recursion's end."""
    try:
        return _advance(cell, state, inputs, step, streams)[0]
    except (LookupError, RuntimeError, ValueError) as error:
        last = num_steps - period_of(cell)
        if step < num_steps or last < 0 or isinstance(error, torch.OutOfMemoryError):
            raise
        raise NoInput(
            f"at={at} needs the update of step={step}, beyond num_steps={num_steps}, and there the cell fails "
            f"({type(error).__name__}: {error}): give at={last} or less, or inputs for that update too"
        ) from error


def _check_arguments(cell: Any, num_steps: Any, at: Any) -> None:
    check_cell(cell)
    if not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps must be the number of updates, an int of at least 0, got {num_steps!r}")
    if not isinstance(at, int) or not 0 <= at <= num_steps:
        raise ValueError(f"at must be a number of updates between 0 and num_steps={num_steps}, got {at!r}")

"""The relative residuals of a trace as figures show them: one stream or all jointly, per update or per cycle."""

import numpy as np

from loopgrad.analysis.summaries import Array
from loopgrad.analysis.trace import Trace, over, streams_of

KINDS = {"cycle": "relative residual per cycle", "update": "relative residual per update"}


def relative_residuals(trace: Trace, stream: str, kind: str) -> Array:
    """Return relative residuals, (T, B), row t that of the state after t + 1 updates.

    Of a stream, or of "joint", the root of the sum of squares over streams; by "cycle", compared with the state a cycle
    before, or "update". They are nan where a stream was not updated, where there is no cycle before, where the state is
    nan, and all along where the sample diverged so far that it has no scale.

    Raises:
        ValueError: The stream or the kind is unknown, or the trace holds no update or no sample.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {list(KINDS)}")
    streams = streams_of(trace, stream)
    if not trace.num_steps or not trace.scale[trace.streams[0]].size:
        raise ValueError("trace holds no update of any sample")
    moves = trace.cycle if kind == "cycle" else trace.update
    if stream != "joint":
        return _relative(moves[stream], trace.scale[stream])
    # a stream that an update hands on has not moved
    still = [np.isnan(moves[s]) & ~np.isnan(trace.norm[s][1:]) & (kind == "update") for s in streams]
    parts = [np.where(rests, 0.0, moves[s]) for s, rests in zip(streams, still, strict=True)]
    scale = np.hypot.reduce([trace.scale[s] for s in streams])
    return _relative(np.hypot.reduce(parts), scale)


def _relative(moves: Array, scale: Array) -> Array:
    return np.where(np.isfinite(scale), over(moves, scale), np.nan)  # a move over infinity is no zero

"""What was measured of one rollout: residuals and norms of every stream, per update and per sample.

Three residuals that must not be mixed: of one update, of one stream a cycle apart, and of the joint cycle map F at the
point where the gradient is taken; the fixed-point premise of implicit gradients is about the last.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loopgrad.analysis import trace_files
from loopgrad.analysis.course import Course, Episodes
from loopgrad.analysis.summaries import BAND, Array, band, quantiles, screen
from loopgrad.analysis.verdicts import FLOORS


@dataclass(frozen=True)
class Trace:
    """Residuals and norms of one rollout of T updates over B samples, float64 numpy arrays, in units of the state.

    A stream is a leaf of the state, named "z_H" in a dict, "0" in a tuple, "a.b" nested, "state" if it is all there is.
    Recorded with per="position", each position of a row of the batch is a sample, and norms are those of its numbers.

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
        row: Row of the batch that each sample was, int (B,).
        begin: Updates that its row had made before the sample's first one, int (B,); 0 but in a batch of a `Recorder`
            whose rows take new samples.
        position: Position that each sample was in its row, int (B,); None where whole rows are samples.
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
    row: Array
    begin: Array
    position: Array | None = None

    def __repr__(self) -> str:
        """Say what was recorded, and how large the last residuals are."""
        samples = f"{self.row.size} {'samples' if self.position is None else 'positions'}"
        title = f"Trace: {self.num_steps} updates, period {self.period}, {samples}, lags={self.lags}"
        header = ["stream", "dtype", "last update, relative", f"||F(z) - z|| at z_{self.at}, relative"]
        rows = []
        found_of = self.quantiles(BAND)
        for stream in ("joint", *self.streams):
            found = found_of[stream]
            ran, mapped = (dtype.get(stream, "") for dtype in (self.dtype, self.map_dtype))
            moved = band(found["update_relative"]) if "update_relative" in found else ""
            rows.append([stream, ran if ran == mapped else f"{ran}, F in {mapped}", moved, band(found["map_relative"])])
        return screen(f"{title}; median [5 %, 95 %]", header, rows)

    def quantiles(self, levels: Sequence[float] = BAND) -> dict[str, dict[str, list[float | None]]]:
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
            last = np.flatnonzero(moved.any(axis=1))[-1:]
            result[stream] = {
                "update": quantiles(self.update[stream][last], levels),
                "update_relative": quantiles(self.relative[stream][last], levels),
                "map": quantiles(self.map[stream], levels),
                "map_relative": quantiles(self.map_relative[stream], levels),
            }
        result["joint"] = {"map": quantiles(self.joint, levels), "map_relative": quantiles(self.joint_relative, levels)}
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file of exactly this name, in numpy's npz format, replacing it atomically.

        Args:
            path: Where to; no ".npz" is added.
        """
        trace_files.write(path, {name: value for name, value in vars(self).items() if value is not None})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Read a trace that `save` wrote; every number comes back to the last bit.

        Args:
            path: The file.

        Raises:
            ValueError: The file is not one of `save`.

        Example:
            >>> import tempfile, torch
            >>> from loopgrad.analysis import Trace, record
            >>> from loopgrad.gradients import Stationary
            >>> trace = record(Stationary(lambda z, x: z / 2), torch.ones(1, 4), None, num_steps=3)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     trace.save(f"{folder}/halving.npz")
            ...     print(Trace.load(f"{folder}/halving.npz").norm["state"][:, 0].tolist())
            [2.0, 1.0, 0.5, 0.25]
        """
        return cls(**trace_files.read(path))

    to_pandas, to_xarray = trace_files.to_pandas, trace_files.to_xarray


def streams_of(trace: Trace, name: str) -> tuple[str, ...]:
    """Return the streams that a name stands for, all of them for "joint"; raise ValueError if it is none."""
    if name not in (*trace.streams, "joint"):
        raise ValueError(f"stream {name!r} is not one of {[*trace.streams, 'joint']}")
    return trace.streams if name == "joint" else (name,)


def floor_of(trace: Trace, stream: str) -> float:
    """Return what rounding leaves of a relative residual, by the widest floor of the stream's dtypes; 0 if unknown."""
    return max(FLOORS.get(trace.dtype[s], 0.0) for s in streams_of(trace, stream))


def trace_of(
    course: Course,
    episodes: Episodes,
    residual: dict[str, Array],
    at: int,
    dtype: dict[str, str],
    map_dtype: dict[str, str],
    reevaluated: bool,
) -> Trace:
    """Return the trace of episodes of one length, given ||F(z) - z|| of each stream, (B,), at z_at."""
    names, lags, found = course.names, course.lags, episodes.found
    norm, update, cycle = ({name: found[kind, name] for name in names} for kind in ("norm", "update", "cycle"))
    scale = {name: _scale(norm[name]) for name in names}
    joint = np.hypot.reduce(list(residual.values()))
    joint_scale = np.hypot.reduce(list(scale.values()))
    return Trace(
        streams=names,
        num_steps=episodes.num_steps,
        period=course.period,
        at=at,
        dtype=dtype,
        map_dtype=map_dtype,
        norm=norm,
        scale=scale,
        update=update,
        relative={name: over(update[name], scale[name]) for name in names},
        cycle=cycle,
        map=residual,
        map_relative={name: over(residual[name], scale[name]) for name in names},
        joint=joint,
        joint_relative=over(joint, joint_scale),
        lags=lags,
        recurrence={n: np.stack([found[f"lag {p}", n] for p in range(1, lags + 1)]) for n in names if lags},
        turning={n: found["turning", n] for n in names if lags},
        reevaluated=reevaluated,
        row=episodes.row,
        begin=episodes.begin,
        position=episodes.position,
    )


def _scale(norm: Array) -> Array:
    with np.errstate(invalid="ignore"):
        q90 = np.quantile(norm, 0.9, axis=0)
    return np.where(q90 == 0, norm.max(axis=0), q90)


def over(residual: Array, scale: Array) -> Array:
    """Divide; a stream that never left zero has not moved: 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((scale == 0) & (residual == 0), 0.0, residual / scale)

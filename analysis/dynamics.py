"""A verdict per sample: does the recursion converge, drift, cycle, wander or diverge, and by which numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopgrad.analysis.summaries import Array
from loopgrad.analysis.trace import Trace, floor_of, streams_of
from loopgrad.analysis.trends import Trend, met_again, outward, straight
from loopgrad.analysis.verdicts import Thresholds, Verdicts

_UNKNOWN = {"period": 0, "at_floor": False} | dict.fromkeys(
    ("rate", "exponent", "distance", "straightness", "residual"), np.nan
)


def classify(
    trace: Trace,
    thresholds: Thresholds | None = None,
    lyapunov: Array | Mapping[str, Array] | None = None,
    floor: float | None = None,
    streams: Sequence[str] | None = None,
    radius: Array | Mapping[str, Array] | None = None,
) -> dict[str, Verdicts]:
    """Label every sample of every stream, and of all streams jointly; every position of a trace per position.

    Judged are the states at the ends of cycles, so that a stream that rests within a cycle is compared with itself a
    cycle before. In this order: not finite, or a residual that grows: "diverging". Residual within max(rtol, floor):
    "converged" if at most 10 rtol are left to go or it hovers within them, "converging" if it falls; else, or if the
    norm goes on, "drift". A falling residual whose steps add up to something finite, or turn back on themselves:
    "converging", else "drift". With a positive Lyapunov exponent no residual counts as falling, nor as growing unless
    it does so as fast. A state p cycles back met again: "cycle" of period p. Straight motion: "drift". The rest is
    bounded and does not settle: "chaotic", "quasiperiodic" or "orbit" by the Lyapunov exponent, "orbit" where none is
    given. A residual that rounding may have stopped, in a dtype that cannot resolve rtol or against a re-evaluation in
    a wider one: "stalled".

    With the spectral radius rho of the cycle, what is left to go is residual / (1 - rho), and it is floor / (1 - rho)
    where the residual could be as large as the floor unseen: a run that rounding stopped has "converged" if that is at
    most 10 rtol, and is "stalled" if it is more, also in float32.

    Args:
        trace: Trace of `record(..., lags=16)`; re-evaluate it in float64 before you print "converged".
        thresholds: Defaults are those of `Thresholds`.
        lyapunov: Largest exponents per sample, (B,), in nats per cycle, as `lyapunov` of this package finds them; of
            the joint map, or by stream.
        floor: Relative residual that rounding or noise leaves; default by the dtype of the recursion.
        streams: Names; default all, then "joint".
        radius: Spectral radii per sample, (B,), of a cycle at the last state, as `spectral_radius` of this package
            finds them, nan where unknown; of the joint map, or by stream.

    Returns:
        Name -> verdicts.

    Not recommended when:
        A run is shorter than some 16 cycles: all is "too short". Periods beyond the trace's lags and
        long transients cannot be distinguished from an orbit.

    Raises:
        ValueError: The trace has no lags, a stream is unknown, or lyapunov or radius are not one per sample.
    """
    if trace.lags < 2:
        raise ValueError("the trace holds no recurrences: record(..., lags=16) keeps them, 2 is the least")
    thresholds = thresholds or Thresholds()
    names = [*trace.streams, "joint"] if streams is None else list(streams)
    result = {}
    for name in names:
        together = streams_of(trace, name)
        cycles = trace.recurrence[together[0]].shape[1]
        norm = np.hypot.reduce([trace.norm[s][:: trace.period][: cycles + 1] for s in together])  # (C + 1, B)
        lagged = np.hypot.reduce([trace.recurrence[s] for s in together])  # (L, C, B)
        scale = np.hypot.reduce([trace.scale[s] for s in together])  # (B,)
        mapped = trace.joint_relative if name == "joint" else trace.map_relative[name]
        mapped = mapped if trace.reevaluated else [None] * scale.size
        turning = np.sum([trace.turning[s] for s in together], axis=0)  # (C, B)
        exponents, radii = _given(lyapunov, "lyapunov", name, scale.size), _given(radius, "radius", name, scale.size)
        least = floor_of(trace, name) if floor is None else floor
        columns = zip(norm.T, lagged.transpose(2, 0, 1), turning.T, scale, mapped, exponents, radii, strict=True)
        rows = [_judge(_Sample(*values), thresholds, least) for values in columns]
        columns = {field: np.array([row[field] for row in rows]) for field in ("label", *_UNKNOWN)}
        settings = {"lyapunov": exponents, "radius": radii, "floor": least, "cycles": cycles, "thresholds": thresholds}
        if trace.position is not None:
            settings |= {"row": trace.row, "position": trace.position}
        result[name] = Verdicts(stream=name, **columns, **settings)
    return result


def sweep_thresholds(
    trace: Trace, factors: Sequence[float] = (0.3, 1.0, 3.0), **options: Any
) -> dict[float, dict[str, Verdicts]]:
    """Classify with all thresholds multiplied by each factor: labels that change are not to be leant on.

    Args:
        trace: Trace of `record(..., lags=16)`.
        factors: Multiples of rtol, recurrence and exponent.
        options: Further arguments of `classify`.
    """
    base = options.pop("thresholds", None) or Thresholds()
    return {factor: classify(trace, base.scaled(factor), **options) for factor in factors}


class _Sample(NamedTuple):
    """What is known of one sample; `mapped` is the residual of the map re-evaluated in a wider dtype."""

    norm: Array
    lagged: Array
    turning: Array
    scale: float
    mapped: float | None
    exponent: float
    radius: float


def _given(values: Array | Mapping[str, Array] | None, what: str, name: str, size: int) -> Array:
    """Return what was given of a stream, nan where nothing was."""
    own = values.get(name) if isinstance(values, Mapping) else values
    if own is None:
        return np.full(size, np.nan)
    found = np.asarray(own, dtype=float)
    if found.shape != (size,):
        raise ValueError(f"{what} of {name} has shape {found.shape}, and the trace has {size} samples to be labelled")
    return found


def _judge(sample: _Sample, limits: Thresholds, floor: float) -> dict[str, Any]:
    """Return one sample's numbers and label."""
    norm, lagged, turning, scale, mapped, exponent, radius = sample
    step = lagged[0]
    cycles = step.size
    half = cycles // 2
    tail, times = step[half:], np.arange(half + 1, cycles + 1)
    found: dict[str, Any] = dict(_UNKNOWN)
    if not (np.isfinite(step).all() and np.isfinite(norm).all()):
        return {**found, "label": "diverging", "residual": np.inf}
    if tail.size < limits.min_cycles:
        return {**found, "label": "too short"}
    native = float(np.median(step[-max(1, cycles // 4) :])) / scale if scale else 0.0
    outside = native if mapped is None else float(mapped)
    residual = max(native, outside)
    trend = Trend.of(times, tail)
    falling, growing = trend.goes(-1, limits), trend.goes(1, limits)
    if exponent > limits.exponent:  # nearby states part: a trend of bounded motion is none, only growth as fast is
        falling, growing = False, growing and trend.change > 0.5 * exponent * tail.size
    rate = trend.rate
    lag = min(len(lagged), cycles)
    path = sum(step[-lag:])
    straightness = float(lagged[lag - 1, -1] / path) if path > 0 else 0.0
    at_floor = residual <= floor
    known, ahead, shrinks = not np.isnan(radius), residual, rate  # ahead: the next step
    if known:
        ahead, shrinks = max(residual, floor) if mapped is None else outside, radius
    distance = ahead / (1 - shrinks) if shrinks < 1 else np.nan
    arrived = distance <= 10 * limits.rtol or at_floor and not known
    adds_up = trend.adds_up or straightness < limits.turning  # of steps that turn back, sizes need not add up
    found |= {"residual": residual, "rate": rate, "exponent": trend.exponent, "distance": distance}
    found |= {"straightness": straightness, "at_floor": at_floor}

    def label() -> str:
        if growing and residual > floor and not (residual <= limits.rtol and straightness <= limits.straight):
            if outward(trend, norm[half:], tail, turning[half:], straightness):
                return "diverging"
        stopped = native <= max(floor, limits.rtol * 1e-3)
        blind = floor > limits.rtol and mapped is None or known and native <= floor
        if stopped and (blind or outside > limits.rtol) and not (known and arrived):
            return "stalled"
        if residual <= max(limits.rtol, floor):
            if falling and adds_up and not at_floor and distance > 10 * limits.rtol:
                return "converging"
            if straight(norm[half:]) and straightness > limits.straight and lagged[lag - 1, -1] > 2 * tail[-1]:
                return "drift"
            near = float(lagged[lag - 1, half:].max()) <= 10 * limits.rtol * scale
            hovers = not falling and near and straightness <= limits.straight
            if arrived or hovers:
                return "converged"
            return "converging" if falling and adds_up else "drift"
        if not falling and not exponent > limits.exponent and (period := met_again(lagged, half, scale, limits, floor)):
            found["period"] = period
            return "cycle"
        if falling:
            return "converging" if adds_up else "drift"
        if straightness > limits.straight:
            return "drift"
        if np.isnan(exponent) or exponent < -limits.exponent:
            return "orbit"
        return "chaotic" if exponent > limits.exponent else "quasiperiodic"

    found["label"] = label()
    return found

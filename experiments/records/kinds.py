"""What the record of a run, and that of an analysis, holds."""

from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

Number = float | None  # what is not finite is null in a file
Quantiles = list[Number]  # over samples, at LEVELS
LEVELS = (0.05, 0.5, 0.95)
OUTCOMES = ("all", "solved", "unsolved")


class Made(TypedDict):
    """What repeats a measurement."""

    commit: str
    versions: dict[str, str]
    date: str
    command: str
    device: str


class Curve(TypedDict):
    """A training run: the loss of every step, and the held-out accuracy at some steps."""

    step: list[int]
    exact_accuracy: list[float]
    train_loss: list[Number]


class _Beside(TypedDict, total=False):
    config: dict[str, Any]
    train_seconds: Number
    gradient_norm_ratio: Number
    gradient_groups: dict[str, dict[str, Number]]
    verdicts: dict[str, Any] | None  # of implicit estimators: mean_trusted, and what each step of training said


class RunRecord(Made, _Beside):
    """One run of a comparison: how well it learnt, and what its estimator costs and is worth at the last weights.

    Bytes, evaluations, vjps and FLOPs are of one training step. `residuals` holds, per stream and of "joint", quantiles
    of the last update and of the cycle map where the gradient is taken; `residual_curve` holds medians by update.
    """

    estimator: str
    task: str
    model: str
    seed: int
    train_steps: int
    loss: Number
    exact_accuracy: Number
    token_accuracy: Number
    seconds_per_step: Number
    time_ratio_to_bptt: Number
    saved_bytes: Number
    peak_bytes: Number
    cell_evaluations: Number
    vjps: Number
    flops: Number
    gradient_cosine: Number
    gradient_relative_error: Number
    residuals: dict[str, Any]
    residual_curve: dict[str, Quantiles]
    kind: str
    curve: Curve
    probe: dict[str, int]


class StreamRecord(TypedDict):
    """What one stream, or "joint", does down to one depth; quantiles are of "all", "solved" and "unsolved" samples."""

    labels: list[int]
    residual: dict[str, Quantiles]
    reevaluated: dict[str, Quantiles] | None
    rate: dict[str, Quantiles]
    sweep: dict[str, dict[str, int]]


class DepthRecord(TypedDict):
    """The recursion followed to one depth; `solved` is 0 or 1 per sample."""

    name: str
    cycles: int
    updates: int
    solved: list[int]
    floor: Any
    thresholds: dict[str, float]
    streams: dict[str, StreamRecord]


class _Examined(TypedDict, total=False):
    segments: int
    cycles_per_segment: int
    period: int
    sha256: str
    saved_bytes: int | None
    spectrum: dict[str, Any]
    exponents: dict[str, Any]
    gaps: list[dict[str, Any]]
    search: dict[str, Any]
    memory: dict[str, dict[str, int]]  # estimator -> updates -> bytes kept for backward
    figures: list[str]


class WeightsRecord(Made, _Examined):
    """What an analysis finds on one set of trained weights: two depths, and what else was asked for."""

    name: str
    group: str
    estimator: str
    seed: int | None
    step: int | None
    samples: int
    dtype: dict[str, str]
    depths: list[DepthRecord]
    config: dict[str, Any]


def fields_of(kind: type) -> dict[str, tuple[type, ...]]:
    """Return the names that a record of some kind must hold, with the types that their values may have."""
    hints, required = get_type_hints(kind), kind.__required_keys__  # pyright: ignore[reportAttributeAccessIssue]
    return {name: tuple(_types(hint)) for name, hint in hints.items() if name in required}


def _types(hint: Any) -> set[type]:
    if is_typeddict(hint):
        return {dict}
    origin = get_origin(hint)
    if origin in (dict, list):
        return {origin}
    if parts := get_args(hint):
        return set().union(*(_types(part) for part in parts))
    return {int, float} if hint is float else {hint}

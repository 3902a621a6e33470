"""What the record of a run, and that of an analysis, holds: with limits, for records are passed from hand to hand."""

from typing import Annotated, Any, TypedDict

from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records.schema import Beside, Between, Matches

Number = float | None  # what is not finite is null in a file
Count = Annotated[int, Between(0)]
Share = Annotated[float, Between(0, 1)]
Name = Annotated[str, Between(1, 600)]  # two names of files, and more
Words = Annotated[str, Between(0, 1000)]
MOST_LINES, LONGEST_LINE = 1000, 1000  # of an answer as its task shows it
Line = Annotated[str, Between(0, LONGEST_LINE)]
LEVELS = (0.05, 0.5, 0.95)
Quantiles = Annotated[list[Number], Between(len(LEVELS), len(LEVELS))]  # over samples, at LEVELS
OUTCOMES = ("all", "solved", "unsolved")
Label = Annotated[int, Between(0, len(LABELS) - 1)]  # an index into LABELS
Digits = Annotated[str, Matches(f"[0-{len(LABELS) - 1}]{{1,100000}}", "must be digits, a verdict each")]
Updates = Annotated[str, Matches("[1-9][0-9]{0,8}", "must be a number of updates")]
Tried = Annotated[str, Matches("[1-9][0-9]{0,8}", "must be a number of answers")]
Figure = Annotated[
    str,
    Between(1, 300),
    Matches(r"figures/[^/\\]+\.png", "must be the path of a PNG in figures/"),
]


class Made(TypedDict):
    """What repeats a measurement."""

    commit: Words
    versions: Annotated[dict[Name, Words], Between(0, 100)]
    date: Words
    command: Annotated[str, Between(0, 2_000_000)]
    device: Words


class _Curves(TypedDict, total=False):
    cycles: list[Number]
    residual: list[Number]
    converged: list[Share]
    token_accuracy: list[Share]
    match_accuracy: list[Share]


class Curve(_Curves):
    """A training run: the loss of every step, and the held-out accuracy at some steps.

    `cycles` is the mean number of cycles of each step's samples, where that was drawn or adapted. `residual`, the
    median over some held-out samples, and the share of them that converged go with `step`.
    """

    step: Annotated[list[Count], Between(0, 1_000_000)]
    exact_accuracy: list[Share]
    train_loss: list[Number]


class _Probed(TypedDict, total=False):
    input_per_update: bool


class Probe(_Probed):
    """What the probes of a run were taken on, and whether each update there reads an input of its own."""

    samples: Count
    segment: Count
    timing_repeats: Count


class Gate(TypedDict):
    """What implicit estimators said in training; beside it, a list per step of everything else that they said."""

    mean_trusted: Number


class Where(TypedDict, total=False):
    """Of the residuals of a run: the update where the gradient is taken, the quantiles' levels, the streams' dtypes."""

    at: int
    levels: list[float]
    dtype: Any


class VotesRecord(TypedDict):
    """Of ARC: shares solved without votes, and by votes over augmentations, by number of answers tried."""

    augmentations: Count
    untransformed: Share
    pass_at: Annotated[dict[Tried, Share], Between(1, 100)]
    whole_at: Annotated[dict[Tried, Share], Between(1, 100)]


Overrides = Annotated[list[Annotated[str, Between(1, 1000)]], Between(0, 1000)]


class Group(TypedDict):
    """Held-out samples that are counted together, such as those of as many hops."""

    samples: Count
    exact_accuracy: Share


class _Frame(TypedDict, total=False):
    # without them the answer is that of the frame before
    lines: Annotated[list[Line], Between(0, MOST_LINES)]
    marked: Annotated[list[Annotated[list[Count], Between(3, 3)]], Between(0, MOST_LINES)]


class Frame(_Frame):
    """A sample after a segment: its answer as the task shows it, and where wrong cells stand: line, first, last."""

    solved: Annotated[int, Between(0, 1)]
    halts: Annotated[int, Between(0, 1)]
    wrong: Count


class _Followed(TypedDict, total=False):
    residuals: Annotated[list[Number], Between(0, 1_000_000)]  # of each cycle, over all streams
    verdicts: Annotated[dict[Name, Annotated[dict[Name, Label], Between(0, 100)]], Between(0, 10)]  # by depth, stream


class FollowedRecord(_Followed):
    """A held-out sample followed from segment to segment; `scored` counts the cells that could be wrong."""

    sample: Count
    scored: Count
    right: Annotated[list[Line], Between(0, MOST_LINES)]
    frames: Annotated[list[Frame], Between(1, 10_000)]


Films = Annotated[list[FollowedRecord], Between(0, 100)]


class _Beside(TypedDict, total=False):
    followed: Films
    config: dict[str, Any]
    match_accuracy: Share | None
    overrides: Overrides  # of the job, as typed; without those of Hydra itself
    parameters: Count  # trained ones
    frozen_parameters: Count  # of an encoder that is not trained
    groups: Annotated[dict[Name, Group], Between(1, 1000)]
    train_seconds: Number
    gradient_norm_ratio: Number
    gradient_groups: dict[str, dict[str, Number]]
    verdicts: Annotated[dict[str, list[Any]], Beside(Gate)] | None  # of implicit estimators
    votes: VotesRecord  # of ARC, where asked for


class RunRecord(Made, _Beside):
    """One run of a comparison: how well it learnt, and what its estimator costs and is worth at the last weights.

    `exact_accuracy` is by the task's checker, `match_accuracy` the share of samples equal to their label in every
    scored token. Bytes, evaluations, vjps and FLOPs are of one training step. `residuals` holds, per stream and of
    "joint", quantiles of the last update and of the cycle map where the gradient is taken; `residual_curve` holds
    medians by update.
    """

    estimator: Name
    task: Name
    model: Name
    seed: int
    train_steps: Count
    loss: Number
    exact_accuracy: Share | None
    token_accuracy: Share | None
    seconds_per_step: Number
    time_ratio_to_bptt: Number
    saved_bytes: Annotated[float, Between(0)] | None
    peak_bytes: Annotated[float, Between(0)] | None
    cell_evaluations: Number
    vjps: Number
    flops: Number
    gradient_cosine: Number
    gradient_relative_error: Number
    residuals: Annotated[dict[Name, dict[str, Quantiles]], Beside(Where)]
    residual_curve: Annotated[dict[Name, Annotated[list[Number], Between(0, 100_000)]], Between(0, 60)]
    kind: Words
    curve: Curve
    probe: Probe


class Pooled(TypedDict):
    """Quantiles over all samples, beside which are those over the solved and over the unsolved where there are any."""

    all: Quantiles


ByOutcome = Annotated[dict[str, Quantiles], Beside(Pooled)]


class StreamRecord(TypedDict):
    """What one stream, or "joint", does down to one depth; quantiles are of "all", "solved" and "unsolved" samples."""

    labels: list[Label]
    residual: ByOutcome
    reevaluated: ByOutcome | None
    rate: ByOutcome
    sweep: Annotated[dict[Name, dict[Name, Count]], Between(1, 100)]


class Streams(TypedDict):
    """All streams jointly, which each record has beside the single ones."""

    joint: StreamRecord


class _OfPositions(TypedDict, total=False):
    # of each stream a text per sample with a digit per position, an index into LABELS
    positions: Annotated[dict[Name, Annotated[list[Digits], Between(1)]], Between(1, 100)]


class DepthRecord(_OfPositions):
    """The recursion followed to one depth; `solved` is 0 or 1 per sample."""

    name: Name
    cycles: Count
    updates: Count
    solved: list[Annotated[int, Between(0, 1)]]
    floor: Any
    thresholds: Annotated[dict[Name, Number], Between(0, 100)]
    streams: Annotated[dict[Name, StreamRecord], Beside(Streams), Between(1, 100)]


class Spectrum(TypedDict):
    """Spectral radii of some samples."""

    radius: list[Number]
    solved: list[bool]


class Exponents(TypedDict):
    """Lyapunov exponents of some samples."""

    mean: list[Number]
    solved: list[bool]


class Search(TypedDict):
    """Whether a fixed point was found near the end of each of some samples, and to how many ends its starts led."""

    found: list[bool]
    clusters: list[Count]


class Gap(TypedDict):
    """One gradient beside that of BPTT; the rest of its row is not shown."""

    samples: Name
    count: Count
    estimator: Name
    cosine: Number
    relative_error: Number
    norm_ratio: Number
    residual_q50: Number
    radius_q50: Number


class _Examined(TypedDict, total=False):
    followed: Films
    segments: int
    cycles_per_segment: int
    period: int
    sha256: str
    saved_bytes: Count | None
    spectrum: Spectrum
    exponents: Exponents
    gaps: Annotated[list[Gap], Between(0, 1000)]
    search: Search
    # estimator -> updates -> bytes kept for backward
    memory: Annotated[dict[Name, Annotated[dict[Updates, Count], Between(2, 100)]], Between(1, 100)]
    figures: Annotated[list[Figure], Between(0, 100)]


class ExaminedRecord(_Examined):
    """What an analysis finds on one set of trained weights: two depths, and what else was asked for."""

    name: Name
    group: Annotated[str, Between(0, 600)]
    estimator: Annotated[str, Between(0, 600)]
    seed: int | None
    step: Count | None
    samples: Annotated[int, Between(1)]
    dtype: dict[Name, Words]
    depths: Annotated[list[DepthRecord], Between(2, 2)]


class WeightsRecord(Made, ExaminedRecord):
    """The same with what repeats it."""

    config: dict[str, Any]

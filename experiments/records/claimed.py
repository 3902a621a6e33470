"""What the record of a claim holds: what was claimed, what was trained, and what came out."""

from typing import Annotated, TypedDict

from loopgrad.experiments.records.kinds import Count, Made, Name, Number, Words
from loopgrad.experiments.records.schema import Between

Text = Annotated[str, Between(1, 4000)]
Overrides = Annotated[list[Words], Between(0, 200)]


class _Difference(TypedDict, total=False):
    less_at: Name | None
    share: float
    by: float
    at: Name


class DifferenceRecord(_Difference):
    """A difference that a claim says is there; see `loopgrad.experiments.claims.Contrast`."""

    says: Text
    more: Name
    less: Name | None


class ScoreCurve(TypedDict):
    """Held-out accuracy at some steps of a training."""

    step: Annotated[list[Count], Between(1, 1_000_000)]
    exact_accuracy: list[Annotated[float, Between(0, 1)]]
    token_accuracy: list[Annotated[float, Between(0, 1)]]


class TrainedRecord(TypedDict):
    """One training of a claim: what its weights do, and what an update of them cost."""

    condition: Name
    seed: int
    train_steps: Annotated[int, Between(1)]
    parameters: Count
    readings: Annotated[dict[Name, Number], Between(1, 1000)]
    saved_bytes: Number
    peak_bytes: Number
    flops: Number
    train_seconds: Number
    curve: ScoreCurve
    overrides: Overrides


class ClaimRecord(Made):
    """A claim and the trainings that test it."""

    claim: Name
    size: Name
    title: Text
    statement: Text
    sources: Annotated[list[Name], Between(0, 50)]
    published: Text
    change: Text
    equal: Annotated[str, Between(0, 4000)]
    figure: Name
    contrasts: Annotated[dict[Name, DifferenceRecord], Between(1, 50)]
    every: Overrides
    trainings: Annotated[list[TrainedRecord], Between(1, 5000)]

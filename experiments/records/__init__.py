"""Records: what they hold, and how they are written and read."""

from loopgrad.experiments.records.claimed import ClaimRecord, DifferenceRecord, TrainedRecord
from loopgrad.experiments.records.kinds import (
    LEVELS,
    OUTCOMES,
    DepthRecord,
    ExaminedRecord,
    FollowedRecord,
    RunRecord,
    StreamRecord,
    WeightsRecord,
)
from loopgrad.experiments.records.lines import (
    differences,
    first,
    line,
    read,
    read_log,
    replace_text,
    slug,
    write,
)

__all__ = [
    "LEVELS",
    "OUTCOMES",
    "ClaimRecord",
    "DepthRecord",
    "DifferenceRecord",
    "ExaminedRecord",
    "FollowedRecord",
    "RunRecord",
    "StreamRecord",
    "TrainedRecord",
    "WeightsRecord",
    "differences",
    "first",
    "line",
    "read",
    "read_log",
    "replace_text",
    "slug",
    "write",
]

"""What a file may name: the classes of this package that a stored configuration is made of, and nothing else.

A name in a file is looked up here. It is never imported, so a file cannot say what code runs.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from loopgrad.experiments.tasks import (
    Arc,
    Babi,
    Clutrr,
    Copy,
    DigitSudoku,
    LastSum,
    Maze,
    ReasoningGym,
    RepeatCopy,
    RollingSum,
    Sorting,
    Sudoku,
    SumBySteps,
    Text,
)
from loopgrad.experiments.trainer import (
    AdamATan2Rule,
    AdamWRule,
    Constant,
    Cosine,
    Linear,
    MuonRule,
    SignSGDRule,
    SyntheticGradients,
    Trainer,
)
from loopgrad.gradients import CheckpointedBPTT, CompressedBPTT, DepthDistribution
from loopgrad.models import (
    ACT,
    GRU,
    HRM,
    LSTM,
    TRM,
    FeedForward,
    FixedSegments,
    LatentLinear,
    LatentLoop,
    LatentMLP,
    LatentStack,
    LatentTRM,
    LoopedTransformer,
    NeuralTuringMachine,
    QHalt,
    QLearning,
    ResidualHalt,
)

Classes = Mapping[str, type]

OWN: Mapping[str, Classes] = {
    "task": {
        "loopgrad.experiments.tasks.Arc": Arc,
        "loopgrad.experiments.tasks.Babi": Babi,
        "loopgrad.experiments.tasks.Clutrr": Clutrr,
        "loopgrad.experiments.tasks.Copy": Copy,
        "loopgrad.experiments.tasks.DigitSudoku": DigitSudoku,
        "loopgrad.experiments.tasks.LastSum": LastSum,
        "loopgrad.experiments.tasks.Maze": Maze,
        "loopgrad.experiments.tasks.ReasoningGym": ReasoningGym,
        "loopgrad.experiments.tasks.RepeatCopy": RepeatCopy,
        "loopgrad.experiments.tasks.RollingSum": RollingSum,
        "loopgrad.experiments.tasks.Sorting": Sorting,
        "loopgrad.experiments.tasks.Sudoku": Sudoku,
        "loopgrad.experiments.tasks.SumBySteps": SumBySteps,
        "loopgrad.experiments.tasks.Text": Text,
    },
    "model": {
        "loopgrad.models.FeedForward": FeedForward,
        "loopgrad.models.GRU": GRU,
        "loopgrad.models.HRM": HRM,
        "loopgrad.models.LSTM": LSTM,
        "loopgrad.models.LatentLinear": LatentLinear,
        "loopgrad.models.LatentLoop": LatentLoop,
        "loopgrad.models.LatentMLP": LatentMLP,
        "loopgrad.models.LatentStack": LatentStack,
        "loopgrad.models.LatentTRM": LatentTRM,
        "loopgrad.models.LoopedTransformer": LoopedTransformer,
        "loopgrad.models.NeuralTuringMachine": NeuralTuringMachine,
        "loopgrad.models.TRM": TRM,
    },
    "trainer": {
        "loopgrad.experiments.trainer.AdamATan2Rule": AdamATan2Rule,
        "loopgrad.experiments.trainer.AdamWRule": AdamWRule,
        "loopgrad.experiments.trainer.Constant": Constant,
        "loopgrad.experiments.trainer.Cosine": Cosine,
        "loopgrad.experiments.trainer.Linear": Linear,
        "loopgrad.experiments.trainer.MuonRule": MuonRule,
        "loopgrad.experiments.trainer.SignSGDRule": SignSGDRule,
        "loopgrad.experiments.trainer.SyntheticGradients": SyntheticGradients,
        "loopgrad.experiments.trainer.Trainer": Trainer,
        "loopgrad.gradients.DepthDistribution": DepthDistribution,
        "loopgrad.models.ACT": ACT,
        "loopgrad.models.FixedSegments": FixedSegments,
        "loopgrad.models.QHalt": QHalt,
        "loopgrad.models.QLearning": QLearning,
        "loopgrad.models.ResidualHalt": ResidualHalt,
    },
}
"""By the part of a configuration; the names are those that configurations of this package write."""

BUILT: Classes = {
    "loopgrad.gradients.CheckpointedBPTT": CheckpointedBPTT,
    "loopgrad.gradients.CompressedBPTT": CompressedBPTT,
}
"""Classes with young keys that are built from what was typed, and never from a file."""

YOUNG: Mapping[str, frozenset[str]] = {
    "loopgrad.gradients.CheckpointedBPTT": frozenset({"kept"}),
    "loopgrad.gradients.CompressedBPTT": frozenset({"tolerance"}),
    **dict.fromkeys(
        (f"loopgrad.models.{name}" for name in ("FeedForward", "HRM", "TRM")),
        frozenset({"forward_dtype"}),
    ),
    "loopgrad.models.LoopedTransformer": frozenset({"forward_dtype", "start_token"}),
    **dict.fromkeys(
        (f"loopgrad.models.{name}" for name in ("LatentLoop", "LatentTRM")), frozenset({"coupling", "coupling_rate"})
    ),
    "loopgrad.experiments.tasks.Arc": frozenset({"path", "translate", "votes"}),
    **dict.fromkeys(
        (f"loopgrad.experiments.tasks.{name}" for name in ("Babi", "Clutrr", "ReasoningGym")),
        frozenset({"most_statements", "whiten"}),
    ),
    "loopgrad.experiments.tasks.Maze": frozenset({"path", "shared_puzzle"}),
    "loopgrad.experiments.tasks.Sudoku": frozenset({"shared_puzzle"}),
    "loopgrad.experiments.trainer.Trainer": frozenset(
        {"compile", "prefetch", "segments_per_update", "synthetic", "verdict_samples"}
    ),
}
"""Keys that came when there were results without them, by class: one at its default says nothing."""


def without_young(values: Any) -> Any:
    """Return plain values of a configuration without young keys at their defaults.

    A run or folder from before such a key is so known by the same values as one of today, and goes on.
    """
    if not isinstance(values, dict):
        return values
    target = values.get("_target_")
    young = YOUNG.get(target, frozenset()) if isinstance(target, str) else frozenset()
    found = (
        next((classes[str(target)] for classes in (*OWN.values(), BUILT) if target in classes), None) if young else None
    )
    defaults = {name: it.default for name, it in inspect.signature(found).parameters.items()} if found else {}
    return {
        key: without_young(value)
        for key, value in values.items()
        if key not in young or value != defaults[key] or type(value) is not type(defaults[key])
    }

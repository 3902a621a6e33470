"""What a file may name: the classes of this package that a stored configuration is made of, and nothing else.

A name in a file is looked up here. It is never imported, so a file cannot say what code runs.
"""

from collections.abc import Mapping

from loopgrad.experiments.tasks import Arc, Copy, Maze, RepeatCopy, RollingSum, Sorting, Sudoku, Text
from loopgrad.experiments.trainer import (
    AdamATan2Rule,
    AdamWRule,
    Constant,
    Cosine,
    Linear,
    MuonRule,
    SignSGDRule,
    Trainer,
)
from loopgrad.gradients import DepthDistribution
from loopgrad.models import (
    ACT,
    GRU,
    HRM,
    LSTM,
    TRM,
    FeedForward,
    FixedSegments,
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
        "loopgrad.experiments.tasks.Copy": Copy,
        "loopgrad.experiments.tasks.Maze": Maze,
        "loopgrad.experiments.tasks.RepeatCopy": RepeatCopy,
        "loopgrad.experiments.tasks.RollingSum": RollingSum,
        "loopgrad.experiments.tasks.Sorting": Sorting,
        "loopgrad.experiments.tasks.Sudoku": Sudoku,
        "loopgrad.experiments.tasks.Text": Text,
    },
    "model": {
        "loopgrad.models.FeedForward": FeedForward,
        "loopgrad.models.GRU": GRU,
        "loopgrad.models.HRM": HRM,
        "loopgrad.models.LSTM": LSTM,
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

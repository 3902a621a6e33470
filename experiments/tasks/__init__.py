"""Tasks: seeded puzzles with a token spec, an exact checker and a rendering as text."""

if not __name__.startswith("loopgrad."):
    raise ImportError("import loopgrad.experiments.tasks, not experiments.tasks: run `make setup` first")

from loopgrad.experiments.tasks.arc import Arc
from loopgrad.experiments.tasks.arc_votes import ArcScore, arc_score
from loopgrad.experiments.tasks.babi import Babi
from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec
from loopgrad.experiments.tasks.clutrr import Clutrr
from loopgrad.experiments.tasks.copying import Copy, RepeatCopy
from loopgrad.experiments.tasks.digit_sudoku import DigitSudoku
from loopgrad.experiments.tasks.last_sum import LastSum, SumBySteps
from loopgrad.experiments.tasks.maze import Maze
from loopgrad.experiments.tasks.sequences import RollingSum, Sorting
from loopgrad.experiments.tasks.sudoku import Sudoku
from loopgrad.experiments.tasks.text import Text
from loopgrad.experiments.tasks.word_puzzles import ReasoningGym

__all__ = [
    "IGNORE",
    "Arc",
    "ArcScore",
    "Babi",
    "Batch",
    "Clutrr",
    "Copy",
    "DigitSudoku",
    "LastSum",
    "Maze",
    "ReasoningGym",
    "RepeatCopy",
    "RollingSum",
    "Sorting",
    "Sudoku",
    "SumBySteps",
    "Task",
    "Text",
    "TokenSpec",
    "arc_score",
]

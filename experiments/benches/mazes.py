"""How many shortest paths the mazes of a set have: where there are several, exact match scores the tie-break too."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from loopgrad.analysis import plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.experiments.tasks import Maze
from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.tasks.official_folder import read_folder

POINTS = 41  # of a curve
EXACT = 2**53  # below it float64 holds every int


@dataclass(frozen=True)
class Mazes(Bench):
    """Shortest paths of the mazes of a folder that an official builder wrote, or of generated ones.

    A row is a part. Columns: mazes; the share with a single shortest path; least, median and greatest number of them;
    share of the labels that are a shortest path. An answer is judged by exact match against one path of so many.

    Args:
        path: Folder, see `Maze`; None for generated mazes, which have one shortest path each.
        size: Side of generated mazes.
        num_mazes: Of each part, the first ones; null for all.
    """

    path: str | None = None
    size: int = 10
    num_mazes: int | None = None

    least: ClassVar = {"size": 2}

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Count."""
        if self.path is None:
            task = Maze(size=self.size, augment=False)
        else:
            folder = read_folder(self.path)
            groups = folder.train.num_groups, folder.test.num_groups
            task = Maze(path=self.path, num_train=groups[0], num_test=groups[1], augment=False)
        parts = (("train", task.train_batch(0, 0, task.num_train)), ("test", task.test_set()))
        return list(ledger.each([Part(name, partial(self._rows, name, task, batch)) for name, batch in parts]))

    def _rows(self, name: str, task: Maze, batch: Batch) -> list[dict[str, Any]]:
        batch = batch[: self.num_mazes or len(batch)]
        counts = sorted(task.count_shortest_paths(batch.inputs))
        right = task.is_solved(batch.inputs, batch.labels)
        row = {
            "part": name,
            "mazes": len(counts),
            "single": sum(count == 1 for count in counts) / len(counts),
            "least": counts[0],
            "median": counts[len(counts) // 2],
            "most": float(counts[-1]),
            "labels shortest": right.double().mean().item(),
            "counts": [count if count < EXACT else float(count) for count in counts],
        }
        return [row]

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw the share of mazes with at most so many shortest paths."""
        courses = []
        for row in rows:
            chosen = np.unique(np.linspace(0, row["mazes"] - 1, POINTS).astype(int))
            shares = 100 * (chosen + 1) / row["mazes"]
            courses.append(plots.Course(row["part"], [row["counts"][i] for i in chosen], shares.tolist()))
        drawn = plots.conditions(
            courses, "shortest paths from start to goal", "mazes with at most as many (%)", log=True
        )
        plots.save(drawn, folder / "mazes-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say what exact match scores."""
        single = sum(row["single"] * row["mazes"] for row in rows)
        total = sum(row["mazes"] for row in rows)
        return (
            f"{single:.0f} of {total} mazes have a single shortest path; the median of the test mazes has "
            f"{rows[-1]['median']:,}. Where there are several, exact match also scores which one was made the label."
        )

"""Scalars of a run for other programs than ours: a CSV file, TensorBoard or Weights & Biases, where it is asked for.

Each goes on with its run: what its files hold beyond the checkpoint is hidden, replaced, or was never handed on.
"""

import importlib
import numbers
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import replace_text

Entry = Mapping[str, Any]
PACKAGES = {"none": None, "csv": None, "tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
EXTRAS = {"tensorboard": "log", "wandb": "wandb"}


def check_logger(logger: Any) -> None:
    """Check the key `logger`.

    Raises:
        ConfigError: There is no such logger, or its package is missing.
    """
    if not isinstance(logger, str) or logger not in PACKAGES:
        raise ConfigError(f"logger={logger}: must be one of {', '.join(PACKAGES)}")
    try:
        importlib.import_module(PACKAGES[logger] or "csv")
    except ImportError as error:
        raise ConfigError(f"logger={logger} needs the package: pip install 'loopgrad[{EXTRAS[logger]}]'") from error


class Scalars(ABC):
    """Takes what the steps of a run measured."""

    @abstractmethod
    def write(self, entry: Entry) -> None:
        """Take what a step measured."""

    @abstractmethod
    def store(self) -> None:
        """Bring what was taken to where a kill does not reach it: a checkpoint is about to count it."""

    @abstractmethod
    def close(self) -> None:
        """End; what was taken after the last `store` may be lost, for those steps are taken again."""


@contextmanager
def scalars(logger: str, folder: Path, name: str, told: Mapping[str, Any], kept: Sequence[Entry]) -> Iterator[Scalars]:
    """Yield what takes the scalars of a run.

    Args:
        logger: Which one, see `check_logger`.
        folder: That of the run.
        name: Of the run.
        told: Its configuration, plain values.
        kept: What the steps measured that are done already.
    """
    if logger == "csv":
        found = Csv(folder / "scalars.csv", kept)
    elif logger == "tensorboard":
        found = TensorBoard(folder / "tensorboard", kept)
    elif logger == "wandb":
        found = Wandb(folder, name, told, kept)
    else:
        found = Nothing()
    try:
        yield found
    finally:
        found.close()


class Nothing(Scalars):
    """Takes nothing."""

    def write(self, entry: Entry) -> None:
        """Pass over it."""

    def store(self) -> None:
        """Pass over it."""

    def close(self) -> None:
        """Pass over it."""


class Csv(Scalars):
    """Lines `step,name,value` in a file; what steps measured that are done already is written anew from their log."""

    def __init__(self, path: Path, kept: Sequence[Entry]) -> None:
        replace_text(path, "".join(["step,name,value\n", *map(_lines, kept)]))
        self._file = open(path, "a")  # noqa: SIM115

    def write(self, entry: Entry) -> None:
        """Add a line for each number."""
        self._file.write(_lines(entry))
        self._file.flush()

    def store(self) -> None:
        """Wait until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard(Scalars):
    """Event files; what an interrupted run wrote beyond its checkpoint is hidden."""

    def __init__(self, folder: Path, kept: Sequence[Entry]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        new = not folder.is_dir() or not any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=len(kept) + 1)
        for entry in kept if new else ():  # the run was begun without
            self.write(entry)

    def write(self, entry: Entry) -> None:
        """Add the numbers."""
        for name, value in _numbers(entry):
            self._writer.add_scalar(name, value, entry["step"])

    def store(self) -> None:
        """Write what waits to be written."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb(Scalars):
    """A run of Weights & Biases, offline unless WANDB_MODE says otherwise; steps are handed on with each checkpoint.

    An interrupted run goes on under the same id, which a file beside the offline runs keeps. What a kill leaves of an
    offline run may lack anything, so the next one has all steps from the first; online those that the server lacks.
    """

    def __init__(self, folder: Path, name: str, told: Mapping[str, Any], kept: Sequence[Entry]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        place, mode = folder / "wandb" / "id.txt", os.environ.get("WANDB_MODE") or "offline"
        if not kept or not place.is_file():
            replace_text(place, uuid.uuid4().hex[:16])
        number = place.read_text().strip()
        settings = wandb.Settings(silent=True, console="off")
        resume = None if mode == "offline" else "allow"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "loopgrad",
            id=number,
            name=name,
            dir=str(folder),
            config=dict(told),
            mode=mode,  # type: ignore[arg-type]
            resume=resume,
            settings=settings,
        )
        first = 0 if mode == "offline" else self._run.step
        self._waiting: list[Entry] = [entry for entry in kept if entry["step"] >= first]

    def write(self, entry: Entry) -> None:
        """Keep it until the next checkpoint."""
        self._waiting.append(dict(entry))

    def store(self) -> None:
        """Hand on what was kept."""
        for entry in self._waiting:
            self._run.log(dict(_numbers(entry)), step=entry["step"])
        self._waiting.clear()

    def close(self) -> None:
        """End the run of Weights & Biases."""
        self._run.finish()


def _numbers(entry: Entry) -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, numbers.Real) and name != "step":
            yield name, float(value)


def _lines(entry: Entry) -> str:
    return "".join(f"{entry['step']},{name},{value!r}\n" for name, value in _numbers(entry))

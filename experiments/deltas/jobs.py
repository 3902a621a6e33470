"""Examining many sets of weights, each in a job whose record is stored as soon as it is whole."""

import errno
import hashlib
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

import torch

from loopgrad.experiments import records
from loopgrad.experiments.deltas import pictures
from loopgrad.experiments.deltas.examination import Examination, meet
from loopgrad.experiments.deltas.measuring import examine, memory
from loopgrad.experiments.deltas.weights import Weights
from loopgrad.experiments.endings import lacks_memory
from loopgrad.experiments.errors import ConfigError, ExaminationFailed, WorkerLost
from loopgrad.experiments.processes import completed
from loopgrad.gradients import Estimator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What ends the writing of any file."""


@dataclass(frozen=True)
class Job:
    """One set of weights to be examined, by this process or another."""

    weights: Weights
    settings: Examination
    estimators: dict[str, Estimator]
    folder: Path
    draw: bool

    @property
    def stored(self) -> Path:
        """Where its record goes."""
        return self.folder / "weights" / f"{records.slug(self.weights.name)}.json"

    @property
    def digest(self) -> str:
        """What tells these weights from others of the same name."""
        return hashlib.sha256(self.weights.path.read_bytes()).hexdigest()

    def done(self) -> bool:
        """Whether its record is of these very weights."""
        try:
            found = records.read(self.stored, records.ExaminedRecord)[0] if self.stored.exists() else {}
            return found.get("name") == self.weights.name and found.get("sha256") == self.digest
        except ValueError:  # damaged, or of another kind: it is examined anew
            return False


def do_all(jobs: list[Job], workers: int) -> Generator[None, None, None]:
    """Do the jobs, `workers` at a time, each in a process of its own; what has been stored is kept, whatever happens.

    Weights that cannot be examined, or that take their process with them, stop no others: they are named at the end.

    Raises:
        ConfigError: Weights cannot be examined as was asked.
        ExaminationFailed: Examining weights raised an error, or their process died.
        OSError: The system refused; where the disk is full no further job begins.
    """
    failed: dict[str, BaseException] = {}

    def disk_is_full() -> bool:
        return any(isinstance(error, OSError) and error.errno in FULL for error in failed.values())

    with closing(completed(do, jobs, workers, called_off=disk_is_full)) as endings:
        for ending in endings:
            if ending.error is not None:
                failed[ending.job.weights.name] = ending.error
            yield
    if failed:
        raise _failure(failed)


def _failure(failed: dict[str, BaseException]) -> BaseException:
    """Return one error for all that has failed."""
    for error in failed.values():
        if isinstance(error, OSError):
            return error
    told = [
        f"{name}: {'the process that examined it ' * isinstance(error, WorkerLost)}{error}"
        for name, error in failed.items()
    ]
    more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
    if all(isinstance(error, ConfigError) for error in failed.values()):
        return ConfigError("; ".join(told[:3]) + more)
    return ExaminationFailed(f"{'; '.join(told[:3])}{more}; the other weights are examined and stored")


def do(job: Job, *_: object) -> None:
    """Examine one set of weights and store its record, and its figures if they are wanted.

    Raises:
        ConfigError: They cannot be examined as was asked.
        ExaminationFailed: There is no memory left, or anything else went wrong, and where.
        OSError: The system refused.
    """
    try:
        _examine(job)
    except (ConfigError, OSError):
        raise
    except Exception as error:
        if lacks_memory(error):
            raise ExaminationFailed("out of memory: ask for fewer samples or fewer workers") from error
        places = [frame for frame in extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        place = f"{'/'.join(Path(places[-1].filename).parts[-2:])}, line {places[-1].lineno}"
        raise ExaminationFailed(f"{type(error).__name__}: {error} ({place})") from error


def _examine(job: Job) -> None:
    torch.set_num_threads(job.settings.num_threads)
    subject = meet(job.weights, job.settings)
    try:
        seen = examine(subject, job.settings, job.estimators)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if job.draw:
        with suppress(ImportError):  # without matplotlib the report says so
            seen.record["figures"] = pictures.of_one(subject, seen, job.folder, records.slug(job.weights.name))
            seen.record["memory"] = memory(subject)
    # what a training step of the run kept for backward, if its log lies beside the weights
    first = records.read_log(job.weights.path.parent / "train.jsonl", 1)
    saved = first[0].get("saved_bytes") if first else None
    saved = saved if type(saved) is int else None  # whoever wrote that log
    records.write(job.stored, [{**seen.record, "sha256": job.digest, "saved_bytes": saved}])

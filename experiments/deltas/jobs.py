"""Examining many sets of weights, each in a job whose record is stored as soon as it is whole."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from loopgrad.experiments import records
from loopgrad.experiments.deltas import pictures
from loopgrad.experiments.deltas.examination import Examination, meet
from loopgrad.experiments.deltas.measuring import examine, memory
from loopgrad.experiments.deltas.weights import Weights
from loopgrad.experiments.errors import ConfigError, WorkerLost
from loopgrad.experiments.processes import completed
from loopgrad.gradients import Estimator


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
            return self.stored.exists() and records.read(self.stored)[0].get("sha256") == self.digest
        except ValueError:  # damaged: it is examined anew
            return False


def do_all(jobs: list[Job], workers: int) -> Iterator[None]:
    """Do the jobs, `workers` at a time; what has been stored is kept, whatever happens.

    Raises:
        WorkerLost: A process was killed from outside.
    """
    try:
        for _ in completed(do, jobs, workers):
            yield
    except WorkerLost as error:
        raise WorkerLost(f"{error}; the same command goes on with the weights left") from None


def do(job: Job) -> None:
    """Examine one set of weights and store its record, and its figures if they are wanted."""
    torch.set_num_threads(job.settings.num_threads)
    subject = meet(job.weights, job.settings)
    try:
        seen = examine(subject, job.settings, job.estimators)
    except ValueError as error:
        raise ConfigError(f"{job.weights.name}: {error}") from error
    if job.draw:
        with suppress(ImportError):  # without matplotlib the report says so
            seen.record["figures"] = pictures.of_one(subject, seen, job.folder, records.slug(job.weights.name))
            seen.record["memory"] = memory(subject)
    # what a training step of the run kept for backward, if its log lies beside the weights
    first = records.read_log(job.weights.path.parent / "train.jsonl", 1)
    saved = first[0].get("saved_bytes") if first else None
    records.write(job.stored, [{**seen.record, "sha256": job.digest, "saved_bytes": saved}])

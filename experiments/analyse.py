"""loopgrad analyse: follow the recursion of trained weights and say, per sample and stream, whether it converges.

    loopgrad analyse checkpoint=results/compare
    loopgrad analyse checkpoint=results/train/runs/last_cycle-seed0/weights.safetensors
    loopgrad analyse checkpoint=step_1000 task=sudoku9 official.num_heads=8

An interrupted analysis goes on with the weights that are left.
"""

import hashlib
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from loopgrad.experiments import analysis_figures, analysis_report, provenance, records
from loopgrad.experiments.build import build
from loopgrad.experiments.crew import WorkerLost, at_once
from loopgrad.experiments.examine import Examination, examine, meet
from loopgrad.experiments.overrides import ConfigError
from loopgrad.experiments.plans import ANALYSIS, Names, check_count, claim, estimators_of, output_folder, plain
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.weights import Weights, find
from loopgrad.gradients import Estimator
from loopgrad.models import FixedSegments


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
        return self.folder / "weights" / f"{slug(self.weights.name)}.json"

    @property
    def digest(self) -> str:
        """What tells these weights from others of the same name."""
        return hashlib.sha256(self.weights.path.read_bytes()).hexdigest()

    def done(self) -> bool:
        """Whether its record is of these very weights."""
        return self.stored.exists() and records.read(self.stored)[0].get("sha256") == self.digest


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Examine, record, report."""
    made = provenance.stamp()
    settings = build(config.analysis, "analysis")
    check_count("workers", config.workers, optional=True)
    if isinstance(config.figures, bool) or not isinstance(config.figures, int) or config.figures < 0:
        raise ConfigError(f"figures={config.figures}: must be an int of at least 0")
    try:
        device = Trainer(FixedSegments(1), device=settings.device).torch_device()
    except ValueError as error:
        raise ConfigError(f"analysis.{error}") from error
    folder, estimators = output_folder(config), estimators_of(config)
    found = [weights for place in _places(config) for weights in _at(place, config)]
    if len({weights.name for weights in found}) < len(found):
        raise ConfigError("checkpoint: two of these weights have one name, such as runs of folders of the same name")
    meet(found[0], replace(settings, samples=1))  # what does not fit is refused before anything is written
    last = {(weights.group, weights.estimator, weights.seed): weights for weights in found}  # steps are in order
    drawn = _evenly(list(last.values()), config)
    jobs = [Job(weights, settings, estimators, folder, weights in drawn) for weights in found]
    complete = claim(folder, config, config.restart, ANALYSIS)
    left = [job for job in jobs if not job.done()]
    if left or not complete:
        workers = at_once(len(left), config.workers, device, settings.num_threads)
        for _ in track(_all(left, workers), "Examining", len(left), console=console):
            pass
        shared = {**made, "device": provenance.device_name(device), "config": plain(config)}
        stored = [records.read(job.stored)[0] | shared for job in jobs]
        records.write(folder / "records.jsonl", stored)
    analysis_report.render(folder, console)


def slug(name: str) -> str:
    """Return the name of some weights as that of a file."""
    return name.replace("/", "-").replace("@", "-step")


def _places(config: DictConfig) -> list[Path]:
    given = list(config.checkpoint) if OmegaConf.is_list(config.checkpoint) else [config.checkpoint]
    if not given or any(not isinstance(place, str) or not place for place in given):
        raise ConfigError(
            f"checkpoint={config.checkpoint}: name a file of weights, the folder of a run or of a comparison, or a list"
        )
    return [Path(place) for place in given]


def _at(place: Path, config: DictConfig) -> list[Weights]:
    steps = None if config.steps is None else list(config.steps) if OmegaConf.is_list(config.steps) else [config.steps]
    if steps is not None and any(isinstance(s, bool) or not isinstance(s, int) or s < -1 for s in steps):
        raise ConfigError(f"steps={config.steps}: must be a list of steps, -1 for the last")
    task, model = (plain(config[key]) if config.get(key) is not None else None for key in ("task", "model"))
    return find(place, task, model, plain(config.official), steps)


def _evenly(found: list[Weights], config: DictConfig) -> list[Weights]:
    count = min(config.figures, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def _all(jobs: list[Job], workers: int) -> Iterator[None]:
    """Do the jobs; after Ctrl-C those that have been stored are kept.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        WorkerLost: A process was killed from outside.
    """
    if workers == 1:
        for job in jobs:
            yield do(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _deaf) as pool:
        try:
            left: set[Future[None]] = {pool.submit(do, job) for job in jobs}
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise WorkerLost("a worker process was killed; the same command goes on with the weights left") from None
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():  # records are written whole, so nothing is half done
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides what Ctrl-C means


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
            seen.record["figures"] = analysis_figures.of_one(subject, seen, job.folder, slug(job.weights.name))
    seen.record.update({"sha256": job.digest, "saved_bytes": _saved_bytes(job.weights.path.parent / "train.jsonl")})
    records.write(job.stored, [seen.record])


def _saved_bytes(log: Path) -> int | None:
    """Return what a training step of the run kept for backward, if its log lies beside the weights."""
    first = records.read_whole_lines(log, 1)
    return first[0].get("saved_bytes") if first else None

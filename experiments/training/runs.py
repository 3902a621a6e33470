"""One training run in a folder of its own (train.jsonl, checkpoint.pt, weights*.safetensors); it goes on from there."""

import copy
import errno
import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loopgrad.analysis.files import replace_bytes
from loopgrad.experiments import records
from loopgrad.experiments.conf.parts import Parts, build_model
from loopgrad.experiments.errors import ConfigError, Interrupted, NonFinite
from loopgrad.experiments.processes import ALONE, Ranks, on_signal
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import checkpoint, parallel, shards, tensor_files
from loopgrad.experiments.training.loop import Run, begin, shard, train
from loopgrad.experiments.training.scalars import check_logger, scalars
from loopgrad.experiments.training.seeds import seed_for, seeded
from loopgrad.gradients import Estimator
from loopgrad.gradients.budget import BudgetTooSmall
from loopgrad.gradients.central_differences import TooCoarse
from loopgrad.gradients.implicit_verdict import Unconverged
from loopgrad.gradients.tangents import CannotCarry
from loopgrad.models.model import Model

# what each line of a log holds, whatever the estimator
SCORES = frozenset({"test_loss", "test_exact_accuracy", "test_token_accuracy"})
LOGGED = frozenset({"step", "loss", "exact_accuracy", "saved_bytes", "seconds"})
Report = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What one run needs; it can be sent to another process.

    Attributes:
        name: Name of the run, such as "last_cycle-seed0".
        task: With its data made.
        estimator: How gradients are obtained; its noise starts here, and runs and probes draw from copies.
        trainer: Hyperparameters.
        seed: Seed of the run.
        folder: Where its files go.
        fingerprint: Configuration of the run, plain values: what a checkpoint must agree with.
        logger: For whom scalars are written too, see `scalars`.
    """

    name: str
    task: Task
    estimator: Estimator
    trainer: Trainer
    seed: int
    folder: Path
    fingerprint: dict[str, Any]
    logger: str = "none"


def plans(parts: Parts, seeds: list[int], folder: Path) -> list[Plan]:
    """Return one plan per seed and estimator; all of a seed share data order and initial weights.

    Args:
        parts: What is trained.
        seeds: Seeds of the runs.
        folder: Folder of the command; a run has one of its own in it.

    Raises:
        ConfigError: The key `logger` names none, or its package is missing.
    """
    values = parts.values
    check_logger(values["logger"])
    return [
        Plan(
            name=f"{name}-seed{seed}",
            task=parts.task,
            estimator=copy.deepcopy(seeded(estimator, seed)),  # runs share no generator
            trainer=parts.trainer,
            seed=seed,
            folder=folder / "runs" / f"{name}-seed{seed}",
            fingerprint={
                **{key: values[key] for key in ("task", "model", "trainer")},
                "estimator": values["estimator"][name],
                "seed": seed,
            },
            logger=values["logger"],
        )
        for seed in seeds
        for name, estimator in parts.estimators.items()
    ]


def execute(plan: Plan, report: Report, ended: Callable[[], bool] = lambda: False, ranks: Ranks = ALONE) -> None:
    """Run to the last step, from the checkpoint if there is one.

    Args:
        plan: What to run.
        report: Called with the run's name and what each step measured.
        ended: Asked after each step whether to stop, as a signal asks.
        ranks: Who runs it together; the first of them reads and writes the files, and where one is to stop, all do.

    Raises:
        Interrupted: After a signal, or when ended; the checkpoint holds the last whole step.
        NonFinite: See `train`; the checkpoint holds the step before.
        ConfigError: The folder holds a run of another configuration, or a checkpoint that cannot be read; or the
            estimator's memory_budget is too small for the model, or an implicit gradient was to raise and did.
    """
    torch.set_num_threads(plan.trainer.num_threads)
    with on_signal() as stop:
        if ranks.first:
            run, estimator = _as_stored(plan, report)
        else:
            run, estimator = _begun(plan)
        checkpoint.share(run, estimator, ranks)
        run.carry = parallel.own_rows(run.carry, ranks)
        shard(run, plan.trainer, ranks)
        _train(plan, run, estimator, report, lambda: stop.requested or ended(), ranks)
        _keep_weights(run, plan.folder / "weights.safetensors", ranks)
    if ranks.any(stop.requested):  # it came with the last step, and must not be lost on the run after this one
        raise Interrupted(plan.name, run.step)


def _begun(plan: Plan) -> tuple[Run, Estimator]:
    run = begin(plan.trainer, plan.task, _initial_model(plan), plan.seed)
    return run, copy.deepcopy(plan.estimator)


def _as_stored(plan: Plan, report: Report) -> tuple[Run, Estimator]:
    """Return a run and its estimator as the files of its folder tell, whose log holds no other steps then."""
    stored, log = plan.folder / "checkpoint.pt", plan.folder / "train.jsonl"
    run, estimator = _begun(plan)
    if stored.exists():
        checkpoint.load(stored, run, estimator, plan.fingerprint)
    kept = records.read_log(log, run.step, LOGGED)  # later lines belong to steps that will be taken again
    if kept and len(kept) == run.step == plan.trainer.train_steps and not SCORES <= kept[-1].keys():
        kept.pop()  # the last step is always evaluated
    if reason := _disagreement(kept, run):  # the curve would not be that of the run
        print(f"{plan.name}: its log {reason}, so the run begins anew", flush=True)
        stored.unlink()
        kept = []
        run, estimator = _begun(plan)
    run.log = _digest(kept)
    records.write(log, kept)
    for entry in kept[-1:]:
        report(plan.name, entry)
    return run, estimator


def _initial_model(plan: Plan) -> Model:
    return build_model(plan.fingerprint["model"], plan.task, seed_for("weights", plan.seed))


def _disagreement(kept: list[dict[str, Any]], run: Run) -> str:
    """Return in what a log differs from what the checkpoint of a run has counted; "" where it does not."""
    if len(kept) < run.step:
        return f"holds {len(kept)} of the {run.step} steps that its checkpoint counts"
    if run.log and run.log != _digest(kept):  # checkpoints of earlier versions do not say
        return "holds other values than those that its checkpoint counts"
    return ""


def _digest(entries: Iterable[dict[str, Any]], before: str = "") -> str:
    """Return a digest of lines of a log that follow on those of another digest."""
    for entry in entries:
        before = hashlib.sha256((before + records.line(entry)).encode()).hexdigest()
    return before


def _train(
    plan: Plan, run: Run, estimator: Estimator, report: Report, stopped: Callable[[], bool], ranks: Ranks
) -> None:
    log = plan.folder / "train.jsonl" if ranks.first else Path(os.devnull)
    logger = plan.logger if ranks.first else "none"
    kept = records.read_log(log, run.step, LOGGED) if logger != "none" else []

    def store() -> None:
        whole = replace(run, carry=parallel.whole(run.carry, ranks))
        if ranks.first:
            os.fsync(lines.fileno())  # what the checkpoint counts is on the disk before it
            show.store()
        checkpoint.save(plan.folder / "checkpoint.pt", whole, estimator, plan.fingerprint, ranks)

    with open(log, "a") as lines, scalars(logger, plan.folder, plan.name, plan.fingerprint, kept) as show:
        try:
            for entry in train(run, plan.trainer, plan.task, estimator, plan.seed, ranks):
                lines.write(records.line(entry) + "\n")
                lines.flush()
                run.log = _digest([entry], run.log)
                if not log.exists():  # else what is stored next would make a folder of half a run
                    raise FileNotFoundError(errno.ENOENT, "was removed while the run went on", str(log))
                show.write(entry)
                report(plan.name, entry)
                last, every = run.step == plan.trainer.train_steps, plan.trainer.weights_every
                stop = ranks.any(stopped())
                if every and run.step % every == 0:
                    _keep_weights(run, plan.folder / f"weights-{run.step:06d}.safetensors", ranks)
                if last or stop or run.step % plan.trainer.checkpoint_every == 0:
                    store()
                if stop and not last:
                    raise Interrupted(plan.name, run.step)
        except NonFinite as error:
            store()
            raise NonFinite(f"{plan.name}, {error}") from None
        except (BudgetTooSmall, CannotCarry, TooCoarse, Unconverged) as error:
            raise ConfigError(f"{plan.name}, step {run.step + 1}: {error}") from None


def _keep_weights(run: Run, path: Path, ranks: Ranks) -> None:
    weights = shards.on_first(run.evaluated.state_dict(), ranks)
    if ranks.first:
        replace_bytes(path, tensor_files.weight_bytes(weights))


def trained_model(plan: Plan) -> Model:
    """Return the trained model of a finished run, in evaluation mode, on the run's device."""
    model = _initial_model(plan)
    model.load_state_dict(tensor_files.read(plan.folder / "weights.safetensors"))
    return model.to(plan.trainer.torch_device()).eval()


def history(plan: Plan) -> list[dict[str, Any]]:
    """Return what each step of a finished run measured.

    Raises:
        ConfigError: The log does not hold each step once and in order, as where a folder was copied into one in use.
    """
    found, steps = records.read(plan.folder / "train.jsonl"), plan.trainer.train_steps
    if [entry.get("step") for entry in found] != list(range(1, steps + 1)):
        raise ConfigError(
            f"{plan.folder / 'train.jsonl'} does not hold each of {steps} steps once and in order, so something else "
            f"has written into it: remove {plan.folder}, and the same command trains it anew"
        )
    return found

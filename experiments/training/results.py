"""What finished runs gave: how well they learnt, and probes on the weights that they left."""

from typing import Any

import torch

from loopgrad.experiments import provenance
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.records import FollowedRecord, RunRecord
from loopgrad.experiments.records.kinds import Overrides
from loopgrad.experiments.records.schema import holds
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.training import probe
from loopgrad.experiments.training.answers import FOLLOWED, followed, segments_of
from loopgrad.experiments.training.runs import Plan, history, trained_model
from loopgrad.experiments.training.votes import votes_record
from loopgrad.experiments.training.walk import walk
from loopgrad.gradients.ramp import estimator_at
from loopgrad.models.model import Model

SETTLING = {"residual": "test_residual", "converged": "test_verdict@converged"}  # as a record and a log name them


def probed(runs: list[Plan], names: Names, repeats: int, made: dict[str, Any]) -> list[RunRecord]:
    """Return the records of the finished runs of one seed, their estimators timed in turn on the same weights."""
    trainer, task, seed = runs[0].trainer, runs[0].task, runs[0].seed
    torch.set_num_threads(trainer.num_threads)  # as in training, and so that idle threads do not disturb the timing
    test = task.test_set()
    lasting = {plan.name: estimator_at(plan.estimator, trainer.train_steps - 1) for plan in runs}
    probes = {plan.name: probe.start(trained_model(plan), trainer, test) for plan in runs}
    first = probes[runs[0].name]
    seconds = probe.times(first, lasting, repeats)
    result = []
    for plan in runs:
        log = history(plan)
        last, mine, estimator = log[-1], probes[plan.name], lasting[plan.name]
        held_out, at_evaluations = scores(log)
        result.append(
            {
                "estimator": plan.name.removesuffix(f"-seed{seed}"),
                "task": names.task,
                "model": names.model,
                "seed": seed,
                "train_steps": trainer.train_steps,
                **held_out,
                **seconds[plan.name],
                **probe.cost(mine, estimator),
                **probe.agreement(mine, estimator),
                **probe.residuals(mine, estimator),
                "kind": estimator.kind,
                "train_seconds": sum(entry["seconds"] for entry in log),
                "curve": {
                    **at_evaluations,
                    "train_loss": [entry["loss"] for entry in log],
                    **({"cycles": [entry["cycles"] for entry in log]} if "cycles" in last else {}),
                },
                "verdicts": _verdicts(log),
                "followed": _followed(plan, mine.model, test),
                **_groups(last, task),
                **_sizes(mine.model, task),
                **votes_record(mine.model, trainer, task),
                "probe": {
                    "samples": len(mine.batch),
                    "segment": probe.segment_of(trainer),
                    "timing_repeats": repeats,
                    "input_per_update": mine.model.input_per_update,
                },
                **made,
                "device": provenance.device_name(mine.batch.inputs.device),
                "config": plan.fingerprint,
                **_overrides(names),
            }
        )
    return result


def _followed(plan: Plan, model: Model, test: Batch) -> list[FollowedRecord]:
    """Return what the first held-out samples are answered, segment by segment."""
    batch = test[:FOLLOWED].to(next(model.parameters()).device)
    seen = None if model.input_per_update else walk(model, plan.trainer, batch)
    count = plan.trainer.halting.max_segments
    segments = segments_of(model, plan.trainer, plan.task, batch, count)
    told = (None, None) if seen is None else (seen.residuals, {"training": seen.verdicts})
    return followed(plan.task, batch, range(len(batch)), segments, *told)


def _groups(last: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the last held-out accuracy of each group of samples, nothing where the task tells none."""
    found = {name: (len(rows), last.get(f"test_exact_accuracy@{name}")) for name, rows in task.test_groups().items()}
    told = {name: {"samples": n, "exact_accuracy": share} for name, (n, share) in found.items() if share is not None}
    return {"groups": told} if told else {}


def _sizes(model: Model, task: Task) -> dict[str, int]:
    """Return how many weights are trained, and how many a frozen encoder has."""
    trained = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    frozen = task.frozen()
    return trained if frozen is None else {**trained, "frozen_parameters": frozen.num_parameters}


def scores(log: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Return the last held-out scores of a log, and those of every evaluation beside their steps.

    A score that an earlier version did not log is left out, and so is a curve that would lack some of its points.
    """
    evaluations = [entry for entry in log if "test_loss" in entry]
    names = ("exact_accuracy", "match_accuracy", "token_accuracy")
    found = {name: [entry.get(f"test_{name}") for entry in evaluations] for name in names}
    last = {"loss": evaluations[-1]["test_loss"]}
    last |= {name: values[-1] for name, values in found.items() if values[-1] is not None}
    found |= {own: [it.get(name) for it in evaluations] for own, name in SETTLING.items()}
    curves = {name: values for name, values in found.items() if None not in values}
    return last, {"step": [entry["step"] for entry in evaluations], **curves}


def _overrides(names: Names) -> dict[str, list[str]]:
    """Return what was typed, or nothing where it is not known, or longer than what is read of a record."""
    typed = None if names.overrides is None else list(names.overrides)
    return {} if typed is None or not holds(typed, Overrides) else {"overrides": typed}


def _verdicts(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what an implicit estimator said of its samples at each step, and the share trusted over training."""
    names = [name for name in log[-1] if name.startswith("implicit_")]
    if not names:
        return None
    found = {name.removeprefix("implicit_"): [entry[name] for entry in log] for name in names}
    return {"mean_trusted": sum(found["trusted"]) / len(log), **found}

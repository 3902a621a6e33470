"""What the weights that a training leaves can do, and what their training cost."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loopgrad.analysis import classify, record
from loopgrad.experiments.claims.applies import at_length
from loopgrad.experiments.claims.conditions import Training
from loopgrad.experiments.tasks import Arc
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training import probe
from loopgrad.experiments.training.runs import history, trained_model
from loopgrad.experiments.training.votes import score_votes
from loopgrad.gradients import BPTT
from loopgrad.gradients.ramp import estimator_at
from loopgrad.models import supervision
from loopgrad.models.model import Model, told

SETTLE_SAMPLES = 128  # whose residuals are followed
COSTS = ("saved_bytes", "peak_bytes", "flops")


def read(training: Training) -> dict[str, Any]:
    """Return the record of a finished training: see `records.kinds.TrainedRecord`."""
    plan, wanted = training.plan, training.readings
    torch.set_num_threads(plan.trainer.num_threads)
    log, model = history(plan), trained_model(plan)
    test, trainer = plan.task.test_set(), plan.trainer
    last, looks = log[-1], [entry for entry in log if "test_loss" in entry]
    found = {
        "exact": last["test_exact_accuracy"],
        "tokens": last["test_token_accuracy"],
        **({"match": last["test_match_accuracy"]} if "test_match_accuracy" in last else {}),
        **_along(model, trainer, plan.task, test, wanted.segments),
        **_at_lengths(model, trainer, plan.task, wanted.lengths),
        **(_halted(model, trainer, plan.task, test) if wanted.halting else {}),
        **(_settled(model, trainer, plan.task, test, wanted.settles) if wanted.settles else {}),
        **(_voted(model, trainer, plan.task, wanted.votes) if wanted.votes else {}),
    }
    estimator = estimator_at(plan.estimator, trainer.train_steps - 1)
    cost = probe.cost(probe.start(model, trainer, test), estimator)
    return {
        "condition": training.condition,
        "seed": plan.seed,
        "train_steps": trainer.train_steps,
        "parameters": sum(it.numel() for it in model.parameters()),
        "readings": found,
        **{name: cost[name] for name in COSTS},
        "train_seconds": sum(entry["seconds"] for entry in log),
        "curve": {
            "step": [entry["step"] for entry in looks],
            "exact_accuracy": [entry["test_exact_accuracy"] for entry in looks],
            "token_accuracy": [entry["test_token_accuracy"] for entry in looks],
        },
        "overrides": training.overrides,
    }


def answers(
    model: Model, trainer: Trainer, samples: Batch, segments: int
) -> Iterator[tuple[slice, Iterator[tuple[Tensor, Any]]]]:
    """Yield rows of samples with an iterator over (predicted tokens, output) after each segment."""
    device = next(model.parameters()).device

    def along(batch: Batch) -> Iterator[tuple[Tensor, Any]]:
        state = None
        for _ in range(segments):
            with trainer.precision(device), torch.no_grad():
                output = model(state, batch.inputs, batch.puzzle_ids, BPTT(), *told(trainer.halting.depth(None)))
            state = output.state
            yield output.logits.argmax(-1).cpu(), output

    for start in range(0, len(samples), trainer.eval_batch_size):
        rows = slice(start, start + trainer.eval_batch_size)
        yield rows, along(samples[rows].to(device))


def _along(model: Model, trainer: Trainer, task: Task, samples: Batch, counts: Sequence[int]) -> dict[str, float]:
    """Return the share of samples that are solved after so many segments."""
    solved: dict[int, list[Tensor]] = {count: [] for count in counts}
    if counts:
        for rows, along in answers(model, trainer, samples, max(counts)):
            for count, (predicted, _) in enumerate(along, 1):
                if count in solved:
                    solved[count].append(task.is_solved(samples.inputs[rows], predicted).double())
    return {f"segments@{count}": torch.cat(found).mean().item() for count, found in solved.items()}


def _halted(model: Model, trainer: Trainer, task: Task, samples: Batch) -> dict[str, float]:
    """Let each sample stop when the rule of its training says so, without exploration."""
    halting, solved, spent = trainer.halting, [], []
    if getattr(halting, "exploration", 0):
        halting = dataclasses.replace(halting, exploration=0.0)  # pyright: ignore[reportArgumentType]
    for rows, along in answers(model, trainer, samples, halting.max_segments):
        own = samples[rows]
        before = model.initial_state(*own.inputs.shape)
        final = torch.zeros_like(own.inputs)
        steps = torch.zeros(len(own), dtype=torch.int64)
        going = torch.ones(len(own), dtype=torch.bool)
        for count, (predicted, output) in enumerate(along, 1):
            done = torch.full((len(own),), count, device=output.q_halt.device)
            known = {"change": supervision.relative_change(before, output.state)} if halting.needs_change else {}
            stops = halting.halts(done, output.q_halt, output.q_continue, None, **known).cpu()
            final[going], steps[going] = predicted[going], count
            going, before = going & ~stops, output.state
            if not going.any():
                break
        solved.append(task.is_solved(own.inputs, final).double())
        spent.append(steps.double())
    return {"halted": torch.cat(solved).mean().item(), "halted segments": torch.cat(spent).mean().item()}


def _at_lengths(model: Model, trainer: Trainer, task: Task, lengths: Sequence[int]) -> dict[str, float]:
    """Return the share of sequences of other lengths that are solved."""
    segments, found = trainer.halting.max_segments, {}
    for length in lengths:
        other = at_length(task, length)
        (found[f"lengths@{length}"],) = _along(model, trainer, other, other.test_set(), [segments]).values()
    return found


def _voted(model: Model, trainer: Trainer, task: Task, augmentations: int) -> dict[str, float]:
    """Score the held-out pairs of ARC by votes."""
    assert isinstance(task, Arc)
    score = score_votes(model, trainer, task, augmentations)
    return {f"pass@{k}": share for k, share in score.pass_at.items()}


def _settled(model: Model, trainer: Trainer, task: Task, samples: Batch, multiples: Sequence[int]) -> dict[str, float]:
    """Follow the recursion, and say which share of the solved and of the unsolved samples has converged."""
    device = next(model.parameters()).device
    batch = samples[:SETTLE_SAMPLES].to(device)
    found: dict[str, float] = {}
    with torch.no_grad():
        x, state = model.encode(batch.inputs, batch.puzzle_ids), model.initial_state(*batch.inputs.shape)
    for multiple in multiples:
        segments = multiple * trainer.halting.max_segments
        trace = record(model.cell, state, x, segments * model.num_steps, lags=16, reevaluate=torch.float64)
        label = classify(trace)["joint"].label
        found[f"residual@{multiple}"] = float(np.median(trace.joint_relative))
        if (label == "too short").all():  # no verdict on runs of so few cycles
            continue
        converged = label == "converged"
        end = supervision.predict(model, batch.inputs, batch.puzzle_ids, segments)
        solved = task.is_solved(batch.inputs.cpu(), end.logits.argmax(-1).cpu()).numpy()
        for name, group in (("solved", solved), ("unsolved", ~solved)):
            if group.any():
                found[f"{name}@{multiple}"] = float(converged[group].mean())
        if solved.any():
            found[f"unsettled@{multiple}"] = 1 - found[f"solved@{multiple}"]
    return found

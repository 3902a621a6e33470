"""What a model answers to held-out samples after each segment, and the record of it that reports unfold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loopgrad.analysis import Verdicts
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.records import FollowedRecord
from loopgrad.experiments.records.kinds import LONGEST_LINE, MOST_LINES, Frame
from loopgrad.experiments.tasks import boards
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import BPTT
from loopgrad.models.halting import Halting
from loopgrad.models.losses import IGNORE
from loopgrad.models.model import Model, told
from loopgrad.models.supervision import relative_change

FOLLOWED = 4  # samples whose answers a record holds


@dataclass(frozen=True)
class Segment:
    """What samples have after a segment.

    Attributes:
        answer: (batch, seq_len) tokens.
        wrong: (batch, seq_len) bool, tokens that differ from the label and are scored; none where the answer is right.
        solved: (batch,) bool, whether the task's checker takes the answer.
        halts: (batch,) bool, whether the halting rule would stop the sample, exploration aside.
    """

    answer: Tensor
    wrong: Tensor
    solved: Tensor
    halts: Tensor


@torch.no_grad()
def segments_of(model: Model, trainer: Trainer, task: Task, batch: Batch, count: int) -> list[Segment]:
    """Return what samples have after each of `count` segments, whatever the halting rule says, on the host.

    Args:
        model: The model; its mode is left as it is.
        trainer: Whose halting rule and precision count.
        task: Whose checker judges.
        batch: Samples, on the device of the model.
        count: Segments from the initial state.
    """
    rule, found = trainer.halting, []
    before, depth = model.initial_state(*batch.inputs.shape), told(rule.depth(None))
    output = None
    for number in range(1, count + 1):
        with trainer.precision(batch.inputs.device):
            output = model(output and output.state, batch.inputs, batch.puzzle_ids, BPTT(), *depth)
        answer = output.logits.argmax(-1)
        solved = task.is_solved(batch.inputs.cpu(), answer.cpu())
        wrong = (answer != batch.labels).cpu() & (batch.labels != IGNORE).cpu() & ~solved[:, None]
        halts = _halts(rule, number, output.q_halt, output.q_continue, relative_change(before, output.state))
        before = output.state
        found.append(Segment(answer.cpu(), wrong, solved, halts.cpu()))
    return found


def _halts(rule: Halting, number: int, q_halt: Tensor, q_continue: Tensor, change: Tensor) -> Tensor:
    if getattr(rule, "exploration", 0):
        rule = replace(rule, exploration=0.0)  # type: ignore[type-var]
    more: dict[str, Any] = {"change": change} if rule.needs_change else {}
    segment = torch.full(q_halt.shape, number, dtype=torch.int64, device=q_halt.device)
    return rule.halts(segment, q_halt, q_continue, **more)


def followed(
    task: Task,
    batch: Batch,
    samples: Sequence[int],
    segments: Sequence[Segment],
    residuals: np.ndarray | None = None,
    verdicts: Mapping[str, Mapping[str, Verdicts]] | None = None,
) -> list[FollowedRecord]:
    """Return the record of samples that were followed.

    Args:
        task: Shows the answers.
        batch: The samples, one after the other as in `segments`, on any device.
        samples: Their numbers in the test set.
        segments: What they had after each segment.
        residuals: (cycles, samples) relative residuals over all streams; None where nothing settles.
        verdicts: By depth and stream, of the same samples.
    """
    found: list[FollowedRecord] = []
    for row, sample in enumerate(samples):
        inputs, right = batch.inputs[row].cpu(), batch.labels[row].cpu()
        frames: list[Frame] = []
        before = None
        for segment in segments:
            answer, wrong = segment.answer[row], segment.wrong[row]
            text = boards.board(task, inputs, answer)
            solved, halts = int(segment.solved[row]), int(segment.halts[row])
            frame: Frame = {"solved": solved, "halts": halts, "wrong": int(wrong.sum())}
            if text != before:  # else the frame before is shown on
                frame["lines"] = _lines(text)
                frame["marked"] = [list(it) for it in boards.places(task, inputs, answer, right, wrong)][:MOST_LINES]
            frames.append(frame)
            before = text
        own: FollowedRecord = {
            "sample": sample,
            "scored": int((right != IGNORE).sum()),
            "right": _lines(boards.board(task, inputs, right)),
            "frames": frames,
        }
        if residuals is not None:
            own["residuals"] = [float(it) if np.isfinite(it) else None for it in residuals[:, row]]
        if verdicts:
            own["verdicts"] = {
                depth: {name: LABELS.index(str(it.label[row])) for name, it in streams.items()}
                for depth, streams in verdicts.items()
            }
        found.append(own)
    return found


def _lines(text: str) -> list[str]:
    return [line[:LONGEST_LINE] for line in text.splitlines()[:MOST_LINES]]

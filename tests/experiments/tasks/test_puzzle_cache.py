"""Puzzles that are kept: the same as read, once per content, bounded, and never believed where they are wrong."""

import pickle

import numpy as np
import pytest

from loopgrad.experiments.tasks import Sudoku, puzzle_cache
from loopgrad.experiments.tasks.files import read_puzzles
from loopgrad.experiments.tasks.puzzle_cache import cached_puzzles


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of what is kept, nothing in it; every file is large enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(puzzle_cache, "LEAST_BYTES", 0)
    return tmp_path / "cache" / "loopgrad" / "puzzles"


@pytest.fixture
def file(tmp_path):
    task = Sudoku(size=4, num_train=30, num_test=2)
    train, _ = task._puzzles
    rows = ["source,question,answer,rating"]
    for question, answer, rating in zip(train.questions, train.answers, train.ratings, strict=True):
        rows.append(f"own,{''.join(map(str, question)).replace('0', '.')},{''.join(map(str, answer))},{rating}")
    path = tmp_path / "puzzles.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read as text."""
    seen = []

    def read(path, size):
        seen.append(path)
        return read_puzzles(path, size)

    monkeypatch.setattr(puzzle_cache, "read_puzzles", read)
    return seen


def equal(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("questions", "answers", "ratings"))


def test_a_content_is_read_once_wherever_it_lies(cache, file, reads, tmp_path):
    first = cached_puzzles(file, 4)
    (tmp_path / "copy.csv").write_bytes(file.read_bytes())
    for path in (file, tmp_path / "copy.csv"):
        assert equal(cached_puzzles(path, 4), read_puzzles(file, 4)) and equal(first, read_puzzles(file, 4))
    assert len(reads) == 1 and len(list(cache.iterdir())) == 1
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n")
    assert len(cached_puzzles(file, 4)) == len(first) - 1 and len(reads) == 2


def changed(name, change):
    def damage(path):
        with np.load(path) as arrays:
            held = dict(arrays)
        held[name] = change(held[name])
        np.savez(path, **held)

    return damage


def pickled(path):
    boards = np.empty(3, dtype=object)
    with open(path, "wb") as out:
        np.savez(out, questions=boards, answers=boards, ratings=boards)


def alone(path):
    with open(path, "wb") as out:
        np.save(out, np.zeros(3))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "text": lambda path: path.write_text("hello"),
    "pickle": lambda path: path.write_bytes(pickle.dumps([1])),
    "objects": pickled,
    "one array": alone,
    "another answer": changed("answers", lambda a: a[::-1].copy()),
    "a digit": changed("answers", lambda a: np.where(a == 4, 5, a).astype(a.dtype)),
    "fewer": changed("ratings", lambda a: a[:-1]),
    "none": changed("ratings", lambda a: a[:0]),
    "wider": changed("questions", lambda a: a.astype(np.int64)),
    "flipped": lambda path: path.write_bytes(bytes(b ^ (i == 900) for i, b in enumerate(path.read_bytes()))),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_wrong_is_read_anew_and_replaced(cache, file, reads, damage):
    wanted = cached_puzzles(file, 4)
    (kept,) = cache.iterdir()
    damage(kept)
    assert equal(cached_puzzles(file, 4), wanted) and len(reads) == 2
    assert equal(cached_puzzles(file, 4), wanted) and len(reads) == 2


def test_the_oldest_go_when_there_is_too_much(cache, file, monkeypatch):
    text = file.read_text()
    cached_puzzles(file, 4)
    (first,) = cache.iterdir()
    monkeypatch.setattr(puzzle_cache, "MOST_BYTES", first.stat().st_size * 5 // 2)
    for count in (1, 2, 3):
        file.write_text(text + "\n" * count)
        cached_puzzles(file, 4)
    assert len(list(cache.iterdir())) == 2 and not first.exists()


def test_where_nothing_can_be_kept_the_file_is_read(cache, file, reads, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert equal(cached_puzzles(file, 4), cached_puzzles(file, 4)) and len(reads) == 2


def test_a_small_file_leaves_nothing_and_a_bad_one_says_why(cache, file, tmp_path, monkeypatch):
    bad = tmp_path / "bad.csv"
    bad.write_text(file.read_text() + "own,1,2,3\n")
    with pytest.raises(ValueError, match="bad.csv, line 32: question has 1 characters"):
        cached_puzzles(bad, 4)
    with pytest.raises(ValueError, match="nowhere.csv"):
        cached_puzzles(tmp_path / "nowhere.csv", 4)
    monkeypatch.setattr(puzzle_cache, "LEAST_BYTES", 2**20)
    cached_puzzles(file, 4)
    assert not cache.exists() or not list(cache.iterdir())

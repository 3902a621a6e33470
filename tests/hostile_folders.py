"""Folders of the official layout that somebody has tampered with, by a seed and by hand."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def array(name: str, change: Callable[[np.ndarray], Any], part: str = "train") -> Callable[[Path], None]:
    """What replaces an array by a change of it."""

    def damage(folder: Path) -> None:
        path = folder / part / f"all__{name}.npy"
        np.save(path, change(np.load(path)), allow_pickle=True)

    return damage


def entry(position: Any, value: int) -> Callable[[np.ndarray], np.ndarray]:
    """A change of one number of an array."""

    def change(found: np.ndarray) -> np.ndarray:
        found = found.copy()
        found[position] = value
        return found

    return change


def figures(part: str = "train", **values: Any) -> Callable[[Path], None]:
    """What replaces figures of dataset.json; None takes one away."""

    def damage(folder: Path) -> None:
        path = folder / part / "dataset.json"
        told = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))

    return damage


def raw(name: str, content: bytes) -> Callable[[Path], None]:
    """What replaces a file by bytes."""
    return lambda folder: (folder / name).write_bytes(content) and None


def without(name: str) -> Callable[[Path], None]:
    """What takes a file or folder away."""

    def damage(folder: Path) -> None:
        path = folder / name
        for file in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
            file.unlink()
        path.rmdir() if path.is_dir() else path.unlink()

    return damage


def placed(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """What puts something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def header(text: str) -> bytes:
    """The beginning of a .npy file."""
    told = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told


def holes(path: Path, size: int = 2**40) -> None:
    """A file of no room that is said to be large."""
    path.touch()
    os.truncate(path, size)


TOKENS = "train/all__inputs.npy"
# what is put into a folder of mazes, and a word of why it is refused beside the file
FILES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no train": (without("train"), "train/dataset.json", "No such file"),
    "no test": (without("test"), "test/dataset.json", "No such file"),
    "no labels": (without("test/all__labels.npy"), "test/all__labels.npy", "No such file"),
    "no indices": (without("train/all__group_indices.npy"), "train/all__group_indices.npy", "No such file"),
    "no names": (without("identifiers.json"), "identifiers.json", "No such file"),
    "empty": (raw(TOKENS, b""), TOKENS, "empty"),
    "pointer": (raw(TOKENS, POINTER), TOKENS, "pointer of Git LFS"),
    "pointer of figures": (raw("train/dataset.json", POINTER), "train/dataset.json", "pointer of Git LFS"),
    "pickle": (raw(TOKENS, pickle.dumps([1])), TOKENS, "pickle"),
    "archive": (raw(TOKENS, b"PK\x03\x04" + bytes(99)), TOKENS, "zip"),
    "text": (raw(TOKENS, b"hello"), TOKENS, "begin"),
    "magic alone": (raw(TOKENS, b"\x93NUMPY"), TOKENS, "header"),
    "version": (raw(TOKENS, b"\x93NUMPY\x03\x00" + bytes(99)), TOKENS, "version 3.0"),
    "long header": (raw(TOKENS, b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{"), TOKENS, "header"),
    "deep header": (raw(TOKENS, header("(" * 3000)), TOKENS, "header"),
    "called header": (raw(TOKENS, header("__import__('os').system('touch canary')")), TOKENS, "header"),
    "odd header": (raw(TOKENS, header("{'descr': '<i4', 'fortran_order': False, 'shape': (3L, }")), TOKENS, "header"),
    "negative shape": (
        raw(TOKENS, header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 25), }")),
        TOKENS,
        "-1 x 25",
    ),
    "huge shape": (
        raw(TOKENS, header("{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999, 25), }")),
        TOKENS,
        "cut off",
    ),
    "cut": (lambda folder: os.truncate(folder / TOKENS, 200), TOKENS, "cut off"),
    "longer": (lambda folder: os.truncate(folder / TOKENS, 9000), TOKENS, "follows"),
    "objects": (array("inputs", lambda a: a.astype(object)), TOKENS, "objects"),
    "floats": (array("inputs", lambda a: a.astype(float)), TOKENS, "float64"),
    "flags": (array("inputs", lambda a: a > 1), TOKENS, "bool"),
    "texts": (array("inputs", lambda a: a.astype(str)), TOKENS, "str"),
    "fields": (array("inputs", lambda a: np.zeros(a.shape, dtype=[("a", "u1")])), TOKENS, "void"),
    "one dimension": (array("inputs", np.ravel), TOKENS, "2 dimensions"),
    "two dimensions": (array("group_indices", lambda a: a[None]), "train/all__group_indices.npy", "1 dimension"),
    "no rows": (array("inputs", lambda a: a[:0]), TOKENS, "nothing"),
    "by columns": (array("inputs", np.asfortranarray), TOKENS, "columns"),
    "pipe": (placed(TOKENS, os.mkfifo), TOKENS, "a pipe"),
    "pipe of figures": (placed("train/dataset.json", os.mkfifo), "train/dataset.json", "a pipe"),
    "folder": (placed(TOKENS, Path.mkdir), TOKENS, "a folder"),
    "device": (placed(TOKENS, lambda path: path.symlink_to("/dev/zero")), TOKENS, "a device"),
    "random device": (placed("identifiers.json", lambda p: p.symlink_to("/dev/urandom")), "identifiers.json", "device"),
    "dangling": (placed(TOKENS, lambda path: path.symlink_to("nowhere")), TOKENS, "No such file"),
    "circle": (placed(TOKENS, lambda path: path.symlink_to(path.name)), TOKENS, "Too many levels"),
    "process": (placed(TOKENS, lambda path: path.symlink_to("/proc/self/mem")), TOKENS, "Input/output error"),
    "holes": (placed(TOKENS, holes), TOKENS, "at most"),
    "holes of figures": (placed("train/dataset.json", holes), "train/dataset.json", "at most"),
    "holes of names": (placed("identifiers.json", holes), "identifiers.json", "at most"),
    "holes of indices": (placed("train/all__puzzle_indices.npy", holes), "train/all__puzzle_indices.npy", "at most"),
}
ARRAYS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "fewer labels": (array("labels", lambda a: a[:-1]), "train/all__labels.npy", "8 rows of 25 and 9 rows of 25"),
    "narrow labels": (array("labels", lambda a: a[:, :-1].copy()), "train/all__labels.npy", "rows of 24"),
    "other rows": (figures(seq_len=36), "train/dataset.json", "seq_len is 36"),
    "fewer puzzles": (array("puzzle_indices", lambda a: a[:-1]), "train/all__puzzle_indices.npy", "from 0 to 8"),
    "indices begin later": (array("puzzle_indices", lambda a: a + 1), "train/all__puzzle_indices.npy", "from 1 to 10"),
    "indices go down": (
        array("puzzle_indices", entry(3, 7)),
        "train/all__puzzle_indices.npy",
        "puzzle 3 would go from 7 to 4",
    ),
    "a puzzle of no rows": (array("puzzle_indices", entry(3, 4)), "train/all__puzzle_indices.npy", "from 4 to 4"),
    "below 0": (array("puzzle_indices", entry(3, -4)), "train/all__puzzle_indices.npy", "puzzle 2 would go"),
    "beyond": (array("group_indices", entry(-1, 2**31 - 1)), "train/all__group_indices.npy", "0 to 2147483647"),
    "unsigned": (
        array("group_indices", lambda a: entry(2, 2**64 - 1)(a.astype(np.uint64))),
        "train/all__group_indices.npy",
        "18446744073709551615 to 3",
    ),
    "one index": (array("group_indices", lambda a: a[:1]), "train/all__group_indices.npy", "from 0 to 0"),
    "many indices": (
        array("group_indices", lambda a: np.zeros(50, np.int32)),
        "train/all__group_indices.npy",
        "too many",
    ),
    "fewer identities": (
        array("puzzle_identifiers", lambda a: a[:-1]),
        "train/all__puzzle_identifiers.npy",
        "8 identities of 0 to 0, and there are 9",
    ),
    "another identity": (array("puzzle_identifiers", entry(2, 1)), "train/all__puzzle_identifiers.npy", "0 to 1"),
    "identity below 0": (array("puzzle_identifiers", entry(2, -1)), "train/all__puzzle_identifiers.npy", "-1 to 0"),
    "other groups": (figures(total_groups=8), "train/dataset.json", "total_groups is 8, and by the arrays it is 9"),
    "other mean": (figures(mean_puzzle_examples=1.5), "train/dataset.json", "mean_puzzle_examples is 1.5"),
    "other puzzles": (figures(total_puzzles=7), "train/dataset.json", "total_puzzles is 7"),
    "uneven": (
        lambda folder: (
            array("puzzle_indices", lambda a: np.delete(a, 1))(folder),
            array("puzzle_identifiers", lambda a: a[1:])(folder),
            array("group_indices", lambda a: np.array([0, 2, 3, 4, 5, 6, 7, 8], np.int32))(folder),
            figures(total_groups=7, mean_puzzle_examples=9 / 8)(folder),
        ),
        "train/all__puzzle_indices.npy",
        "puzzles of group 0 have 2 and 1 examples",
    ),
    "names": (raw("identifiers.json", b'["a", "b"]'), "identifiers.json", "2 names"),
    "no list": (raw("identifiers.json", b'{"a": 1}'), "identifiers.json", "list of names"),
    "numbers": (raw("identifiers.json", b"[1]"), "identifiers.json", "list of names"),
    "nested": (raw("identifiers.json", b"[" * 100_000), "identifiers.json", "brackets"),
    "not JSON": (raw("train/dataset.json", b'{"pad_id": 0,'), "train/dataset.json", "not JSON"),
    "no JSON": (raw("train/dataset.json", b" \n"), "train/dataset.json", "empty"),
    "digits": (raw("train/dataset.json", b'{"pad_id": ' + b"9" * 5000 + b"}"), "train/dataset.json", "not JSON"),
    "bytes": (raw("train/dataset.json", b"\xff\xfe{}"), "train/dataset.json", "UTF-16"),
    "a list": (raw("train/dataset.json", b"[]"), "train/dataset.json", "object"),
    "parts differ": (figures("test", num_puzzle_identifiers=2), "test/dataset.json", "is 2, and 1 in that of train"),
}
FIGURES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    **{
        f"no {name}": (figures(**{name: None}), "train/dataset.json", f"lacks {name}")
        for name in (
            *("pad_id", "ignore_label_id", "blank_identifier_id", "vocab_size", "seq_len", "sets"),
            *("num_puzzle_identifiers", "total_groups", "mean_puzzle_examples"),
        )
    },
    "other padding": (figures(pad_id=1), "train/dataset.json", "pad_id must be 0"),
    "true padding": (figures(pad_id=False), "train/dataset.json", "pad_id must be 0"),
    "other ignored": (figures(ignore_label_id=-100), "train/dataset.json", "ignore_label_id must be 0"),
    "other sets": (figures(sets=["all", "more"]), "train/dataset.json", "sets must be"),
    "set elsewhere": (figures(sets=["../test/all"]), "train/dataset.json", "sets must be"),
    "text": (figures(vocab_size="6"), "train/dataset.json", "vocab_size must be an integer"),
    "fraction": (figures(total_groups=9.0), "train/dataset.json", "total_groups must be an integer"),
    "true": (figures(num_puzzle_identifiers=True), "train/dataset.json", "must be an integer"),
    "nothing": (figures(seq_len=0), "train/dataset.json", "seq_len must be an integer of 1"),
    "huge": (figures(num_puzzle_identifiers=10**300), "train/dataset.json", "must be an integer of 1"),
    "no number": (figures(mean_puzzle_examples=float("nan")), "train/dataset.json", "mean_puzzle_examples must be"),
    "huge mean": (figures(mean_puzzle_examples=10**400), "train/dataset.json", "mean_puzzle_examples must be"),
}


def tamper(folder: Path, seed: int) -> None:
    """Change one to three files of a folder by a seed."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(sorted(it for it in folder.rglob("*") if it.is_file()))
        content = bytearray(path.read_bytes())
        where = rng.randrange(max(1, min(len(content), rng.choice((140, 10**6)))))
        change = rng.randrange(6)
        if change == 0:
            content[where : where + 1] = bytes([rng.randrange(256)])
        elif change == 1:
            del content[where : where + rng.randrange(1, 9)]
        elif change == 2:
            content[where:where] = rng.choice((b"0", b"9", b",", b"\0", b"{", b"'", b"\xff" * 8))
        elif change == 3:
            content[where] = (content[where] + rng.choice((1, -1))) % 256 if content else 0
        elif change == 4:
            other = rng.choice(sorted(it for it in folder.rglob(f"*{path.suffix}") if it.is_file()))
            content = bytearray(other.read_bytes())
        else:
            content[where:] = rng.choice((b"", content[where:] * 2, bytes(40)))
        path.write_bytes(bytes(content))

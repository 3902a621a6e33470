"""Character text: windows, a part that is never shown, tales with known dependencies, and files that are no text."""

import os
from collections import Counter

import hostile_puzzles
import numpy as np
import pytest
import torch

from loopgrad.experiments.tasks import IGNORE, Text, text_files
from loopgrad.experiments.tasks.tales import recalls, tales

SMALL = Text(length=40, num_chars=4000)


def as_text(task, tokens):
    return "".join(task.spec.symbols[token] for token in tokens.tolist())


def written(tmp_path, content, name="text.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_windows_are_of_the_shown_part_and_the_test_set_is_the_rest():
    text = tales(4000, 0)
    assert SMALL.held_out == text[3600:]
    test = SMALL.test_set()
    assert "".join(as_text(SMALL, row) for row in test.inputs) == text[3600:4000]
    starts = set()
    for step in range(40):
        for row in SMALL.train_batch(0, step, 64).inputs:
            starts.add(found := text.find(as_text(SMALL, row)))
            assert 0 <= found <= 3560
    assert len(starts) > 1000 and max(starts) > 3540 and min(starts) < 20  # they begin anywhere


def test_a_label_is_the_next_character_and_the_last_place_has_none():
    for batch in (SMALL.test_set(), SMALL.train_batch(1, 2, 5)):
        assert torch.equal(batch.labels[:, :-1], batch.inputs[:, 1:])
        assert (batch.labels[:, -1] == IGNORE).all()


def test_the_held_out_part_does_not_depend_on_the_length_and_num_test_takes_its_first_windows():
    long = Text(length=80, num_chars=4000, num_test=3)
    assert long.held_out == SMALL.held_out
    assert as_text(long, long.test_set().inputs.flatten()) == SMALL.held_out[:240]


def test_a_window_is_rendered_in_one_line_each():
    task = Text(length=6, num_chars=4000)
    tokens = torch.tensor([task.spec.symbols.index(it) for it in "\n{Ada "])
    assert task.render(tokens, torch.cat([tokens[1:], torch.tensor([IGNORE])])) == "text ↵{Ada \nnext {Ada ?"


# tales


def recalled_by_hand(text):
    """(place, distance) of every word said again, by a stack of frames and a list of the words of a line."""
    found, stack, line = [], [], []
    at = 0
    while at < len(text):
        end = at
        while end < len(text) and text[end].isalnum():
            end += 1
        if end > at:
            before = text[at - 1] if at else "\n"
            if before in "{[":
                stack.append((before, at))
            elif before in "}]":
                if stack and stack[-1][0] == {"}": "{", "]": "["}[before]:
                    found.append((at, at - stack.pop()[1]))
            else:
                line.append(at)
                if text[end : end + 1] == ".":
                    if len(line) == 3:
                        found.append((at, at - line[0]))
                    line = []
            at = end
        else:
            at += 1
    return found


def test_recalls_are_those_of_a_reader_with_a_stack():
    text = tales(30_000, 3)
    found = recalls(text)
    assert [(it.at, it.distance) for it in found] == recalled_by_hand(text)
    assert all(text[it.at] == text[it.at - it.distance] for it in found)


def test_what_was_opened_before_a_window_begins_is_no_recall_in_it():
    text = tales(2000, 3)
    whole = [(it.at, it.distance, it.at - it.distance) for it in recalls(text)]
    signs = {first for _, _, first in whole if text[first - 1] in "{["}  # of which the sign before the word is seen
    for start in range(1000):
        expected = [(at - start, distance) for at, distance, first in whole if first - (first in signs) >= start]
        assert [(it.at, it.distance) for it in recalls(text[start:])] == expected


def test_distances_reach_from_nine_to_more_than_a_thousand_characters():
    distances = np.array([it.distance for it in recalls(tales(300_000, 0))])
    assert set(distances[distances < 19]) == {9, 10}
    assert distances[(distances > 10) & (distances < 53)].min() == 19
    assert distances.max() > 1000
    for low, high, least in ((9, 11, 10_000), (19, 53, 5_000), (128, 512, 300), (512, 2048, 100)):
        assert ((distances >= low) & (distances < high)).sum() >= least


def test_nothing_but_the_first_mention_tells_a_word():
    text = tales(300_000, 1)
    for letters, share in (("ABCD", 0.06), ("bgpr", 0.02), ("abcd", 0.02)):
        kind = [text[it.at] for it in recalls(text) if text[it.at] in letters]
        if letters != "ABCD":  # colours and animals share letters: by their distance
            near = letters == "abcd"
            kind = [text[it.at] for it in recalls(text) if (it.distance < 19) == near and text[it.at].islower()]
        counts = Counter(kind)
        assert all(abs(count / len(kind) - 1 / 4) < share for count in counts.values()) and len(counts) == 4
        pairs = Counter(zip(kind, kind[1:], strict=False))  # nor does the one before
        assert all(abs(count / (len(kind) - 1) - 1 / 16) < share for count in pairs.values())


def test_tales_are_a_function_of_their_arguments_and_a_longer_one_goes_on():
    assert tales(5000, 7) == tales(5000, 7) == tales(9000, 7)[:5000]
    assert tales(5000, 7) != tales(5000, 8)


# the user's own text

TEXT = "Größe: 1 µm\tor so.\n\nA line;\x0c and another one.\n" * 20


@pytest.mark.parametrize("encoding, ending", [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\r")])
def test_a_file_is_read_whole_whatever_ends_its_lines(tmp_path, encoding, ending):
    path = written(tmp_path, TEXT.replace("\n", ending).encode(encoding))
    task = Text(length=8, path=path)
    assert task.spec.symbols == tuple(sorted(set(TEXT)))
    whole = TEXT.removesuffix("\n")
    shown = len(whole) - len(whole) // 10
    assert task.held_out == whole[shown:]
    for row in task.train_batch(0, 0, 200).inputs:
        assert as_text(task, row) in whole[:shown]


def test_characters_outside_the_first_plane_are_one_each(tmp_path):
    task = Text(length=2, path=written(tmp_path, "a\U0001f40db\U00010000" * 10))
    assert task.spec.symbols == ("a", "b", "\U00010000", "\U0001f40d")
    assert task.held_out == "a\U0001f40db\U00010000"


def _lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n" * 99)


WRONG = {
    "empty": (lambda path: path.touch(), "has 0 characters"),
    "short": (
        lambda path: path.write_text("a b" * 100),
        "has 300 characters, of which the last tenth is to hold 1 win",
    ),
    "one character": (lambda path: path.write_text("a" * 2000), "all characters of the text are 'a'"),
    "pointer": (_lfs, "a pointer of Git LFS"),
    "zeros": (lambda path: path.write_text("a\n" + "\0" * 4096), r"line 2: not text: character 1 is '\\x00'"),
    "escapes": (lambda path: path.write_text("ab \x1b[31m" * 4096), r"line 1: not text: character 4 is '\\x1b'"),
    "utf-16": (lambda path: path.write_bytes((TEXT * 9).encode("utf-16")), "UTF-16, to be saved as UTF-8"),
    "latin-1": (lambda path: path.write_bytes((TEXT * 9).encode("latin-1")), r"line 1: not UTF-8 text"),
    "missing": (lambda path: None, "cannot be read: No such file"),
    **{
        name: (hostile_puzzles.MADE[name], message)
        for name, message in {
            "folder": "cannot be read: a folder",
            "pipe": "cannot be read: a pipe",
            "socket": "cannot be read: a socket",
            "device": "cannot be read: a device",
            "huge": "and at most 134217728 are read",
            "gzip": "gzip data",
            "zip": "zip archive",
            "any bytes": "not (UTF-8 )?text",
            "circle": "cannot be read: Too many",
        }.items()
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_no_text_is_refused_in_one_line(tmp_path, name):
    make, message = WRONG[name]
    path = tmp_path / "text.txt"
    make(path)
    with pytest.raises(ValueError, match=message) as caught:
        Text(length=64, path=str(path)).test_set()
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_more_different_characters_than_are_told_apart_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_SYMBOLS", 9)
    with pytest.raises(ValueError, match="10 different characters, and at most 9"):
        Text(length=2, path=written(tmp_path, "0123456789" * 9)).spec  # noqa: B018


@pytest.mark.parametrize(
    "values, message",
    [
        ({"length": 1}, r"length=...\) must be at least 2"),
        ({"num_chars": 0}, r"num_chars=...\) must be at least 1"),
        ({"num_test": 0}, r"num_test=...\) must be at least 1"),
        ({"path": "a", "num_chars": 5}, r"num_chars=...\) is for the tales"),
    ],
)
def test_hyperparameters_out_of_range_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Text(**values)


def test_tales_too_short_for_their_windows_say_so():
    with pytest.raises(
        ValueError, match="the tales have 4000 characters, of which the last tenth is to hold 11 windows"
    ):
        Text(length=40, num_chars=4000, num_test=11).test_set()
    with pytest.raises(ValueError, match="raise num_chars or lower length"):
        Text(length=401, num_chars=4000).train_batch(0, 0, 1)
    assert len(Text(length=400, num_chars=4000).test_set()) == 1


def test_the_command_refuses_a_file_by_its_name(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = refused("train", "task=text", f"task.path={tmp_path / 'pipe'}")
    assert "pipe: cannot be read: a pipe, not a file" in found

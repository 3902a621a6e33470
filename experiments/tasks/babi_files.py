"""Reads a task of bAbI from its published files; refuses by file, line and reason.

A line is `number text`, or `number question<TAB>answer<TAB>numbers of the supporting statements`; number 1 begins a
story, which goes on through its questions.
"""

import re
from pathlib import Path

from loopgrad.analysis.text_lines import lines_of
from loopgrad.experiments.tasks.stories import (
    MOST_BYTES,
    MOST_IN_LINE,
    MOST_STATEMENTS,
    MOST_STORIES,
    Story,
    check_story,
)

_NUMBERED = re.compile(r"([0-9]{1,6}) (.*\S)\s*", re.ASCII)
PATHS = 19  # the task whose answers are paths, so that hops are moves


def babi_file(folder: str | Path, number: int, part: str) -> Path:
    """Return the file of a task in a folder, `qa2_two-supporting-facts_train.txt` for 2 and "train".

    Raises:
        ValueError: The folder cannot be read, or holds none such, or several.
    """
    folder, name = Path(folder), f"qa{number}_*_{part}.txt"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder: give the one that holds {name}, such as en-10k of bAbI")
    found = sorted(folder.glob(name))
    if len(found) != 1:
        raise ValueError(f"{folder}: holds {len(found)} files {name}, and one is needed")
    return found[0]


def read_babi(path: str | Path, number: int) -> list[Story]:
    """Return the questions of a file, each with the statements before it in its story.

    Hops are counted as "2 moves" where answers are paths (task 19); elsewhere as "2 facts, 5-8 back": the supporting
    facts that the file names, and how many statements back the first of them lies, 1 for the last statement.

    Args:
        path: The file.
        number: The task of bAbI.

    Raises:
        ValueError: The file cannot be read, or a line is malformed; the message names file, line and reason.
    """
    found: list[Story] = []
    told: dict[int, str] = {}  # the statements of the story by their numbers
    last = 0
    for at, line in lines_of(path, MOST_BYTES, MOST_IN_LINE):
        if not line.strip():
            continue
        if not (match := _NUMBERED.fullmatch(line)):
            raise ValueError(f"{path}, line {at}: begins with no number: expected `1 Mary went to the kitchen.`")
        place, text = int(match[1]), match[2]
        if place not in (1, last + 1):
            raise ValueError(f"{path}, line {at}: number {place} follows {last}: a story counts 1, 2, 3, ...")
        if place == 1:
            told = {}
        last = place
        if "\t" not in text:
            if len(told) == MOST_STATEMENTS:
                raise ValueError(f"{path}, line {at}: a story of more than {MOST_STATEMENTS} statements")
            told[place] = text
            continue
        if len(found) == MOST_STORIES:
            raise ValueError(f"{path}, line {at}: at most {MOST_STORIES} questions are read")
        story, reason = _asked(text, told, number)
        if reason:
            raise ValueError(f"{path}, line {at}: {reason}")
        found.append(story)
    if not found:
        raise ValueError(f"{path}: the file holds no question")
    return found


def _asked(text: str, told: dict[int, str], number: int) -> tuple[Story, str]:
    fields = [field.strip() for field in text.split("\t")]
    answer = tuple(word.strip() for word in fields[1].split(","))
    support = fields[2].split() if len(fields) == 3 else []
    places = [int(word) for word in support if re.fullmatch("[0-9]{1,6}", word, re.ASCII)]
    story = Story(tuple(told.values()), fields[0], answer, "")
    if reason := check_story(story):
        return story, reason
    if not places or len(places) != len(support) or not told.keys() >= set(places):
        return story, "expected question<TAB>answer<TAB>numbers of supporting statements before it"
    if number == PATHS:
        return story._replace(hops=f"{len(answer)} moves"), ""
    back = sum(place >= min(places) for place in told)
    return story._replace(hops=f"{len(places)} facts, {_range(back)} back"), ""


def _range(back: int) -> str:
    """Return the range that doubles: 1, 2, 3-4, 5-8, 9-16, ..."""
    high = 1 << (back - 1).bit_length()
    low = high // 2 + 1
    return str(high) if low >= high else f"{low}-{high}"

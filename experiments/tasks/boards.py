"""The answer to a sample as its task shows it, with the wrong cells marked in colour and by a sign."""

from collections.abc import Sequence
from itertools import zip_longest
from os.path import commonprefix

from rich.text import Text
from torch import Tensor

from loopgrad.experiments.tasks.base import Task

BEHIND, INSTEAD, MISSING = "!", "x", "?"
LEGEND = {
    True: f"{BEHIND} stands behind a cell that is wrong",
    False: f"{INSTEAD} stands in place of a cell that is wrong, {MISSING} where it was left blank",
}
STYLE = "bold red"
TRIED = 3  # other tokens
Place = tuple[int, int, int]


def board(task: Task, inputs: Tensor, answer: Tensor) -> str:
    """Return what the task shows, without characters that a terminal would obey."""
    return legible(task.render(inputs, answer))


def legible(text: str) -> str:
    """Return a text with ? for each character that is no letter, sign, blank or end of a line."""
    return "".join(it if it.isprintable() or it == "\n" else "?" for it in text)


def places(task: Task, inputs: Tensor, answer: Tensor, right: Tensor, wrong: Tensor) -> list[Place]:
    """Return where the task's text shows each wrong cell of an answer: line, first and last character.

    A cell is where the text changes with its token, which is tried with those whose symbols are as long, and with the
    right one. Cells that the text does not show, or that move others, have no place.
    """
    shown, symbols = board(task, inputs, answer).splitlines(), task.spec.symbols
    found = []
    for cell in wrong.nonzero()[:, 0].tolist():
        length = len(symbols[answer[cell]])
        alike = [i for i, symbol in enumerate(symbols) if len(symbol) == length and i != answer[cell]]
        for other in [*alike[:TRIED], int(right[cell])]:
            changed = answer.clone()
            changed[cell] = other
            tried = _differences(shown, board(task, inputs, changed).splitlines())
            if fitting := [place for place in tried if 0 <= place[2] - place[1] < length]:
                found.append(_whole(shown, fitting[0], symbols[answer[cell]]))
                break
    return found


def _whole(shown: Sequence[str], place: Place, symbol: str) -> Place:
    """Return the place of a whole symbol, of which the other may have had a part, as 10 and 11 have the 1."""
    line, first, last = place
    for begin in (last - len(symbol) + 1, first):
        if begin >= 0 and shown[line].startswith(symbol, begin):
            return line, begin, begin + len(symbol) - 1
    return place


def _differences(one: Sequence[str], two: Sequence[str]) -> list[Place]:
    """Return what the first of two texts has in the only line in which they differ, as it stands or has moved."""
    lines = [(i, a, b) for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
    if len(one) != len(two) or len(lines) != 1:
        return []
    line, a, b = lines[0]
    columns = [i for i, (left, right) in enumerate(zip_longest(a, b, fillvalue=" ")) if left != right]
    if not columns:
        return []
    behind = len(commonprefix([a[::-1], b[::-1]]))
    return [(line, columns[0], columns[-1]), (line, columns[0], len(a) - behind - 1)]


def have_room(text: str, found: Sequence[Place]) -> bool:
    """Return whether behind each place there is a blank, or the end of the line."""
    lines = text.splitlines()
    return all(lines[line][last + 1 : last + 2] in ("", " ") for line, _, last in found)


def marked(text: str, found: Sequence[Place], room: bool) -> Text:
    """Return a text with wrong cells in colour, and a sign behind each where there is room, else in its place."""
    width = max(last for _, _, last in found) + 2 if found else 0
    lines = [list(line.ljust(width) if found else line) for line in text.splitlines()]
    styled = set()
    for line, first, last in found:
        styled |= {(line, column) for column in range(first, last + 1 + room)}
        if room:
            lines[line][last + 1] = BEHIND
        else:
            for column in range(first, last + 1):
                lines[line][column] = MISSING if lines[line][column] == " " else INSTEAD
    told = Text()
    for number, line in enumerate(lines):
        written = len("".join(line).rstrip())
        for column, letter in enumerate(line[:written]):
            told.append(letter, STYLE if (number, column) in styled else None)
        told.append("\n" * (number < len(lines) - 1))
    return told

"""A text with long dependencies that are known: tales in frames, each closed by the word that opened it."""

import re
from dataclasses import dataclass

import numpy as np

from loopgrad.experiments.tasks.streams import random_stream

NAMES, COLOURS, ANIMALS = ("Ada", "Ben", "Cleo", "Dan"), ("blue", "green", "pink", "red"), ("ant", "bee", "cat", "dog")
VERBS = ("hears", "sees")
FEWEST_PARTS, MOST_PARTS, MOST_LINES = 2, 32, 3
# a line is closed by the word before its full stop, the other two by the word behind their closing sign
_FRAME = re.compile(
    r"(?P<open>[{\[])(?P<opener>\w+)|(?P<close>[}\]])(?P<closer>\w+)|(?P<line>\w+) \w+ (?P<again>\w+)\."
)


def tales(num_chars: int, data_seed: int) -> str:
    """Return tales, `num_chars` characters of them, a pure function of its arguments.

    `{Ada [red cat sees cat. dog hears dog. ]red [blue ant sees ant. ]blue }Ada` and a line feed are a tale: a line says
    again which animal it began with, a part which colour, a tale whose it is. Each word is drawn by itself from four,
    so that nothing but its first mention tells it, and no later mention helps: an animal lies 9 or 10 characters back,
    a colour 19 to 52, a name 53 to 1894. A part has 1 to 3 lines and a tale 2 to 32 parts, their logarithm uniform.

    Args:
        num_chars: Length; the last tale is cut off.
        data_seed: Seed of all draws.
    """
    rng, found, length = random_stream(data_seed, 3), [], 0
    while length < num_chars:
        found.append(_tale(rng))
        length += len(found[-1])
    return "".join(found)[:num_chars]


def _tale(rng: np.random.Generator) -> str:
    parts, name = [], _one(rng, NAMES)
    for _ in range(_log_uniform(rng, FEWEST_PARTS, MOST_PARTS)):
        colour, lines = _one(rng, COLOURS), []
        for _ in range(_log_uniform(rng, 1, MOST_LINES)):
            animal = _one(rng, ANIMALS)
            lines.append(f"{animal} {_one(rng, VERBS)} {animal}. ")
        parts.append(f"[{colour} {''.join(lines)}]{colour} ")
    return f"{{{name} {''.join(parts)}}}{name}\n"


def _one(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[rng.integers(len(words))]


def _log_uniform(rng: np.random.Generator, least: int, most: int) -> int:
    return int(np.exp(rng.uniform(np.log(least), np.log(most + 1))))


@dataclass(frozen=True)
class Recall:
    """A character that can be told from an earlier mention alone.

    Attributes:
        at: Its place in the text, the first of a word that is said again; the rest of the word follows from it.
        distance: Characters since the same character of the first mention.
    """

    at: int
    distance: int


def recalls(text: str) -> list[Recall]:
    """Return every recall of a text of `tales`, in order; of frames that were opened before it there is none."""
    found, opened = [], {"{": [], "[": []}
    for match in _FRAME.finditer(text):
        if match["open"]:
            opened[match["open"]].append(match.start("opener"))
        elif match["line"]:
            if match["line"] == match["again"]:  # else the text begins within the word
                found.append(Recall(match.start("again"), match.start("again") - match.start("line")))
        elif waiting := opened[{"}": "{", "]": "["}[match["close"]]]:
            found.append(Recall(match.start("closer"), match.start("closer") - waiting.pop()))
    return found

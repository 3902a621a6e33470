"""Puzzles in words that reasoning-gym makes, cut into statements and a question."""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from loopgrad.experiments.tasks.stories import Story

Entry = Mapping[str, Any]
# ends of sentences: behind a full stop, a question mark, or a full stop within quotation marks
_END = re.compile(r"(?<=[.?])\s+|(?<=\.[\"”])\s+")


class Kind(NamedTuple):
    """A dataset of reasoning-gym.

    Attributes:
        sizes: Smallest and largest number of people or houses.
        settings: Of the dataset, by that number.
        read: Cuts what it gives into a story.
        counted: What that number is of.
    """

    sizes: tuple[int, int]
    settings: Callable[[int], dict[str, Any]]
    read: Callable[[Entry], tuple[tuple[str, ...], str, tuple[str, ...]]]
    counted: str


def family(entry: Entry) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return the statements, the question and the answer of family_relationships: one word."""
    told, _, asked = entry["question"].partition("\n\n")
    return tuple(_sentences(told)), _sentences(asked)[0], (entry["answer"],)


def knights(entry: Entry) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return those of knights_knaves: for each person "knight" or "knave", whatever they are called there."""
    told, mark, _ = entry["question"].partition(" So who is ")
    if not mark:
        raise ValueError("a puzzle of knights_knaves without its question")
    names = ", ".join(map(str, entry["metadata"]["names"]))
    answer = tuple("knight" if honest else "knave" for honest in entry["metadata"]["solution"])
    return tuple(_sentences(told)), f"Who of {names} tells the truth?", answer


def zebra(entry: Entry) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Return those of zebra_puzzles: the name of a person."""
    *told, asked = [part for part in entry["question"].split("\n\n") if part]
    lines = [line.strip() for part in told for line in part.splitlines()]
    return (
        tuple(re.sub(r"^(?:-|\d+\.) +", "", line) for line in lines if line),
        _sentences(asked)[0],
        (entry["answer"],),
    )


def _sentences(text: str) -> list[str]:
    return [it for it in _END.split(text.strip()) if it]


KINDS = {
    "family_relationships": Kind(
        (3, 12), lambda size: {"min_family_size": size, "max_family_size": size}, family, "people"
    ),
    "knights_knaves": Kind((2, 8), lambda size: {"n_people": size}, knights, "people"),
    "zebra_puzzles": Kind((2, 6), lambda size: {"num_people": size, "num_characteristics": size}, zebra, "houses"),
}


def generated(name: str, size: int, seed: int) -> Iterator[Story]:
    """Yield different puzzles of one size, always the same ones for a seed; they end when no new ones come.

    Raises:
        ValueError: reasoning-gym is not installed, or gives what cannot be read.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ValueError("puzzles of reasoning-gym need that package: pip install 'loopgrad[reasoning]'")
    import reasoning_gym  # pyright: ignore[reportMissingImports]

    kind, seen, idle = KINDS[name], set(), 0
    made = reasoning_gym.create_dataset(name, size=2**31 - 1, seed=seed, **kind.settings(size))
    for number in range(2**31 - 1):
        entry = made[number]
        try:
            story = Story(*kind.read(entry), f"{size} {kind.counted}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"reasoning-gym's {name} is of another version than 0.1.25 and cannot be read") from error
        if story[:2] not in seen:
            seen.add(story[:2])
            idle = 0
            yield story
        elif (idle := idle + 1) > 1000:
            return

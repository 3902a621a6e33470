"""The check of plain values against a type names the first place that is wrong, and what it must be."""

from typing import Annotated, Any, TypedDict

import pytest

from loopgrad.experiments.records.schema import Beside, Between, Matches, check, holds


class Part(TypedDict):
    values: Annotated[list[float | None], Between(2, 3)]


class Own(TypedDict):
    at: int


class Thing(TypedDict, total=False):
    name: Annotated[str, Between(1, 4)]
    count: Annotated[int, Between(0)]
    flag: bool
    part: Part | None
    parts: list[Part]
    by_name: dict[Annotated[str, Matches("[a-z]+", "must be small letters")], list[Annotated[int, Between(0, 9)]]]
    mixed: Annotated[dict[str, Part], Beside(Own), Between(1, 2)]
    other: Any


PART = {"values": [1, None]}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"unknown": object()},
        {"name": "abcd", "count": 0, "flag": True, "part": None, "other": {"deep": [1]}},
        {"part": {"values": [1, 2.5, None], "more": 1}, "parts": [], "by_name": {}},
        {"parts": [PART, PART], "by_name": {"a": [0, 9]}, "mixed": {"at": 1, "x": PART}},
    ],
)
def test_what_fits_passes(value):
    check(value, Thing)
    assert holds(value, Thing)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the record cannot be a list of 0: must be an object"),
        ({"name": ""}, "name cannot have length 0: at least 1"),
        ({"name": "abcde"}, "name cannot have length 5: at most 4"),
        ({"name": None}, "name cannot be null: must be a text"),
        ({"count": -1}, "count cannot be -1: at least 0"),
        ({"count": 1.0}, "count cannot be 1.0: must be an integer"),
        ({"count": True}, "count cannot be true: must be an integer"),
        ({"count": "1" * 100}, f'count cannot be "{"1" * 40}": must be an integer'),
        ({"flag": 1}, "flag cannot be 1: must be true or false"),
        ({"part": {}}, "part lacks values"),
        ({"part": {"values": [1]}}, "part.values cannot have length 1: at least 2"),
        ({"part": {"values": [1, True]}}, "part.values[1] cannot be true"),
        ({"parts": [PART, {"values": [0.5, "1"]}]}, 'parts[1].values[1] cannot be "1"'),
        ({"by_name": {"a": [3, 10]}}, "by_name.a[1] cannot be 10: at most 9"),
        ({"by_name": {"A": []}}, 'the name by_name.A cannot be "A": must be small letters'),
        ({"mixed": {"x": PART}}, "mixed lacks at"),
        ({"mixed": {"at": 0, "x": 1}}, "mixed.x cannot be 1: must be an object"),
        ({"mixed": {"at": 0, "x": PART, "y": PART}}, "mixed cannot have length 3: at most 2"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(value, message):
    with pytest.raises(ValueError) as refusal:
        check(value, Thing)
    assert str(refusal.value).startswith(message)
    assert not holds(value, Thing)

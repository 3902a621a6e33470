"""Whether plain values, as JSON gives them, are what a type says; the first place that is not is named.

Types are those of a TypedDict: TypedDict, dict, list, unions, int, float (which an int is too), str, bool, None, Any;
limits are put beside them by Annotated.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
_WORDS |= {dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Between:
    """Least and greatest value of a number, or length of a text, list or dict; None where there is no limit."""

    least: float | None
    most: float | None = None

    def broken(self, value: Any) -> str:
        """Return what a value breaks, nothing if it is within."""
        size, of = (value, "be") if isinstance(value, int | float) else (len(value), "have length")
        if self.least is not None and size < self.least:
            return f"cannot {of} {size}: at least {self.least}"
        if self.most is not None and size > self.most:
            return f"cannot {of} {size}: at most {self.most}"
        return ""


@dataclass(frozen=True)
class Matches:
    """The pattern that a whole text must have, and what that is called."""

    pattern: str
    words: str

    def broken(self, value: str) -> str:
        """Return what a value breaks, nothing if it has the pattern."""
        return "" if re.fullmatch(self.pattern, value) else f"cannot be {_shown(value)}: {self.words}"


@dataclass(frozen=True)
class Beside:
    """Keys of a dict that have types of their own, those of a TypedDict; all others have the type of its values."""

    kind: Any


class Mismatch(ValueError):
    """A value is not what its type says; carries the place, such as "residuals.joint.map[1]"."""

    def __init__(self, place: str, reason: str):
        super().__init__(f"{place or 'the record'} {reason}")
        self.place = place


def check(value: Any, kind: Any, place: str = "") -> None:
    """Check a value against a type.

    Args:
        value: Plain values.
        kind: The type.
        place: Where the value stands, for messages.

    Raises:
        Mismatch: It, or something in it, is of another type or beyond a limit.
    """
    if kind is Any:
        return
    if get_origin(kind) is Annotated:
        kind, *limits = get_args(kind)
        rest = value
        for own in (it.kind for it in limits if isinstance(it, Beside)):
            _check_fields(value, own, place)
            rest = {name: it for name, it in value.items() if name not in _fields(own)}
        check(rest, kind, place)
        for limit in (it for it in limits if not isinstance(it, Beside)):
            if reason := limit.broken(value):
                raise Mismatch(place, reason)
    elif is_typeddict(kind):
        _check_fields(value, kind, place)
    elif get_origin(kind) in (Union, UnionType):
        _check_options(value, get_args(kind), place)
    else:
        _check_plain(value, kind, place)


def holds(value: Any, kind: Any) -> bool:
    """Return whether a value is what a type says."""
    try:
        check(value, kind)
    except Mismatch:
        return False
    return True


def _check_fields(value: Any, kind: Any, place: str) -> None:
    _check_plain(value, dict, place)
    for name, inner in _fields(kind).items():
        if name in value:
            check(value[name], inner, _at(place, name))
        elif name in kind.__required_keys__:
            raise Mismatch(place, f"lacks {name}")


def _check_options(value: Any, options: tuple[Any, ...], place: str) -> None:
    found = []
    for option in options:
        try:
            return check(value, option, place)
        except Mismatch as error:
            found.append(error)
    raise max(found, key=lambda error: len(error.place))  # the option that fits furthest


def _check_plain(value: Any, kind: Any, place: str) -> None:
    outer = get_origin(kind) or kind
    allowed = (int, float) if outer is float else outer
    if not isinstance(value, allowed) or (outer is not bool and type(value) is bool):
        raise Mismatch(place, f"cannot be {_shown(value)}: must be {_WORDS[outer]}")
    if outer is list and (inner := get_args(kind)):
        if set(map(type, value)) <= _types(inner[0]):
            return  # long lists of numbers are checked at once
        for i, item in enumerate(value):
            check(item, inner[0], f"{place}[{i}]")
    elif outer is dict and (inner := get_args(kind)):
        for key, item in value.items():
            check(key, inner[0], f"the name {_at(place, key)}")
            check(item, inner[1], _at(place, key))


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _types(kind: Any) -> set[type]:
    """Return the types that all values of a type without limits or parts may have; none of any other type."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found = [{int, float} if it is float else {it} for it in options if it in (int, float, str, bool, NoneType)]
    return set().union(*found) if len(found) == len(options) else set()


def _at(place: str, name: str) -> str:
    return f"{place}.{name[:80]}" if place else name[:80]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{_WORDS[type(value)]} of {len(value)}"
    return json.dumps(value[:40] if isinstance(value, str) else value)

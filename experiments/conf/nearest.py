"""The names nearest to a misspelt one."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 20


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a sentence with the names nearest to `name`; without a near one, the most alike of all."""
    last = name.rsplit(".", 1)[-1]
    # sorted twice: by name among those that are equally alike
    ranked = sorted(sorted(set(names)), key=lambda known: _likeness(name, known), reverse=True)
    ratios = {known: _ratio(last, known.rsplit(".", 1)[-1]) for known in ranked}
    least = max(0.5, max(ratios.values(), default=0) - 0.15)
    near = [known for known in ranked if ratios[known] >= least][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there is: {', '.join(ranked[:MOST_NAMES])}" + (", ..." if len(ranked) > MOST_NAMES else "")


def _likeness(name: str, known: str) -> float:
    """Compare two dotted keys: a key may be right but for its place, and a place right but for its key."""
    (place, _, last), (known_place, _, known_last) = name.rpartition("."), known.rpartition(".")
    same_place = 0.5 * _ratio(place, known_place) if place else 0.1 * (not known_place)
    return _ratio(last, known_last) + same_place


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()

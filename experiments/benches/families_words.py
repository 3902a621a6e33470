"""What the table of families says in words: who is beaten, how often, and by whom."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each estimator: in how many settings another is no worse in all three, and better in one."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["estimator"], []).append(row)
    told = {name: [row for row in own if not row["note"]] for name, own in groups.items()}
    free = [name for name, own in told.items() if own and not any(row["beaten by"] for row in own)]
    lines = [f"Beaten nowhere in error, peak bytes and FLOPs together: {', '.join(free) or 'none'}."]
    for name, own in told.items():
        beaten = Counter(row["beaten by"] for row in own if row["beaten by"])
        if beaten:
            (by, _), *_ = beaten.most_common(1)
            where = "everywhere" if beaten.total() == len(own) else f"in {beaten.total()} of {len(own)} settings"
            lines.append(f"{name} is beaten {where}, most often by {by}.")
    for row in (row for own in groups.values() for row in own if row["note"]):
        lines.append(f"{row['estimator']} on {row['cell']}, {row['updates']} updates: {row['note']}.")
    return "\n".join(lines)

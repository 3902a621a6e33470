"""What the table of Newton's method on trajectories says in words: up to which exponent it waits less than a loop."""

from collections.abc import Mapping, Sequence
from typing import Any


def words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line for each method: where it comes to the loop's states in a shorter chain, where not, and why."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    lines = []
    for name, own in groups.items():
        shorter = [row for row in own if row["met"] and row["speed-up"] > 1]
        said = [f"waits less than a loop at {_named(shorter)}" if shorter else "waits less than a loop nowhere"]
        longer = [row for row in own if row["met"] and row["speed-up"] <= 1]
        said += [f"comes to its states in a longer chain at {_named(longer)}"] if longer else []
        other = [row for row in own if not row["met"] and row["apart"] is not None]
        said += [f"ends with other states, of a residual within the tolerance, at {_named(other)}"] if other else []
        lost = [row for row in own if row["apart"] is None]
        said += [f"runs out of steps at {_named(lost)}"] if lost else []
        lines.append(f"{name} {'; '.join(said)}.")
    return "\n".join(lines)


def _named(rows: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{row['exponent']:+g} ({row['iterations']} steps)" for row in rows)

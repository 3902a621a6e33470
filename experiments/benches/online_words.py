"""What trainings under online gradients say in words: which ends below truncation that keeps no more bytes."""

from collections.abc import Mapping, Sequence
from typing import Any


def words(rows: Sequence[Mapping[str, Any]], beside: Mapping[str, str]) -> str:
    """Return a line for each online gradient, start and delay with trainings; "" without any.

    Args:
        rows: Of the bench.
        beside: The truncated gradient of the bytes of each online one.
    """
    of = {(row["start"], row["delay"], row["gradient"]): row for row in rows if row["loss"] is not None}
    pairs = [(of[at, delay, name], of.get((at, delay, beside[name]))) for at, delay, name in of if name in beside]
    return "\n".join(_line(online, truncated) for online, truncated in pairs if truncated is not None)


def _line(online: Mapping[str, Any], truncated: Mapping[str, Any]) -> str:
    said = "does not differ from truncation by more than their ranges"
    if online["greatest"] < truncated["least"]:
        said = "beats truncation"
    elif online["least"] > truncated["greatest"]:
        said = "is beaten by truncation"
    window = f"truncated to {truncated['window']} updates {_ends(truncated)}"
    return f"{online['start']}, delay {online['delay']}: {online['gradient']} {said}: {_ends(online)}, {window}."


def _ends(row: Mapping[str, Any]) -> str:
    size = f"{row['saved KiB']:.0f} KiB kept, {row['peak KiB']:.0f} at the peak"
    return f"{row['loss']:.3g} ({row['least']:.3g} to {row['greatest']:.3g}; {size})"

"""A row of the accelerator's record."""

from typing import Any

KEYS = (
    *("part", "what", "precision", "estimator", "seconds", "floor", "peak GiB", "foreseen GiB"),
    *("bits", "error", "accuracy", "note", "at", "curve"),
)


def row(part: str, what: str, estimator: str, **values: Any) -> dict[str, Any]:
    """Return a row with None for what is not measured; `curve` is recorded and not printed.

    Attributes:
        floor: Seconds that its FLOPs take at the rate of a matrix product.
        bits: Whether gradients equal BPTT's bit for bit.
        error: Largest relative error of a gradient, beside BPTT's.
    """
    given = {"part": part, "what": what, "estimator": estimator, "curve": [], **values}
    if unknown := given.keys() - set(KEYS):
        raise ValueError(f"a row has no {unknown}")
    return {key: given.get(key) for key in KEYS}

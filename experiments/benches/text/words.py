"""What the rows of `loopgrad bench text` say: which estimators seeds do not tell apart, and which of them to use."""

import math
from typing import Any

Row = dict[str, Any]

EXACT = "BPTT"


def words(rows: list[Row]) -> str:
    """Return a line per length and a sentence that says what to use; every figure and every name is of the rows.

    An estimator is among the best at a length if its range over the seeds reaches down to that of the least mean loss.
    To be used is, of those that are among the best at every length, the one of fewest FLOPs and the one of fewest peak
    bytes, both taken at the greatest length.

    Args:
        rows: Rows of the bench.
    """
    trained = [row for row in rows if row["losses"] and all(math.isfinite(it) for it in _last(row))]
    lengths = list(dict.fromkeys(row["length"] for row in trained))
    if not lengths:
        return "No training ended with a finite loss."
    by_length = {length: [row for row in trained if row["length"] == length] for length in lengths}
    said = [_at(length, by_length[length]) for length in lengths]
    return "\n".join([*said, *_far(by_length), _use(by_length)])


def among_best(rows: list[Row]) -> list[Row]:
    """Return the rows of a length whose range over seeds meets that of the row of least mean loss."""
    best = _best(rows)
    return [row for row in rows if min(_last(row)) <= max(_last(best))]


def _at(length: int, rows: list[Row]) -> str:
    best, alike = _best(rows), among_best(rows)
    others = [row for row in rows if row not in alike]
    met = _listed([row["estimator"] for row in alike if row is not best])
    said = f"{length} characters: least loss {best['estimator']}, {_range(best, _last(best))}"
    said += f"; ranges overlap with {met}" if met else "; no other range meets it"
    if others:
        above = [f"{row['estimator']} {_range(row, _last(row))}" for row in sorted(others, key=lambda row: row["loss"])]
        said += f"; apart from it {_listed(above)}"
    return said + "."


def _far(by_length: dict[int, list[Row]]) -> list[str]:
    """Say of the farthest recalls whether what BPTT learned of them is lost by others."""
    said = []
    for length, rows in by_length.items():
        exact = next((row for row in rows if row["estimator"] == EXACT), None)
        if exact is None or not all(math.isfinite(it[-1]) for it in exact["recalled"]):
            continue
        told = [it[-1] for it in exact["recalled"]]
        worse = [row for row in rows if min(it[-1] for it in row["recalled"]) > max(told)]
        names = [f"{row['estimator']} {_of([it[-1] for it in row['recalled']])}" for row in worse]
        said.append(
            f"Farthest recalls at {length} characters: {EXACT} {_of(told)}; "
            + (f"worse, ranges apart: {_listed(names)}." if names else "nobody worse beyond the range of seeds.")
        )
    return said


def _use(by_length: dict[int, list[Row]]) -> str:
    alike = {length: {row["estimator"] for row in among_best(rows)} for length, rows in by_length.items()}
    greatest = max(by_length)
    # what is left out at a length, for being BPTT there, is judged where it is not
    present = {length: {row["estimator"] for row in rows} for length, rows in by_length.items()}
    at_last = [
        row
        for row in by_length[greatest]
        if all(row["estimator"] in alike[length] or row["estimator"] not in present[length] for length in by_length)
    ]
    if not at_last:
        each = [f"{_cheapest(among_best(rows), 'peak MiB')['estimator']} at {n}" for n, rows in by_length.items()]
        return f"What to use: it depends on the length, none is among the best at all: of fewest bytes {_listed(each)}."
    few, small = (_cheapest(at_last, key) for key in ("GFLOP", "peak MiB"))
    every = f"of {_listed(row['estimator'] for row in at_last)}, which seeds do not tell from the best at any length"
    if len(at_last) == 1:
        every = "alone among the best at every length"
    exact = next((row for row in by_length[greatest] if row["estimator"] == EXACT), None)
    if few is small:
        return f"What to use: {few['estimator']}, {every}{_against(few, exact, greatest)}."
    return (
        f"What to use: {small['estimator']} where memory is short{_against(small, exact, greatest)}; "
        f"{few['estimator']} where arithmetic is{_against(few, exact, greatest)}; {every}."
    )


def _against(row: Row, exact: Row | None, length: int) -> str:
    if exact is None or row is exact:
        return ""
    peak, flops = row["peak MiB"] / exact["peak MiB"], row["GFLOP"] / exact["GFLOP"]
    return f" ({peak:.2g} of {EXACT}'s peak bytes and {flops:.2g} of its FLOPs at {length})"


def _cheapest(rows: list[Row], key: str) -> Row:
    return min(rows, key=lambda row: (row[key], row["loss"]))


def _best(rows: list[Row]) -> Row:
    return min(rows, key=lambda row: row["loss"])


def _last(row: Row) -> list[float]:
    return [curve[-1] for curve in row["losses"]]


def _range(row: Row, values: list[float]) -> str:
    return f"{row['loss']:.3g} ({min(values):.3g}-{max(values):.3g})"


def _of(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def _listed(names: Any) -> str:
    *before, last = [*names] or [""]
    return f"{', '.join(before)} and {last}" if before else last

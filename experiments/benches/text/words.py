"""What the rows of `loopgrad bench text` say: which estimators seeds do not tell apart, and which of them to use."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from loopgrad.experiments.benches.text.sizes import EXACT

Row = dict[str, Any]
ByLength = dict[int, list[Row]]
Values = Callable[[Row], list[float]]

CLOSE = 1.05
GUESSED = math.log(4)
"""Loss of a recall for whom knows the four words that it may be and nothing more."""


def words(rows: list[Row]) -> str:
    """Return a line per length and a sentence that says what to use; every figure and every name is of the rows.

    An estimator is among the best at a length if its range over the seeds reaches down to that of the least mean. To be
    used is, of those that are among the best at every length, the one of fewest FLOPs and the one of fewest peak bytes,
    both taken at the greatest length; a few percent (CLOSE) decide nothing there, the other number does. The same is
    said of the farthest recalls alone, which are so few that the mean loss hardly shows them, at the lengths at which
    the best has learnt them from every seed.

    Args:
        rows: Rows of the bench.
    """
    said = []
    for what, use, values, guessed in (
        ("Held-out loss", "What to use", losses, math.inf),
        ("Farthest recalls", "What to use where these matter", farthest, GUESSED),
    ):
        by_length: ByLength = {}
        for row in rows:
            if values(row) and all(map(math.isfinite, values(row))):
                by_length.setdefault(row["length"], []).append(row)
        said += [f"{what}, {length} characters: {_ranked(mine, values)}." for length, mine in by_length.items()]
        lost = [row for row in rows if values(row) and not all(map(math.isfinite, values(row)))]
        if lost:
            named = _listed(f"{row['estimator']} at {row['length']}" for row in lost)
            said.append(f"{what}: not finite of {named}.")
        learnt = {length: mine for length, mine in by_length.items() if max(values(_best(mine, values))) < guessed}
        if left := [str(length) for length in by_length if length not in learnt]:
            said.append(f"{what}, {_listed(left)} characters: no estimator has learnt them from every seed.")
        if learnt:
            where = f", {_listed(map(str, learnt))} characters" if left else ""
            said.append(f"{use}{where}: {_to_use(learnt, values)}.")
    return "\n".join(said)


def losses(row: Row) -> list[float]:
    """Return the held-out loss of each seed at the end."""
    return [curve[-1] for curve in row["losses"]]


def farthest(row: Row) -> list[float]:
    """Return that of the farthest recalls."""
    return [bands[-1] for bands in row["recalled"]]


def among_best(rows: list[Row], values: Values) -> list[Row]:
    """Return the rows of a length whose range over seeds meets that of the row of least mean."""
    least = max(values(_best(rows, values)))
    return [row for row in rows if min(values(row)) <= least]


def _ranked(rows: list[Row], values: Values) -> str:
    best, alike = _best(rows, values), among_best(rows, values)
    met = [row["estimator"] for row in alike if row is not best]
    above = sorted((row for row in rows if row not in alike), key=lambda row: _mean(values(row)))
    said = f"least {_shown(best, values)}; "
    said += f"ranges overlap with {_listed(met)}" if met else "no other range meets it"
    return said + (f"; above {_listed(_shown(row, values) for row in above)}" if above else "")


def _to_use(by_length: ByLength, values: Values) -> str:
    greatest = max(by_length)
    alike = {length: {row["estimator"] for row in among_best(rows, values)} for length, rows in by_length.items()}
    # what is left out at a length, for being BPTT there, is judged where it is not
    absent = {length: {row["estimator"] for row in by_length[greatest]} for length in by_length}
    for length, rows in by_length.items():
        absent[length] -= {row["estimator"] for row in rows}
    everywhere = [
        row
        for row in by_length[greatest]
        if all(row["estimator"] in alike[length] | absent[length] for length in by_length)
    ]
    if not everywhere:
        each = [
            f"{_cheapest(among_best(it, values), 'peak MiB', 'GFLOP')['estimator']} at {n}"
            for n, it in by_length.items()
        ]
        return f"it depends on the length, for none is among the best at each; of fewest bytes are {_listed(each)}"
    exact = next((row for row in by_length[greatest] if row["estimator"] == EXACT), None)
    why = f"of {_listed(row['estimator'] for row in everywhere)}, which seeds do not tell from the best at any length"
    if len(everywhere) == 1:
        why = "alone among the best at every length"
    few, small = _cheapest(everywhere, "GFLOP", "peak MiB"), _cheapest(everywhere, "peak MiB", "GFLOP")
    if few is small:
        return f"{few['estimator']}{_against(few, exact)}, {why}"
    return (
        f"{small['estimator']} where memory is short{_against(small, exact)}, {few['estimator']} where arithmetic "
        f"is{_against(few, exact)}; {why}"
    )


def _against(row: Row, exact: Row | None) -> str:
    if exact is None or row is exact:
        return ""
    peak, flops = row["peak MiB"] / exact["peak MiB"], row["GFLOP"] / exact["GFLOP"]
    return f" ({peak:.2g} of {EXACT}'s peak bytes and {flops:.3g} of its FLOPs at {row['length']})"


def _cheapest(rows: list[Row], first: str, then: str) -> Row:
    least = min(row[first] for row in rows)
    return min((row for row in rows if row[first] <= CLOSE * least), key=lambda row: row[then])


def _best(rows: list[Row], values: Values) -> Row:
    return min(rows, key=lambda row: _mean(values(row)))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shown(row: Row, values: Values) -> str:
    mine = values(row)
    return f"{row['estimator']} {_mean(mine):.3g} ({min(mine):.3g}-{max(mine):.3g})"


def _listed(names: Iterable[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last

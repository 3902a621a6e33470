"""What the rows of `loopgrad bench forward` say, for whom a forward gradient is and for whom it is not."""

import math
from typing import Any

Row = dict[str, Any]

PANCHAL = (
    "Panchal et al. 2025 (arXiv 2506.21833) found the same of training: checkpointed backpropagation was up to 31.1 % "
    "more accurate, converged 34.8 % faster and took 3.8 times less compute than forward-mode and zeroth-order "
    "gradients at comparable memory."
)


def words(rows: list[Row], windowed: str) -> str:
    """Return a few paragraphs; every figure but those of Panchal et al. is taken from the rows.

    Args:
        rows: Rows of the bench.
        windowed: Name of the gradient that perturbs the state and differentiates the last updates exactly.
    """
    state, weights = ([r for r in rows if r["gradient"] == name] for name in (windowed, "weights"))
    # one pass of many tangents and one in turn: either may be the cheaper comparison
    carried = [r for r in rows if r["gradient"].startswith("state")]
    cheaper = [r for r in carried if r["same peak: forwards"] < r["forwards"]]
    good, bad = (choose(weights, key=lambda r: r["cosine"]) for choose in (max, min))
    best, worst = (choose(state, key=lambda r: r["cosine"]) for choose in (max, min))
    least, most = (choose(state, key=lambda r: r["K*"]) for choose in (min, max))
    below = [r for r in rows if r["K"] and math.isnan(r["same peak: forwards"])]
    said = [
        f"weights: cosine {_at(good)}, {_at(bad)}: sqrt(K / (P + K)), whatever the depth and the batch.",
        f"{windowed}: cosine {_at(best)}, {_at(worst)}. Less error than truncation from K = {_count(least['K*'])} "
        f"({_place(least)}) to K = {_count(most['K*'])} ({_place(most)}) tangents on.",
        f"In {len(cheaper)} of {len(carried)} rows that perturb the state the exact gradient takes fewer FLOPs at no "
        f"higher peak. {len(below)} rows are below every exact gradient's peak"
        + (f", with cosines up to {max(r['cosine'] for r in below):.2g}." if below else "."),
        "For whom: few parameters (step sizes, gains, hyperparameters), for which ForwardMode is exact; recursions "
        "that autograd cannot go through (mode='central'); small states in batches whose gradients agree.",
        "Not for whom: whoever is short of memory, since checkpoints are exact at the same peak; states or parameters "
        "in the thousands; whoever wants the least error for the FLOPs.",
        PANCHAL,
    ]
    return "\n".join(said)


def _at(row: Row) -> str:
    return f"{row['cosine']:.2g} ({_place(row)}, K = {row['K']})"


def _place(row: Row) -> str:
    return f"T = {row['T']}, {row['batch']} samples, P = {row['P']}"


def _count(tangents: float) -> str:
    return str(math.ceil(tangents)) if math.isfinite(tangents) else "?"

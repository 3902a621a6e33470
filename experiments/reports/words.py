"""Sentences that say what an analysis found, from its records."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from loopgrad.experiments.reports.conditions import Condition, at_last, outcomes, settled
from loopgrad.experiments.reports.summary import band


def residual(condition: Condition, depth: int, stream: str, kind: str = "reevaluated") -> str:
    """Return a residual as "0.31 (0.12-0.55)", means over seeds of quantiles over samples."""
    streams = [record["depths"][depth]["streams"][stream] for record in condition.records]
    found = [(it[kind] or it["residual"])["all"] for it in streams]
    return band(*np.mean([[np.inf if value is None else value for value in values] for values in found], axis=0))


def headline(every: Sequence[Condition]) -> str:
    """Return one paragraph about all conditions: do the deltas vanish, for whom, and when."""
    parts = []
    last = at_last(every)
    for depth, words in enumerate(("within the depth of training", "when the recursion is followed further")):
        told = []
        for outcome in ("solved", "unsolved"):
            found = [settled(condition, depth, outcome=outcome) for condition in last]
            if total := sum(it.total for it in found):
                told.append(f"{100 * sum(it.count for it in found) / total:.1f} % of {total} {outcome}")
        parts.append(f"{words}, {' and '.join(told)} samples converge")
    weights = sum(len(condition.records) for condition in last)
    return f"At the last step of {weights} set{'s' * (weights > 1)} of weights: {'; '.join(parts)}."


def sentence(condition: Condition, stream: str) -> str:
    """Return what one stream does, at both depths: counts with intervals, residuals with dtype, other verdicts."""
    parts = []
    for depth, words in enumerate(("the depth of training", "extrapolated")):
        first = condition.records[0]
        dtype = first["dtype"].get(stream) or " and ".join(sorted(set(first["dtype"].values())))
        found = settled(condition, depth, stream, by_puzzle=True)
        apart = outcomes(condition, depth, stream)
        split = [f"{n.get('converged', 0)} of {sum(n.values())} {outcome}" for outcome, n in apart.items() if n]
        cycles = f"{first['depths'][depth]['cycles']} cycles, {words} ({', '.join(split)})"
        text = f"{found.text().replace(' [', ' samples converged [', 1)} after {cycles}"
        if found.clustered:
            low, high = found.clustered
            text += f", {100 * low:.1f}-{100 * high:.1f} % by bootstrap over puzzles"
        if found.seeds:
            text += ", {:.1f} to {:.1f} % by seed".format(*(100 * share for share in found.seeds))
        text += f"; relative residual {residual(condition, depth, stream, 'residual')} in {dtype}"
        if first["depths"][depth]["streams"][stream]["reevaluated"]:
            text += f", {residual(condition, depth, stream)} re-evaluated in float64"
        others = Counter(apart["solved"]) + Counter(apart["unsolved"])
        del others["converged"]
        if others:
            text += "; " + ", ".join(f"{count} {label}" for label, count in others.items())
        parts.append(text)
    return f"{stream}: {'. '.join(parts)}."


_CAPTIONS = {
    "verdicts-training": "Verdicts of all streams jointly at training depth, by outcome; bar: 95 % interval.",
    "verdicts-extrapolated": "Verdicts of all streams jointly beyond training depth, by outcome at that depth.",
    "validity": "Gradients beside BPTT's, against the residual where they are taken; colour: spectral radius there.",
    "over-training": "Residual and spectral radius at training depth across training; mean, least and greatest seed.",
    "pareto": "Held-out accuracy beside the bytes that a training step keeps for backward.",
    "residuals": "Relative residual of a cycle, median and 5-95 % of samples, by outcome at the greatest depth.",
    "heatmap": "Relative residual of a cycle of every sample, sorted by verdict.",
    "trajectories": "States at the ends of cycles of one typical sample per verdict, in their principal plane.",
    "recurrence": "Distances between the states at the ends of cycles of the least settled sample of the first 48.",
    "memory": "Bytes kept for backward of 8 samples against the number of updates, measured and by their law.",
    "eigenvalues": "Leading eigenvalues of a cycle's Jacobian at the end of training depth.",
}


def caption(figure: str) -> str:
    """Return what a figure shows, by the end of its name; nothing of a figure of another name."""
    return next((_CAPTIONS[name] for name in sorted(_CAPTIONS, key=len, reverse=True) if figure.endswith(name)), "")

"""Sentences that say what an analysis found, from its records."""

from collections.abc import Sequence

import numpy as np

from loopgrad.experiments.records import DepthRecord
from loopgrad.experiments.reports.conditions import Condition, at_last, outcomes, settled


def headline(every: Sequence[Condition]) -> str:
    """Return one paragraph about all conditions: do the deltas vanish, for whom, and when."""
    parts = []
    last = at_last(every)
    for depth, words in enumerate(("within the depth of training", "when the recursion is followed further")):
        counts = {outcome: [0, 0] for outcome in ("solved", "unsolved")}
        for condition in last:
            for outcome, count in counts.items():
                found = settled(condition, depth, outcome=outcome)
                count[0] += found.count
                count[1] += found.total
        told = [f"{100 * n / of:.1f} % of {of} {outcome}" for outcome, (n, of) in counts.items() if of]
        parts.append(f"{words}, {' and '.join(told)} samples converge")
    weights = sum(len(condition.records) for condition in last)
    return f"At the last step of {weights} set{'s' * (weights > 1)} of weights: {'; '.join(parts)}."


def sentence(condition: Condition, stream: str) -> str:
    """Return what one stream does, at both depths: counts with intervals, residuals with dtype, other verdicts."""
    parts = []
    for depth, words in enumerate(("the depth of training", "extrapolated")):
        records = [record["depths"][depth] for record in condition.records]
        found = settled(condition, depth, stream)
        apart = outcomes(condition, depth, stream)
        split = [
            f"{counts.get('converged', 0)} of {sum(counts.values())} {outcome}"
            for outcome, counts in apart.items()
            if counts
        ]
        text = f"{found.text().replace(' [', ' samples converged [', 1)} after {records[0]['cycles']} cycles, {words}"
        text += f" ({', '.join(split)})"
        if found.clustered:
            low, high = found.clustered
            text += f", {100 * low:.1f}-{100 * high:.1f} % by bootstrap over puzzles"
        if found.seeds:
            text += ", {:.1f} to {:.1f} % by seed".format(*(100 * share for share in found.seeds))
        text += f"; relative residual {_residual(records, stream, 'residual')} in {_dtype(condition, stream)}"
        if records[0]["streams"][stream]["reevaluated"]:
            text += f", {_residual(records, stream, 'reevaluated')} re-evaluated in float64"
        others: dict[str, int] = {}
        for counts in apart.values():
            for label, count in counts.items():
                others[label] = others.get(label, 0) + count
        others.pop("converged", None)
        if others:
            text += "; " + ", ".join(f"{count} {label}" for label, count in others.items())
        parts.append(text)
    return f"{stream}: {'. '.join(parts)}."


def _residual(records: Sequence[DepthRecord], stream: str, kind: str) -> str:
    found = [record["streams"][stream][kind]["all"] for record in records]
    low, middle, high = np.mean([[np.inf if v is None else v for v in values] for values in found], axis=0)
    return f"{middle:.2g} ({low:.2g}-{high:.2g})"


def _dtype(condition: Condition, stream: str) -> str:
    dtypes = condition.records[0]["dtype"]
    return dtypes.get(stream) or " and ".join(sorted(set(dtypes.values())))


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
    """Return what a figure shows, by the end of its name."""
    name = next(name for name in sorted(_CAPTIONS, key=len, reverse=True) if figure.endswith(name))
    return _CAPTIONS[name]

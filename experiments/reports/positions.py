"""What a report says of verdicts per position: how many of each, and in how many samples the positions disagree."""

from collections.abc import Sequence

import numpy as np

from loopgrad.analysis.positions import PositionVerdicts
from loopgrad.analysis.verdicts import LABELS
from loopgrad.experiments.reports.conditions import Condition
from loopgrad.experiments.reports.tables import table

TEXT = (
    "Each position of a sample judged by itself, all streams jointly; shares over all positions of all samples. Mixed: "
    "samples whose positions have more than one verdict."
)


def by_position(every: Sequence[Condition]) -> list[str]:
    """Return the lines of a section; none where no record has verdicts of positions."""
    rows = []
    for condition in every:
        for depth, name in enumerate(("training depth", "extrapolated")):
            if any("positions" not in record["depths"][depth] for record in condition.records):
                continue
            found, solved = _pooled(condition, depth)
            cells = [_share(found.label[mask]) for mask in (solved, ~solved)]
            others = [f"{100 * share:.1f} {it}" for it, share in found.share.items() if it != "converged"]
            mixed = f"{int(found.disagree.sum())} of {found.disagree.size}"
            count = f"{found.label.size} ({found.label.shape[1]} a sample)"
            rows.append([condition.name, name, count, *cells, ", ".join(others) or "-", mixed])
    if not rows:
        return []
    header = ["weights", "depth", "positions", "converged %, of solved", "of unsolved", "others %", "mixed"]
    return ["## By position", "", TEXT, "", *table(header, rows), ""]


def _pooled(condition: Condition, depth: int) -> tuple[PositionVerdicts, np.ndarray]:
    """Return the verdicts of the samples of all seeds, and which are solved."""
    depths = [record["depths"][depth] for record in condition.records]
    texts = [text for it in depths for text in it.get("positions", {})["joint"]]
    labels = np.array(LABELS)[np.array([list(map(int, text)) for text in texts])]
    solved = np.concatenate([np.array(it["solved"], dtype=bool) for it in depths])
    return PositionVerdicts.of("joint", labels, np.arange(len(texts)), LABELS), solved


def _share(labels: np.ndarray) -> str:
    return f"{100 * (labels == 'converged').mean():.1f}" if labels.size else "-"

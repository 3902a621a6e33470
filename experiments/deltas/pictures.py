"""Pictures of a single recursion, drawn while its states are at hand."""

from pathlib import Path

import numpy as np
import torch

from loopgrad.analysis import plots
from loopgrad.experiments.deltas.examination import Subject, at
from loopgrad.experiments.deltas.measuring import Seen
from loopgrad.gradients.recompute import run_without_graph

PICTURED = 48  # samples of the figures that need whole states


def of_one(subject: Subject, seen: Seen, folder: Path, slug: str) -> list[str]:
    """Draw one recursion; return the paths of the PNGs below `folder`, none without matplotlib."""
    trained, deeper = seen.depths
    horizon, segment = trained.trace.num_steps, subject.model.num_steps
    states = _states(subject, deeper.trace.num_steps, deeper.trace.period)
    verdicts = deeper.verdicts["joint"]
    labels = verdicts.label[: states.shape[1]]
    odd = int(np.argmax(deeper.trace.joint_relative[: states.shape[1]]))
    drawn = {
        "residuals": plots.residuals(
            deeper.trace, deeper.solved, segment=segment, horizon=horizon, floor=verdicts.floor
        ),
        "heatmap": plots.heatmap(deeper.trace, verdicts),
    }
    moves = np.atleast_1d(np.isfinite(states[:2]).all(axis=(0, 2)))  # else a path has nothing to draw
    if moves.any():
        drawn["trajectories"] = plots.trajectories(states, labels)
    if moves[odd]:
        drawn["recurrence"] = plots.recurrence(states[:, odd])
    if seen.eigenvalues.size:
        drawn["eigenvalues"] = plots.eigenvalue_cloud(seen.eigenvalues, seen.of_solved)
    for name, figure in drawn.items():
        plots.save(figure, folder / "figures" / f"{slug}-{name}")
    return [f"figures/{slug}-{name}.png" for name in drawn]


def _states(subject: Subject, updates: int, period: int) -> np.ndarray:
    """Return the states at the ends of cycles of some samples, all streams as one vector, (cycles + 1, samples, n)."""
    rows = slice(0, PICTURED)
    state, x = at(rows, subject.state), at(rows, subject.x)
    found = [_flat(state)]
    with subject.trainer.precision(subject.device):
        for _ in range(updates // period):
            state = run_without_graph(subject.cell, state, x, range(period))
            found.append(_flat(subject.read(state)))
    return np.stack(found)


def _flat(state: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([z.flatten(1).float() for z in state.values()], dim=1).cpu().numpy()

"""Where single samples go: typical ones per verdict in the plane of most variance, and one sample's returns."""

import numpy as np

from loopgrad.analysis.plots.style import COLUMN, Array, Drawn, Row, look, number, panels
from loopgrad.analysis.verdicts import LABELS


def trajectories(states: Array, labels: Array, fixed_points: Array | None = None, most: int = 6) -> Drawn:
    """Draw the path of one typical sample per verdict in the plane of their two principal components.

    Typical is the sample whose path length is nearest the median of its verdict. The components are those of the drawn
    states alone, by a singular value decomposition; their signs make the largest weight positive. A path ends before
    its first state that is not finite.

    Args:
        states: (T + 1, B, n) states of B samples.
        labels: (B,) verdicts.
        fixed_points: (k, n) states, drawn as stars.
        most: Most verdicts that are drawn; the frequent ones are.

    Returns:
        The figure, and a row per state, per fixed point and per axis.

    Not recommended when:
        A path diverges: it sets the scale and the others shrink to a point; or the two axes hold
        little of the variance: what crosses there need not meet.

    Raises:
        ValueError: states is empty or not (T + 1, B, n), labels or fixed_points do not fit, or most is below 1.

    Example:
        >>> import numpy as np
        >>> from loopgrad.analysis.plots import trajectories
        >>> line = np.linspace(0, 1, 5)[:, None, None] * np.ones((1, 1, 3))
        >>> drawn = trajectories(line, np.array(["drift"]))
        >>> round(drawn.table[-2]["variance"], 12)
        1.0
    """
    states, labels = np.asarray(states, dtype=float), np.asarray(labels)
    if states.ndim != 3 or not states.size:
        raise ValueError(f"states must be (T + 1, B, n) and not empty, got shape {states.shape}")
    if labels.shape != states.shape[1:2]:
        raise ValueError(f"labels has shape {labels.shape}, and states has {states.shape[1]} samples")
    if most < 1:
        raise ValueError(f"most is a number of verdicts, at least 1, got {most}")
    points = np.empty((0, states.shape[2])) if fixed_points is None else np.asarray(fixed_points, dtype=float)
    if points.ndim != 2 or points.shape[1] != states.shape[2]:
        raise ValueError(f"fixed_points must be (k, {states.shape[2]}), got shape {points.shape}")
    chosen = _typical(states, labels, most)
    paths = {i: states[: _finite_steps(states[:, i]), i] for i in chosen.values()}
    drawn = np.concatenate(list(paths.values()))
    mean, axes_of, variance = _plane(drawn)
    table: list[Row] = []
    with panels(COLUMN, 2.9 + 0.16 * -(-(len(chosen) + 3) // 2)) as (figure, axes):
        axis = axes[0, 0]
        for label, i in chosen.items():
            x, y = ((paths[i] - mean) @ axes_of.T).T
            colour, line, *_ = look(label)
            axis.plot(x, y, color=colour, ls=line, lw=0.9, marker=".", ms=2, label=f"{label}, #{i}")
            axis.plot(x[0], y[0], "o", color=colour, mfc="white", zorder=4)
            axis.plot(x[-1], y[-1], "x", color=colour, mew=1.5, ms=6, zorder=4)
            table += [_row("state", label, i, t, *xy) for t, xy in enumerate(zip(x, y, strict=True))]
        for k, (x, y) in enumerate((points - mean) @ axes_of.T):
            name = "fixed point" if not k else None
            axis.plot(x, y, "*", color="#F0E442", mec="black", mew=0.6, ms=9, ls="none", zorder=5, label=name)
            table.append(_row("fixed point", None, k, None, x, y))
        axis.plot([], [], "o", color="#333333", mfc="white", label="start")
        axis.plot([], [], "x", color="#333333", mew=1.5, ms=6, label="end")
        axis.set(xlabel=f"PC 1 ({100 * variance[0]:.0f} % of variance)")
        axis.set(ylabel=f"PC 2 ({100 * variance[1]:.0f} % of variance)")
    table += [{"mark": "axis", "component": k + 1, "variance": number(variance[k])} for k in range(2)]
    return Drawn(figure, table)


def recurrence(states: Array) -> Drawn:
    """Draw the distance between the states of one sample at every two steps, over the largest norm.

    Dark lines beside the diagonal are returns: their distance from it is the period. The colour is logarithmic where
    distances span more than a factor of 100, and then ends at 1e-4 of the largest.

    Args:
        states: (T + 1, n) states of one sample.

    Returns:
        The figure, and a row per pair of steps i < j.

    Not recommended when:
        There are thousands of steps: the matrix grows with their square.
    Reference:
        Eckmann et al. 1987, EPL 4.

    Raises:
        ValueError: states is not (T + 1, n) with at least two finite states.

    Example:
        >>> import numpy as np
        >>> from loopgrad.analysis.plots import recurrence
        >>> [row["distance"] for row in recurrence(np.array([[1.0], [-1.0], [1.0]])).table]
        [2.0, 0.0, 2.0]
    """
    states = np.asarray(states, dtype=float)
    if states.ndim == 2:
        states = states[: _finite_steps(states)]
    if states.ndim != 2 or len(states) < 2 or not states.size:
        raise ValueError(f"states must be (T + 1, n), at least two of them finite; of what is finite: {states.shape}")
    largest = float(np.linalg.norm(states, axis=1).max())
    # row by row: all differences at once would take (T + 1)^2 n
    distance = np.stack([np.linalg.norm(states - state, axis=1) for state in states]) / (largest or 1.0)
    with panels(COLUMN, 2.9) as (figure, axes):
        from matplotlib.colors import LogNorm

        axis, above = axes[0, 0], distance[distance > 0]
        shown, norm, extend = distance, None, "neither"
        if above.size and above.max() > 100 * above.min():
            least = max(float(above.min()), 1e-4 * float(above.max()))
            shown, norm = np.maximum(distance, least), LogNorm(least, float(above.max()))
            extend = "min" if least > above.min() else "neither"
        edges = np.arange(len(states) + 1) - 0.5
        mesh = axis.pcolormesh(edges, edges, shown, cmap="cividis", norm=norm, rasterized=True)
        axis.set(xlabel="state i", ylabel="state j", aspect="equal")
        figure.colorbar(mesh, ax=axis, label="||z(i) - z(j)|| / max ||z||", extend=extend)
    pairs = ((i, j) for i in range(len(states)) for j in range(i + 1, len(states)))
    return Drawn(figure, [{"i": i, "j": j, "distance": number(distance[i, j])} for i, j in pairs])


def _typical(states: Array, labels: Array, most: int) -> dict[str, int]:
    """Return verdict -> sample, in the order of LABELS."""
    counts = {label: int((labels == label).sum()) for label in dict.fromkeys(labels.tolist())}
    for label in counts:
        look(label)
    kept = sorted(counts, key=lambda label: (-counts[label], LABELS.index(label)))[:most]
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.linalg.norm(np.diff(states, axis=0), axis=2)
    length = np.where(np.isfinite(steps), steps, 0.0).sum(axis=0)  # (B,)
    chosen = {}
    for label in sorted(kept, key=LABELS.index):
        mine = np.flatnonzero((labels == label) & np.isfinite(states[0]).all(axis=1))
        if mine.size:
            chosen[label] = int(mine[np.argmin(np.abs(length[mine] - np.median(length[mine])))])
    if not chosen:
        raise ValueError("states holds no sample that starts finite")
    return chosen


def _finite_steps(path: Array) -> int:
    broken = np.flatnonzero(~np.isfinite(path).all(axis=1))
    return int(broken[0]) if broken.size else len(path)


def _plane(drawn: Array) -> tuple[Array, Array, Array]:
    """Return mean, two unit axes (2, n) and their shares of variance; an axis that does not exist is zero."""
    mean = drawn.mean(axis=0)
    _, sizes, axes = np.linalg.svd(drawn - mean, full_matrices=False)
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
    total = float((sizes**2).sum())
    plane, variance = np.zeros((2, drawn.shape[1])), np.zeros(2)
    count = min(2, len(sizes))
    plane[:count] = (axes * np.where(signs == 0, 1.0, signs))[:count]
    variance[:count] = sizes[:count] ** 2 / (total or 1.0)
    return mean, plane, variance


def _row(mark: str, label: str | None, index: int, step: int | None, x: float, y: float) -> Row:
    return {"mark": mark, "label": label, "index": index, "step": step, "pc1": number(x), "pc2": number(y)}

"""The linear picture: eigenvalues of the cycle map beside the unit circle, and Lyapunov exponents beside zero."""

from typing import Any

import numpy as np

from loopgrad.analysis.plots.style import COLUMN, PAGE, Array, Drawn, Look, Row, by_outcome, number, panels


def eigenvalue_cloud(
    eigenvalues: Array, solved: Array | None = None, exponents: Array | None = None, at_fixed_point: Array | None = None
) -> Drawn:
    """Draw the leading eigenvalues of the Jacobian of the map in the complex plane, with the unit circle.

    Args:
        eigenvalues: (B, k) complex, of each sample where its run ended.
        solved: (B,) whether each sample was solved, to draw the two apart.
        exponents: (B,) largest Lyapunov exponents in nats per cycle, for a histogram beside it.
        at_fixed_point: (F, k) complex, at fixed points that were found.

    Returns:
        The figure, and a row per eigenvalue and per bar; what is not finite is not drawn.

    Not recommended when:
        The map is far from normal: eigenvalues inside the circle then allow long growth. See `operator_norm`.

    Raises:
        ValueError: eigenvalues is empty or not (B, k), or another array does not fit.

    Example:
        >>> import numpy as np
        >>> from loopgrad.analysis.plots import eigenvalue_cloud
        >>> drawn = eigenvalue_cloud(np.array([[0.5 + 0.5j, 0.5 - 0.5j]]), solved=np.array([True]))
        >>> [(row["group"], row["imag"]) for row in drawn.table]
        [('solved n=1', 0.5), ('solved n=1', -0.5)]
    """
    eigenvalues = np.asarray(eigenvalues, dtype=complex)
    if eigenvalues.ndim != 2 or not eigenvalues.size:
        raise ValueError(f"eigenvalues must be (B, k) and not empty, got shape {eigenvalues.shape}")
    groups = by_outcome(solved, len(eigenvalues), "solved")
    table: list[Row] = []
    width, count = (COLUMN, 1) if exponents is None else (PAGE, 2)
    with panels(width, 3.2, 1, count) as (figure, axes):
        plane = axes[0, 0]
        plane.axhline(0, color="#DDDDDD", lw=0.6, zorder=0)
        plane.axvline(0, color="#DDDDDD", lw=0.6, zorder=0)
        turn = np.linspace(0, 2 * np.pi, 361)
        plane.plot(np.cos(turn), np.sin(turn), color="#333333", lw=0.8, zorder=1, label="unit circle")
        for name, (chosen, look) in groups.items():
            values = eigenvalues[chosen]
            style = {"s": 9, "color": look.colour, "marker": look.marker, "alpha": 0.6, "linewidths": 0, "zorder": 2}
            plane.scatter(np.real(values).ravel(), np.imag(values).ravel(), label=name, **style)
            table += _rows("eigenvalue", name, np.flatnonzero(chosen), values)
        if at_fixed_point is not None:
            found = np.asarray(at_fixed_point, dtype=complex)
            if found.ndim != 2:
                raise ValueError(f"at_fixed_point must be (F, k), got shape {found.shape}")
            name = f"at fixed points n={len(found)}"
            style = {"s": 14, "color": "black", "marker": "+", "lw": 0.8, "label": name}
            plane.scatter(np.real(found).ravel(), np.imag(found).ravel(), **style)
            table += _rows("fixed point", name, np.arange(len(found)), found)
        plane.set(xlabel="real part", ylabel="imaginary part", aspect="equal")
        if exponents is not None:
            table += _histogram(axes[0, 1], np.asarray(exponents, dtype=float), groups, len(eigenvalues))
    return Drawn(figure, table)


def _rows(mark: str, group: str, samples: Array, values: Array) -> list[Row]:
    return [
        {"mark": mark, "group": group, "sample": int(i), "rank": k, "real": number(v.real), "imag": number(v.imag)}
        for i, row in zip(samples, values, strict=True)
        for k, v in enumerate(row)
    ]


def _histogram(axis: Any, exponents: Array, groups: dict[str, tuple[Array, Look]], batch: int) -> list[Row]:
    if exponents.shape != (batch,):
        raise ValueError(f"exponents has shape {exponents.shape}, and eigenvalues has {batch} samples")
    finite = exponents[np.isfinite(exponents)]
    edges = np.histogram_bin_edges(finite, bins=min(24, max(6, finite.size // 4)))
    axis.axvline(0, color="#333333", lw=0.8, zorder=3)
    rows: list[Row] = []
    for name, (chosen, (colour, _, _, hatch)) in groups.items():
        counts, _ = np.histogram(exponents[chosen & np.isfinite(exponents)], edges)
        axis.stairs(counts, edges, fill=True, fc=(colour, 0.35), ec=colour, hatch=hatch, lw=1.0)
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            rows.append({"mark": "bar", "group": name, "low": float(low), "high": float(high), "count": int(count)})
    axis.set(xlabel="largest Lyapunov exponent (nats per cycle)", ylabel="samples")
    axis.yaxis.get_major_locator().set_params(integer=True)
    return rows

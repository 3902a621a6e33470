"""What a vanishing residual validates: implicit and one-step gradients beside BPTT, at four spectral radii.

z = tanh(W z + x), gradient of W; W is scaled until the Jacobian at the last state has the wanted spectral radius.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from loopgrad.analysis import StateMap, plots, spectral_radius
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, Estimator, ImplicitGradient, Stationary, TruncatedBPTT


@dataclass(frozen=True)
class Validity(Bench):
    """Gradients of a tanh network beside BPTT, in float64.

    Args:
        width: Features.
        batch_size: Samples.
        radii: Spectral radii of the Jacobian at the last state, median over samples.
        lengths: Updates T.
        seed: Seed of weights and inputs.
    """

    width: int = 32
    batch_size: int = 16
    radii: tuple[float, ...] = (0.47, 0.85, 1.1, 1.4)
    lengths: tuple[int, ...] = (4, 16, 64)
    seed: int = 0

    least: ClassVar = {"width": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < radius < 3 for radius in self.radii):
            raise ValueError(f"radii={list(self.radii)} must be between 0 and 3")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Return one row per radius, length and estimator."""
        generator = torch.Generator().manual_seed(self.seed)
        w = torch.randn(self.width, self.width, generator=generator, dtype=torch.float64) / self.width**0.5
        x, c = (torch.randn(self.batch_size, self.width, generator=generator, dtype=torch.float64) for _ in range(2))

        def of(wanted: float) -> Iterator[dict[str, Any]]:
            gain = self._gain(w, x / 2, wanted)
            for length in self.lengths:
                yield from ({"wanted": wanted} | row for row in _compared(gain * w, x / 2, c, length))

        return list(ledger.each([Part(f"radius {it}", partial(of, it), 2 * len(self.lengths)) for it in self.radii]))

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw the gradients against the residual."""
        points = [
            plots.Point(
                r["gradient"], r["residual"], r["radius"], r["cosine"], r["rel. error"], f"radius {r['wanted']}"
            )
            for r in rows
        ]
        plots.save(plots.validity(points), folder / "validity-figure")

    def _gain(self, w: Tensor, x: Tensor, wanted: float) -> float:
        """Scale by bisection, at the greatest length."""
        low, high = 0.0, 6.0
        for _ in range(30):
            middle = (low + high) / 2
            small = _radius(middle * w, x, max(self.lengths)) < wanted
            low, high = (middle, high) if small else (low, middle)
        return (low + high) / 2


def _radius(w: Tensor, x: Tensor, length: int) -> float:
    cell = Stationary(lambda z, x: torch.tanh(z @ w.T + x))
    z = BPTT()(cell, torch.zeros_like(x), x, length).state
    return float(np.median(spectral_radius(StateMap(cell, z, x), z)))


def _compared(w: Tensor, x: Tensor, c: Tensor, length: int) -> list[dict[str, Any]]:
    weight = torch.nn.Parameter(w)
    cell = Stationary(lambda z, x: torch.tanh(z @ weight.T + x), parameters=[weight])

    def gradient(estimator: Estimator) -> tuple[Tensor, Tensor]:
        state = estimator(cell, torch.zeros_like(x), x, length).state
        return torch.autograd.grad((state * c).sum(), weight)[0].flatten(), state.detach()

    exact, z = gradient(BPTT())
    f = StateMap(cell, z, x)
    residual = float(((f(z) - z).norm(dim=1) / z.norm(dim=1)).median())
    radius = float(np.median(spectral_radius(f, z)))
    solved = ImplicitGradient("gmres", rtol=1e-12, max_vjps=2 * x.shape[1], on_unconverged="ignore")
    rows = []
    for name, estimator in (("one step", TruncatedBPTT(num_steps=1)), ("implicit", solved)):
        got = gradient(estimator)[0]
        row = {"gradient": name, "updates": length, "radius": radius, "residual": residual}
        row["cosine"] = float(torch.cosine_similarity(got, exact, dim=0))
        row["rel. error"] = float((got - exact).norm() / exact.norm())
        rows.append(row)
    return rows

"""Whether an implicit gradient can be trusted, sample by sample, and the numbers that say so."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients.contract import Stats
from loopgrad.gradients.wide import widened

QUANTILES = (0.5, 0.9, 1.0)


class Remembered:
    """The last solution of an estimator; one object, which its copies share."""

    solution: Tensor | None = None


@dataclass(frozen=True, repr=False)
class Verdict:
    """What one backward pass found; a value per sample (one for all with scope="batch"), on the device.

    Attributes:
        forward_residual: |f(z) - z| / |f(z)| of the cycle map f, where it was linearised.
        backward_residual: |b - (1 - J^T) w| / |b| for the cotangent b; 0 where nothing was solved.
        amplification: |w| / |b|, a lower bound of |(1 - J)^-1|.
        estimate: Estimated relative error of the gradient: max(amplification * forward residual, backward residual).
        solved: Whether the sample took part in the solve.
        trusted: Whether its implicit gradient passed the gate.
        finite: Whether its state, its image and its cotangent are finite; if not, it contributes no gradient.
        vjps: Products of the cycle map taken to solve.
        fallback: Whether any sample got the fallback's gradient.
    """

    forward_residual: Tensor
    backward_residual: Tensor
    amplification: Tensor
    estimate: Tensor
    solved: Tensor
    trusted: Tensor
    finite: Tensor
    vjps: int
    fallback: bool

    def __repr__(self) -> str:
        """Return one line: how many samples are trusted, medians and largest values, and what the others got."""
        found, count = self.numbers(), self.trusted.numel()
        said = [f"{name}={round(found[name] * count)} of {count}" for name in ("trusted", "finite")]
        said.append(f"fallback={self.fallback}")
        for name, share in (("forward_residual", found["finite"]), ("estimate", found["solved"])):
            if share:
                said.append(f"{name}={found[f'{name}_median']:.2g} (largest {found[f'{name}_max']:.2g})")
        return f"Verdict({', '.join(said)}, vjps={self.vjps})"

    def numbers(self) -> dict[str, float]:
        """Return fractions and quantiles (median, 90 %, largest) over samples; one transfer from the device."""
        known = [("forward_residual", self.forward_residual, self.finite)]
        known += [(n, getattr(self, n), self.solved) for n in ("backward_residual", "amplification", "estimate")]
        rows = [widened(it).mean() for it in (self.trusted, self.finite, self.solved)]
        for _, values, among in known:
            rows += [_quantile(values, among, q) for q in QUANTILES]
        found = torch.stack([widened(row) for row in rows]).tolist()
        names = ["trusted", "finite", "solved"]
        names += [f"{name}_{suffix}" for name, _, _ in known for suffix in ("median", "p90", "max")]
        return {**dict(zip(names, found, strict=True)), "cycle_vjps": float(self.vjps)}


@dataclass
class ImplicitStats(Stats):
    """Cost and verdict of an implicit gradient, known once backward has run; until then that of the forward pass.

    Attributes:
        verdict: Verdict of the latest backward pass, or None.
    """

    verdict: Verdict | None = field(default=None, compare=False)

    def numbers(self) -> dict[str, float]:
        """Return the verdict's numbers and the share of samples that have stopped; none before backward has run."""
        return {} if self.verdict is None else self.verdict.numbers() | super().numbers()


class Unconverged(RuntimeError):
    """on_unconverged="raise", and a sample has no implicit gradient that can be trusted."""


def relative(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient of norms, 0 for 0 / 0."""
    return torch.where(numerator == 0, 0.0, numerator / denominator)


def unconverged(verdict: Verdict) -> str:
    """Say how many samples are not trusted, and why."""
    found: dict[str, Any] = verdict.numbers()
    count, share = verdict.trusted.numel(), 1 - found["trusted"]
    text = (
        f"{share:.0%} of {count} samples have no implicit gradient that can be trusted: relative forward residual "
        f"{found['forward_residual_median']:.2g} (median), {found['forward_residual_max']:.2g} (largest); "
    )
    if found["solved"]:
        text += (
            f"estimated relative error of the gradient {found['estimate_median']:.2g} (median), "
            f"{found['estimate_max']:.2g} (largest) among the {found['solved']:.0%} that were solved"
        )
    else:
        text += "none was solved"
    return text if found["finite"] == 1 else f"{text}; {1 - found['finite']:.0%} not finite"


def _quantile(values: Tensor, among: Tensor, q: float) -> Tensor:
    if not values.numel():
        return values.new_tensor(torch.nan)
    ordered = torch.where(among, values, torch.inf).sort().values
    place = (q * (among.sum() - 1)).round().long().clamp(min=0)
    return torch.where(among.any(), ordered.gather(0, place.view(1))[0], torch.nan)

"""Random numbers of steps: distributions on {1, 2, ...} with a given mean, their draws and their survival function."""

import difflib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from loopgrad.gradients.checks import is_number

DepthFamily = Literal["geometric", "poisson", "lognormal"]
DEPTH_FAMILIES = ("geometric", "poisson", "lognormal")
_RANGE = 12.0  # of a standard normal variable in the quadrature; beyond it lies 4e-33


@dataclass(frozen=True)
class DepthDistribution:
    """A distribution of a number of steps k on {1, 2, ...} with mean `mean`.

    - "geometric": P(k > d) = (1 - 1/mean)^d.
    - "poisson": k - 1 ~ Poisson(mean - 1).
    - "lognormal": k - 1 ~ Poisson(exp(N(log(mean - 1) - sigma^2 / 2, sigma^2))).

    It also draws the number of updates of a whole recursion (random depth), with any estimator:
    num_steps = period * depths.sample(generator). Ranks whose generators share a seed get the same number.

    Args:
        mean: E k, at least 1; with 1, k is always 1.
        distribution: "geometric", "poisson" or "lognormal".
        sigma: Standard deviation of the logarithm of the rate of "lognormal", at least 0; the others ignore it.

    Reference:
        Tallec and Ollivier 2017, arXiv 1705.08209 (geometric); Geiping et al. 2025, arXiv 2502.05171 (lognormal, with
        sigma 0.5); Prairie et al. 2026, arXiv 2604.12946 (drawn for each sample).

    Raises:
        TypeError: mean or sigma is not a number.
        ValueError: mean is below 1, sigma below 0, one of them not finite, or the distribution is unknown.

    Example:
        >>> import torch
        >>> from loopgrad.gradients.depth_distribution import DepthDistribution
        >>> DepthDistribution(4).survival(2)  # P(k > 2) = (3/4)^2
        0.5625
        >>> num_steps = 3 * DepthDistribution(32, "lognormal").sample(torch.Generator().manual_seed(0))
    """

    references: ClassVar[tuple[str, ...]] = ("tallec2017unbiasing", "geiping2025scaling", "prairie2026parcae")
    mean: float
    distribution: DepthFamily = "geometric"
    sigma: float = 0.5

    def __post_init__(self) -> None:
        check_depth_distribution("DepthDistribution", "mean", self.mean, self.distribution, self.sigma)

    def sample(self, generator: torch.Generator) -> int:
        """Draw k from `generator`, and from no other."""
        if self.mean == 1:
            return 1
        device = generator.device
        if self.distribution == "geometric":
            uniform = 1 - float(torch.rand((), dtype=torch.float64, device=device, generator=generator))  # in (0, 1]
            return 1 + math.floor(math.log(uniform) / math.log1p(-1 / self.mean))
        rate = self.mean - 1
        if self.distribution == "lognormal":
            normal = float(torch.randn((), dtype=torch.float64, device=device, generator=generator))
            rate *= math.exp(self.sigma * normal - self.sigma**2 / 2)
        return 1 + int(torch.poisson(torch.tensor(rate, dtype=torch.float64, device=device), generator=generator))

    def survival(self, d: int) -> float:
        """Return P(k > d), the chance of more than d steps."""
        return _survival(self.mean, self.distribution, self.sigma, d)


def check_depth_distribution(owner: str, name: str, mean: object, distribution: object, sigma: object) -> None:
    """Raise unless these are the arguments of a distribution; `owner` and the `name` of the mean are named."""
    for argument, value in ((name, mean), ("sigma", sigma)):
        if not is_number(value):
            raise TypeError(f"{owner}({argument}=...) must be a number, got {value!r}")
    if not 1 <= mean < math.inf:  # pyright: ignore
        raise ValueError(
            f"{owner}({name}={mean}) must be finite and at least 1: it is the mean of a number that is 1 at least"
        )
    if distribution not in DEPTH_FAMILIES:
        close = difflib.get_close_matches(str(distribution), DEPTH_FAMILIES, n=3, cutoff=0.4)
        raise ValueError(
            f"{owner}(distribution={distribution!r}) is unknown: take one of {', '.join(DEPTH_FAMILIES)}"
            + (f"; nearest: {', '.join(close)}" if close else "")
        )
    if not 0 <= sigma < math.inf:  # pyright: ignore
        raise ValueError(f"{owner}(sigma={sigma}) must be finite and at least 0: it is a standard deviation")


@lru_cache(maxsize=4096)
def _survival(mean: float, distribution: str, sigma: float, d: int) -> float:
    if d < 1 or mean == 1:
        return float(d < 1)
    if distribution == "geometric":
        return (1 - 1 / mean) ** d
    # P(Poisson(rate) >= d) is the regularised incomplete gamma function, here averaged over a lognormal rate by the
    # trapezoid rule, which converges exponentially once its step resolves the rise, 1 / (sigma sqrt(d)) wide
    sigma = sigma if distribution == "lognormal" else 0.0
    nodes = 201 + 2 * math.ceil(30 * sigma * math.sqrt(d)) if sigma else 3
    x = torch.linspace(-_RANGE, _RANGE, nodes, dtype=torch.float64, device="cpu")
    rate = (mean - 1) * torch.exp(sigma * x - sigma**2 / 2)
    chance = torch.special.gammainc(torch.full_like(rate, d), rate)
    weights = torch.exp(-(x**2) / 2)
    return float((weights * chance).sum() / weights.sum())

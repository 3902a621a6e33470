"""Mean, variance and the error of the bias of random vectors, in one pass that keeps a few vectors and no draws.

The squared distance of the mean from a target is a U-statistic of degree two, whose variance is exact for any
distribution: 4 b^T S b / K + 2 tr(S^2) / (K (K - 1)).
"""

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

RECENT = 4  # pairs that a new one is multiplied with


class Moments:
    """Running sums over draws x_1 .. x_K, for each stretch of the vector and, last, for all of it.

    tr(S^2) is the mean of <e_m, e_n>^2 / 4 over pairs e_m = x_(2m-1) - x_(2m), which are independent and have
    covariance 2 S, at most four apart. b^T S b is the mean of <e_m, mean before e_m - target>^2 / 2, less
    tr(S^2) / draws before, over the second half of the pairs.

    Args:
        target: g*, a float64 vector.
        sizes: Lengths of the stretches.

    Attributes:
        count: K.
        mean: Mean of the draws.
        squares: Sum over draws of ||x - mean||^2, (stretches + 1,).

    Reference:
        Welford 1962, Technometrics 4(3); Hoeffding 1948, Annals of Mathematical Statistics 19.
    """

    def __init__(self, target: Tensor, sizes: Sequence[int]):
        self._target, self._sizes = target, list(sizes)
        self.count, self.mean = 0, torch.zeros_like(target)
        self.squares = torch.zeros(len(sizes) + 1, dtype=torch.float64)
        self._cosines: list[Tensor] = []
        self._before, self._first = self.mean, None
        self._pairs: deque[Tensor] = deque(maxlen=RECENT)
        self._crossed: list[Tensor] = []
        self._along: list[tuple[int, Tensor]] = []

    def add(self, draw: Tensor) -> None:
        """Take one more draw into account."""
        size, scale = self._dot(draw, draw).sqrt(), self._dot(self._target, self._target).sqrt()
        self._cosines.append(self._dot(draw, self._target) / size / scale)
        if self._first is None:
            self._first, self._before = draw, self.mean
        else:
            pair, self._first = self._first - draw, None
            self._crossed += [self._dot(pair, other).square() / 4 for other in self._pairs]
            if self._pairs:
                self._along.append((self.count - 1, self._dot(pair, self._before - self._target).square() / 2))
            self._pairs.append(pair)
        self.count += 1
        step = draw - self.mean
        self.mean = self.mean + step / self.count
        self.squares += self._dot(step, draw - self.mean)

    def summary(self) -> list[dict]:
        """Return the numbers of a `BiasVariance`, for each stretch and for the whole; needs four draws."""
        k = self.count
        variance = self.squares / (k - 1)
        off = self.mean - self._target
        bias = self._dot(off, off) - variance / k
        crossed = torch.stack(self._crossed).mean(dim=0)
        along = torch.stack([value - crossed / n for n, value in self._along[len(self._along) // 2 :]]).mean(dim=0)
        null = 2 * crossed / (k * (k - 1))
        error = (4 * along.clamp(min=0) / k + null).sqrt()
        cosine = torch.stack(self._cosines)
        columns = {
            "reference_squared": self._dot(self._target, self._target),
            "product": self._dot(self.mean, self._target),
            "bias_squared": bias,
            "bias_error": error,
            "variance": variance,
            "mse": bias + variance,
            "cosine": cosine.mean(dim=0).clamp(-1, 1),
            "cosine_deviation": cosine.std(dim=0),
        }
        found = []
        for i in range(len(variance)):
            numbers = {name: column[i].item() for name, column in columns.items()}
            found.append({"draws": k, **numbers, **_test(bias[i].item(), variance[i].item(), crossed[i].item(), k)})
        return found

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the inner products of the stretches and, last, of the whole vectors."""
        pairs = zip(a.split(self._sizes), b.split(self._sizes), strict=True)
        parts = torch.stack([torch.dot(x, y) for x, y in pairs])
        return torch.cat([parts, parts.sum().reshape(1)])


def _test(bias: float, variance: float, crossed: float, k: int) -> dict[str, float]:
    """Return z, p and the degrees of freedom of a scaled chi-square with the first two moments of K ||mean - g*||^2."""
    if variance == 0 or not crossed > 0:
        return {"z": math.nan, "p": math.nan, "dimensions": math.nan}
    z = bias / math.sqrt(2 * crossed / (k * (k - 1)))
    dimensions = max(1.0, variance**2 / crossed)
    at = max(0.0, dimensions + z * math.sqrt(2 * dimensions))
    half = torch.tensor([dimensions / 2, at / 2], dtype=torch.float64)
    return {"z": z, "p": torch.special.gammaincc(half[0], half[1]).item(), "dimensions": dimensions}

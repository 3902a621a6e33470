"""How a share of solved samples grows with training, and when it would get somewhere: a logistic curve in log steps."""

import math
from collections.abc import Sequence

import numpy as np

EDGE = 0.005  # shares nearer to 0 or 1 say nothing of the slope
LEAST = 3  # points of a fit
FARTHEST = 1e9  # steps that are still told


def steps_to(steps: Sequence[int], shares: Sequence[float], wanted: float = 0.5) -> float | None:
    """Return after how many steps a share would be reached.

    log(p / (1 - p)) = a + b log(step), least squares over the evaluations with p in [0.005, 0.995], the later half of
    them at least.

    Args:
        steps: When shares were taken.
        shares: In [0, 1].
        wanted: The share, in (0, 1).

    Returns:
        Steps; None where there are too few evaluations to fit, or the share does not grow.
    """
    pairs = [(s, p) for s, p in zip(steps, shares, strict=True) if EDGE <= p <= 1 - EDGE and s > 0]
    pairs = pairs[-max(LEAST, len(pairs) // 2) :]
    if len(pairs) < LEAST:
        return None
    x = np.log([s for s, _ in pairs])
    y = np.array([math.log(p / (1 - p)) for _, p in pairs])
    slope, level = np.polyfit(x, y, 1)
    if slope <= 0:
        return None
    exponent = (math.log(wanted / (1 - wanted)) - level) / slope
    return math.exp(exponent) if exponent < math.log(FARTHEST) else None

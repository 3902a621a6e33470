"""How large a value of a configuration may be, told by its name: above, nothing could be computed from it.

What fits one by one may still be too much together; `gradients.host_memory` says so where the sizes meet.
"""

import math
from typing import Any

from loopgrad.experiments.errors import ConfigError

LARGEST = 2**31 - 1
OF_NAME = {
    # built, or run, one after the other
    **dict.fromkeys(("num_layers", "H_layers", "L_layers", "depth"), 1_000),
    **dict.fromkeys(("H_cycles", "L_cycles", "num_segments", "max_segments", "segments", "extrapolate"), 10_000),
    **dict.fromkeys(("num_steps", "window", "most_cycles", "num_loops", "mean"), 10_000),
    "sigma": 100,  # beyond which no rate is a number
    **dict.fromkeys(("num_cycles", "max_vjps", "b_max_iter", "anchors", "repeats", "timing_repeats"), 100_000),
    **dict.fromkeys(("lags", "exponent_cycles", "figures", "draws", "cells", "per_decade"), 100_000),
    # a side of what is allocated
    **dict.fromkeys(("hidden_size", "num_heads", "width", "features", "puzzle_tokens", "seq_len", "slots"), 65_536),
    **dict.fromkeys(("length", "lengths", "modulus", "num_values", "num_tangents", "tangents", "wider"), 65_536),
    **dict.fromkeys(("size", "expansion", "min_path"), 4_096),
    **dict.fromkeys(("batch_size", "eval_batch_size", "batches", "samples", "verdict_samples"), 1_000_000),
    "num_augmentations": 10_000,
    **dict.fromkeys(("num_train", "num_test", "max_tasks"), 10_000_000),
    # what the system starts
    **dict.fromkeys(("num_threads", "workers"), 1_024),
    # what nothing is allocated for
    **dict.fromkeys(("seed", "seeds", "data_seed", "memory_budget"), 2**63 - 1),
}


def check_bounds(name: str, value: Any) -> None:
    """Check the numbers of a value against what its name may hold, and that they are numbers.

    Args:
        name: Key of the configuration; its last part tells the bound.
        value: A plain value, or a list of them.

    Raises:
        ConfigError: A number is too large, not finite, or no number at all.
    """
    most = OF_NAME.get(name.rsplit(".", 1)[-1])
    for number in value if isinstance(value, list | tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name}={number}: must be a finite number")
        limit = LARGEST if most is None and isinstance(number, int) else most
        if limit is not None and isinstance(number, int | float) and abs(number) > limit:
            raise ConfigError(f"{name}={_short(number)}: must be at most {limit}")


def _short(number: float) -> str:
    return str(number) if abs(number) < 10**30 else f"{number:.0e}" if abs(number) < 10**300 else "1e300 and more"

"""How long a step takes on a device, how much memory, and what it must take at least."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from loopgrad.analysis.counters import PeakBytes


@dataclass
class Stopwatch:
    """Measures on one device, within a number of seconds from its making.

    Args:
        device: Where everything runs.
        seconds: From now on until nothing more is begun.
    """

    device: torch.device
    seconds: float
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.begun)

    def rate(self, dtype: torch.dtype, size: int) -> float:
        """Return the FLOPs in a second of a product of two square matrices: no step goes faster."""
        a = torch.ones(size, size, device=self.device, dtype=dtype)
        return 2 * size**3 / self.timed(lambda: a @ a, 9)[0]

    def timed(self, step: Callable[[], Any], repeats: int) -> tuple[float, int]:
        """Return the median seconds of a step after one that warms up, and its most bytes beyond those before it."""
        if self.device.type != "cuda":
            with PeakBytes() as peak:
                step()
            return statistics.median(self._seconds(step) for _ in range(repeats)), peak.peak
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = [self._seconds(step)]
        peak_bytes = torch.cuda.max_memory_allocated() - before
        while len(found) < repeats and found[0] * (len(found) + 1) < 10:
            found.append(self._seconds(step))
        return statistics.median(found), peak_bytes

    def _seconds(self, step: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            began = time.perf_counter()
            step()
            return time.perf_counter() - began
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        step()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3

    def forget(self) -> None:
        """Give back memory that no tensor holds any more."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

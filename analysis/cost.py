"""What a gradient costs: bytes saved and peak, cell evaluations, vjps, FLOPs (all exact counts) and seconds.

Counts are machine independent; seconds are for ratios of runs timed in turn (`interleaved`) only.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.analysis.counters import CellCalls, PeakBytes, SavedBytes, flop_counter
from loopgrad.analysis.precision import preserved_rng
from loopgrad.gradients import tree


@dataclass(frozen=True)
class Cost:
    """Cost of one forward and one backward pass.

    Attributes:
        saved_bytes: Bytes the graph keeps for backward when the forward pass ends, each storage once, less what is
            excluded. Blind to tensors that an autograd.Function keeps as attributes of `ctx`; `peak_bytes` is not.
        peak_bytes: Largest number of bytes alive at once among the storages that operators allocated during the two
            passes, gradients included (they start from None); parameters and data made before are not.
        cell_evaluations: Calls of the cell, recomputation included; None if no cell was given.
        vjps: Calls of the cell that a backward pass went through; None if no cell was given.
        flops: FLOPs of matrix products, convolutions and attention in both passes, 2 per multiply-add.
        seconds: Median wall time of both passes together, without any counter; nan if not timed.
    """

    saved_bytes: int
    peak_bytes: int
    cell_evaluations: int | None
    vjps: int | None
    flops: int
    seconds: float

    def __repr__(self) -> str:
        """Say what was counted, in units that can be read."""
        counts = f"{self.cell_evaluations} cell evaluations, {self.vjps} vjps, "
        return (
            f"Cost: saved {self.saved_bytes / 2**20:.4g} MiB, peak {self.peak_bytes / 2**20:.4g} MiB, "
            f"{'' if self.cell_evaluations is None else counts}{self.flops / 1e9:.3g} GFLOPs, {self.seconds:.3g} s"
        )


def measure(
    run: Callable[[], torch.Tensor],
    *,
    cell: nn.Module | None = None,
    exclude: Any = (),
    repeats: int = 5,
    warmup: int = 1,
) -> Cost:
    """Measure one forward and backward pass of `run`.

    `run` is called 3 + warmup + repeats times: once under the counters of calls and saved bytes, once under that of
    peak bytes, once under that of FLOPs, then plainly. Each time the random number generators start from the same
    state. They are restored at the end, and the `.grad` of every leaf that the loss depends on is put back.

    Cost:
        The counting passes take a few times the plain one and keep nothing afterwards.
    Not recommended when:
        `run` has side effects (an optimiser step, batch statistics), which happen at each call.

    Args:
        run: Does a forward pass and returns the scalar loss; `loss.backward()` is called here.
        cell: The module whose calls are counted. Its parameters and buffers are excluded from saved_bytes.
        exclude: Tensors, modules (their parameters and buffers) or trees of these that exist whether or not a graph
            is kept (the model, the batch), so that saved_bytes leaves them out.
        repeats: Timed passes; 0 to leave the time out.
        warmup: Plain passes before those.

    Raises:
        TypeError: `run` did not return a tensor, or `exclude` holds something that is neither tensor nor module.
        ValueError: The loss is not a scalar that requires grad, or repeats or warmup is negative.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import measure
        >>> linear, x = torch.nn.Linear(4, 4, bias=False), torch.ones(2, 4)
        >>> cost = measure(lambda: linear(x).tanh().sum(), cell=linear, exclude=x)
        >>> cost.saved_bytes, cost.cell_evaluations, cost.vjps, cost.flops  # tanh keeps its output
        (32, 1, 1, 128)
    """
    _check_counts(repeats=repeats, warmup=warmup)
    modules, tensors = _split(exclude)
    modules += [cell] if cell is not None else []
    tensors += [tensor for module in modules for tensor in [*module.parameters(), *module.buffers()]]

    calls = CellCalls(cell) if cell is not None else None
    saved = SavedBytes(tensors)
    with preserved_rng(), calls or nullcontext():
        with saved:
            loss = _forward(run)
        saved_bytes = saved.held()
        leaves = _leaves()
        with _gradients_set_aside(leaves):
            loss.backward()
    del loss, saved

    peak, flops = PeakBytes(), flop_counter()
    for counter in (peak, flops):
        with preserved_rng(), _gradients_set_aside(leaves), counter:
            _forward(run).backward()

    seconds = [_seconds(run, leaves) for _ in range(warmup + repeats)][warmup:]
    return Cost(
        saved_bytes=saved_bytes,
        peak_bytes=peak.peak,
        cell_evaluations=calls.evaluations if calls else None,
        vjps=calls.vjps if calls else None,
        flops=int(flops.get_total_flops()),
        seconds=statistics.median(seconds) if seconds else float("nan"),
    )


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several runs in turn (a b c a b c ...), so that a busy machine slows all of them alike.

    Before each timed call the same run is called once untimed: a run finds memory as it would in a loop of its own.
    Without that, a run's time depends on which run came before it, by the memory pages that one left mapped.

    Cost:
        Two calls per run and round.

    Args:
        runs: Name -> run. If a run returns a tensor that requires grad, its backward pass is timed with it and the
            `.grad` of the leaves is put back; else the call is all there is (a whole training step, say).
        repeats: Timed rounds.
        warmup: Rounds before those; each run is called once more before that, to find its leaves.
        clock: Seconds; time.process_time counts CPU time, which other programs on a busy machine disturb less.

    Returns:
        Name -> seconds of each round, in order; see `median_ratio`.

    Raises:
        ValueError: repeats or warmup is negative.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import interleaved, median_ratio
        >>> times = interleaved({"a": lambda: torch.ones(8).sum(), "b": lambda: torch.ones(8).sum()}, repeats=3)
        >>> len(times["a"]), median_ratio(times["a"], times["b"]) > 0
        (3, True)
    """
    _check_counts(repeats=repeats, warmup=warmup)
    leaves: dict[str, list[torch.Tensor]] = {}
    for name, run in runs.items():
        with preserved_rng():
            loss = run()
            leaves[name] = _leaves() if _differentiable(loss) else []
            del loss
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup + repeats):
        for name, run in runs.items():
            _seconds(run, leaves[name], clock)
            times[name].append(_seconds(run, leaves[name], clock))
    return {name: seconds[warmup:] for name, seconds in times.items()}


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median of times[i] / reference[i], rounds of one `interleaved` call.

    Raises:
        ValueError: The two differ in length or are empty.
    """
    if len(times) != len(reference) or not times:
        raise ValueError(
            f"times and reference must hold the same rounds, at least one: got {len(times)} and {len(reference)}"
        )
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def _forward(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    loss = run()
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"run must return the loss, a scalar tensor, got {type(loss).__name__}")
    if loss.numel() != 1 or not loss.requires_grad:
        raise ValueError(
            f"run must return a scalar loss that requires grad, got shape {tuple(loss.shape)}, "
            f"requires_grad={loss.requires_grad}: reduce it, and do not detach it"
        )
    return loss


def _seconds(
    run: Callable[[], Any], leaves: Iterable[torch.Tensor], clock: Callable[[], float] = time.perf_counter
) -> float:
    with preserved_rng(), _gradients_set_aside(leaves):
        _synchronize()
        start = clock()
        loss = run()
        if _differentiable(loss):
            loss.backward()
        _synchronize()
        return clock() - start


def _differentiable(loss: Any) -> bool:
    return isinstance(loss, torch.Tensor) and loss.requires_grad


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _gradients_set_aside(leaves: Iterable[torch.Tensor]) -> Iterator[None]:
    kept = [(leaf, leaf.grad) for leaf in leaves]
    for leaf, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in kept:
            leaf.grad = gradient


def _leaves() -> list[torch.Tensor]:
    """Return every leaf that a backward pass may write to.

    Not read off the graph: it does not show the leaves of an inner backward pass, as torch.utils.checkpoint makes one;
    and a graph that Python has walked is freed recursively (torch 2.13), which ends the process where it is deep.
    """
    tensors = (it for it in gc.get_objects() if issubclass(type(it), torch.Tensor))
    return [tensor for tensor in tensors if tensor.is_leaf and tensor.requires_grad]


def _split(exclude: Any) -> tuple[list[nn.Module], list[torch.Tensor]]:
    modules: list[nn.Module] = []
    tensors: list[torch.Tensor] = []
    for leaf in tree.flatten(list(exclude) if isinstance(exclude, Iterator) else exclude)[0]:
        if isinstance(leaf, nn.Module):
            modules.append(leaf)
        elif isinstance(leaf, torch.Tensor):
            tensors.append(leaf)
        elif leaf is not None and not isinstance(leaf, int | float | str):
            raise TypeError(f"exclude takes tensors, modules or trees of these, got {type(leaf).__name__}")
    return modules, tensors


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 0:
            raise ValueError(f"{name} must be at least 0, got {count}")

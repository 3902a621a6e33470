"""The processes that share one run: which of them this is, its rows, and what they tell each other.

torchrun starts them and tells each by environment variables; without these there is one process, and nothing is sent.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from loopgrad.experiments.errors import ConfigError, WorkerLost

if TYPE_CHECKING:
    import torch

Thing = TypeVar("Thing")
MEETING = 600.0
"""Seconds within which all ranks must have come."""
LONGEST = timedelta(days=1)
"""For one rank's work alone, such as probes; a rank that is gone is noticed at once."""
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Ranks:
    """One of the processes of a run, all of which call the same methods in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local: Number of this process on its machine.
        words: The group by which plain things go; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    words: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which of `count` rows are those of this process."""
        return cut(slice(0, count), self.size)[self.rank]

    def all(self, thing: Thing) -> list[Thing]:
        """Return what each process has given, in the order of their ranks."""
        if self.size == 1:
            return [thing]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with lost_ranks():
            dist.all_gather_object(found, thing, group=self.words)
        return found

    def any(self, asked: bool) -> bool:
        """Return whether any process says so."""
        return any(self.all(asked))

    def told(self, thing: Thing) -> Thing:
        """Return what the first process has given."""
        if self.size == 1:
            return thing
        import torch.distributed as dist

        found: list[Any] = [thing]
        with lost_ranks():
            dist.broadcast_object_list(found, 0, group=self.words)
        return found[0]

    def share(self, content: Any) -> Any:
        """Return nested dicts and lists of tensors and plain values as the first has them; tensors come one by one."""
        if self.size == 1:
            return content
        outline = self.told(_outline(content) if self.first else None)
        return self._filled(outline, content if self.first else None)

    def _filled(self, outline: Any, content: Any) -> Any:
        import torch
        import torch.distributed as dist

        if isinstance(outline, dict):
            return {key: self._filled(value, content and content[key]) for key, value in outline.items()}
        if isinstance(outline, list):
            return [self._filled(value, content and content[place]) for place, value in enumerate(outline)]
        if not isinstance(outline, torch.Tensor):
            return outline
        sent = content.detach().cpu().contiguous() if self.first else torch.empty(outline.shape, dtype=outline.dtype)
        if sent.numel():
            with lost_ranks():
                dist.broadcast(sent.view(-1).view(torch.uint8), 0)
        return sent

    def add(self, tensor: "torch.Tensor") -> None:
        """Fill a tensor with the sum of those of all processes."""
        import torch.distributed as dist

        with lost_ranks():
            dist.all_reduce(tensor)


ALONE = Ranks()


def _outline(content: Any) -> Any:
    """Return nested dicts and lists with tensors that hold nothing."""
    if isinstance(content, dict):
        return {key: _outline(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_outline(value) for value in content]
    return content.detach().to("meta") if hasattr(content, "detach") else content


def cut(rows: slice, count: int) -> list[slice]:
    """Cut rows into so many parts that differ by one row at most."""
    size = rows.stop - rows.start
    ends = [rows.start + size * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in zip(ends, ends[1:], strict=False)]


def started(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Return which process this is, as torchrun says.

    Raises:
        ConfigError: The variables are not those of torchrun.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    if size == 1:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size} is set and {' and '.join(missing)} not: start the processes by torchrun, or unset it"
        )
    rank = _number(environment, "RANK", 0)
    local = _number(environment, "LOCAL_RANK", rank)
    _number(environment, "MASTER_PORT", 1)
    if rank >= size:
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={size}: start the processes by torchrun")
    return Ranks(rank, size, local)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    told = environment.get(name) or str(default)
    if not told.isascii() or not told.isdigit() or (name == "WORLD_SIZE" and int(told) < 1):
        raise ConfigError(f"{name}={told}: must be a number, as torchrun sets it: unset it to run in one process")
    return int(told)


def settle(ranks: Ranks, device: str) -> None:
    """Make the accelerator of this process the current one, where there is one and it is not to be the CPU.

    Raises:
        ConfigError: There are fewer accelerators than processes, or one was named for all.
    """
    if ranks.size == 1 or device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        return
    if device not in ("auto", "cuda"):
        raise ConfigError(f"trainer.device={device}: each process takes the GPU of its LOCAL_RANK: leave it auto")
    if ranks.local >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"LOCAL_RANK={ranks.local}: this machine has {count} GPUs, one for each process: start {count} at most, "
            "or set trainer.device=cpu"
        )
    torch.cuda.set_device(ranks.local)


@contextmanager
def joined(ranks: Ranks, device: "torch.device") -> Iterator[Ranks]:
    """Join the processes of a run in the block; at its end all wait for the first.

    Raises:
        ConfigError: This torch has no torch.distributed, or processes do not come.
        WorkerLost: One has ended.
    """
    if ranks.size == 1:
        yield ranks
        return
    import torch.distributed as dist

    if not dist.is_available():
        raise ConfigError(f"WORLD_SIZE={ranks.size}: this build of torch has no torch.distributed: run one process")
    _end_with_agent()
    store = _met(ranks)
    with lost_ranks():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size)
        words: Any = dist.new_group(backend="gloo", timeout=LONGEST)
    yield Ranks(ranks.rank, ranks.size, ranks.local, words)
    with lost_ranks():
        dist.barrier(words)
    dist.destroy_process_group()  # not after an error: it may wait for ranks that are gone


def _met(ranks: Ranks) -> Any:
    """Return the store of the ranks once all are there, awake for signals meanwhile."""
    import torch.distributed as dist

    own = ranks.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=own, timeout=timedelta(seconds=60), wait_for_workers=False)
    except RuntimeError as error:
        raise ConfigError(f"MASTER_ADDR={address} MASTER_PORT={port}: no rank 0 answers there") from error
    attempt = dist.PrefixStore(f"loopgrad/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    attempt.set(f"here/{ranks.rank}", "")
    end = time.monotonic() + MEETING
    with lost_ranks():
        while not attempt.check([f"here/{rank}" for rank in range(ranks.size)]):
            if time.monotonic() > end:
                raise ConfigError(f"WORLD_SIZE={ranks.size}: not so many processes came within {MEETING:.0f} s")
            time.sleep(0.05)
    return attempt


def _end_with_agent() -> None:
    """Ask for SIGTERM when torchrun is gone: nobody else would end these processes, and they hold the folder."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def lost_ranks(computing: bool = False) -> Iterator[None]:
    """Say of an exchange that breaks off that a process has ended.

    Args:
        computing: Whether the block computes too, so that an error that does not tell of an exchange is another's.

    Raises:
        WorkerLost: As said.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if computing and not _of_exchange(error):
            raise
        raise WorkerLost(
            "one of the processes of this run has ended or was killed, and with it all do; the same command goes on "
            "from the last checkpoint, on any number of processes"
        ) from error


def _of_exchange(error: RuntimeError) -> bool:
    """Whether an error is one of the library that carries what processes send each other."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)

"""Running a function in two processes of torch.distributed on gloo, for so long and no longer."""

import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

WORLD = 2
PRELOADED = ["loopgrad.experiments.training.runs", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]


def in_two(work: Callable[..., Any], *given: Any, seconds: float = 120) -> list[Any]:
    """Return what `work(rank, *given)` returns in each process; both are killed when the time is up."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload(PRELOADED)  # once for all tests of a run
        context = multiprocessing.start_processes(
            _rank, (work, folder, given), nprocs=WORLD, join=False, start_method="forkserver"
        )
        end = time.monotonic() + seconds
        try:
            while not context.join(timeout=1):
                if time.monotonic() > end:
                    raise TimeoutError(f"two processes were not done after {seconds} s: a deadlock?")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, work: Callable[..., Any], folder: str, given: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=timedelta(seconds=20)
    )
    torch.save(work(rank, *given), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def outcome(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, or the text of its refusal."""
    try:
        return work()
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"

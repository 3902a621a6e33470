"""Processes of a command: how many at once, what ends them, and calling a function on several jobs in them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from loopgrad.experiments.endings import SIGNALS
from loopgrad.experiments.errors import Interrupted, WorkerLost

Job = TypeVar("Job")
Result = TypeVar("Result")


def at_once(jobs: int, workers: int | None, device: torch.device, num_threads: int) -> int:
    """Return how many jobs go at once: as asked, else as many as the cores hold, one on an accelerator."""
    if workers is None and device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores // num_threads
    return max(1, min(jobs, workers or 1))


def mapped(fn: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> list[Result]:
    """Return [fn(job) for job in jobs], `workers` at a time; see `completed`."""
    found = dict(completed(fn, jobs, workers))
    return [found[index] for index in range(len(jobs))]


def completed(fn: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Result]]:
    """Yield (index of job, fn(job)) as jobs end, `workers` at a time; the results do not depend on how many.

    Ctrl-C ends the workers at once, and so does the end of this process.

    Args:
        fn: A function of the top level of a module; it and what it returns go from process to process.
        jobs: Its arguments; those that take longest best come first.
        workers: Processes; with 1 there is none but this one.

    Raises:
        WorkerLost: A worker was killed from outside.
        Exception: What fn raised.
    """
    if workers == 1 or not jobs:
        yield from ((index, fn(job)) for index, job in enumerate(jobs))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin) as pool:
        try:
            pending = {pool.submit(fn, job): index for index, job in enumerate(jobs)}
            for future in as_completed(pending):
                yield pending[future], future.result()
        except BrokenProcessPool:
            raise WorkerLost("a worker process was killed") from None
        except Exception:  # jobs under way may store what they find
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=die_with_parent, daemon=True).start()


def die_with_parent() -> None:
    """End at once when the parent is gone: the same command may be running anew, in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass
class Stop:
    """Whether the user, or the cluster, has asked to stop."""

    requested: bool = False
    signal: int = signal.SIGINT


@contextmanager
def on_signal() -> Iterator[Stop]:
    """Turn the first signal that ends commands into a request, so that no step is cut in half; a second one interrupts.

    Signals that are ignored, as under nohup, stay so.
    """
    stop = Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: object) -> None:
        stop.requested, stop.signal = True, number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    except Interrupted as error:
        error.signal = stop.signal
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

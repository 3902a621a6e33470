"""Calling a function on several jobs at once, in processes of their own, for measurements that take an hour."""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from loopgrad.experiments.crew import die_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")


def mapped(fn: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> list[Result]:
    """Return [fn(job) for job in jobs], `workers` at a time; the results do not depend on how many.

    Ctrl-C ends the workers at once, and so does the end of this process.

    Args:
        fn: A function of the top level of a module; it and what it returns go from process to process.
        jobs: Its arguments; those that take longest best come first.
        workers: Processes; with 1 there is none but this one.

    Raises:
        BrokenProcessPool: A worker was killed from outside.
        Exception: What fn raised.
    """
    if workers == 1:
        return [fn(job) for job in jobs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _begin) as pool:
        try:
            return [future.result() for future in [pool.submit(fn, job) for job in jobs]]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=die_with_parent, daemon=True).start()

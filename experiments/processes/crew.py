"""Doing jobs in worker processes, one pipe each: no lock or queue is shared, so a worker that dies blocks nobody."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from loopgrad.experiments.errors import WorkerLost
from loopgrad.experiments.processes.worker import HELD_BACK, serve

if TYPE_CHECKING:
    import torch

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[Any], None], Callable[[], bool]], Result]
PATIENCE = 0.2
"""Seconds after which it is looked whether the jobs are called off."""


@dataclass(frozen=True)
class Ending(Generic[Job, Result]):
    """How a job ended.

    Attributes:
        job: The job.
        result: What it gave.
        error: What it raised, WorkerLost if its process died; None if it was done.
    """

    job: Job
    result: Result | None = None
    error: BaseException | None = None


def at_once(jobs: int, workers: int | None, device: "torch.device", num_threads: int) -> int:
    """Return how many jobs go at once: as asked, else as many as the cores hold, one on an accelerator."""
    if workers is None and device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores // num_threads
    return max(1, min(jobs, workers or 1))


def mapped(
    fn: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    ended: Callable[[int, Result], None] = lambda place, result: None,
) -> list[Result]:
    """Return [fn(job) for job in jobs], `workers` at a time; the results do not depend on how many.

    Args:
        fn: A function of the top level of a module; it and what it returns go from process to process.
        jobs: Its arguments; those that take longest best come first.
        workers: Processes; with 1 there is none but this one.
        ended: Called with the place of a job in the list and its result, as soon as it has one.

    Raises:
        WorkerLost: A worker died.
        Exception: What fn raised.
    """
    found: dict[int, Any] = {}
    if workers == 1:
        for index, job in enumerate(jobs):
            found[index] = fn(job)
            ended(index, found[index])
        return list(found.values())
    with closing(completed(partial(_numbered, fn), list(enumerate(jobs)), workers)) as endings:
        for ending in endings:
            if isinstance(ending.error, WorkerLost):
                raise WorkerLost(f"{ending.job[1]}: its process {ending.error}")
            if ending.error:
                raise ending.error
            found[ending.job[0]] = ending.result
            ended(ending.job[0], found[ending.job[0]])
    return [found[index] for index in range(len(jobs))]


def _numbered(fn: Callable[[Any], Any], job: tuple[int, Any], *_: Any) -> Any:
    return fn(job[1])


def completed(
    fn: Work[Job, Result],
    jobs: Sequence[Job],
    workers: int,
    told: Callable[[Job, Any], None] = lambda job, what: None,
    called_off: Callable[[], bool] = lambda: False,
) -> Generator[Ending[Job, Result], None, None]:
    """Yield how jobs ended, as they end, `workers` at a time, each in a process that is not this one.

    A job that fails, or whose process dies, stops no other. The processes end with the iterator, which
    contextlib.closing closes whatever happens, and with this process, however it ends.

    Args:
        fn: Called as fn(job, tell, ended) in a worker: tell(anything) is heard here, and ended() is whether the job was
            called off. A function of the top level of a module; it, the jobs and results go from process to process.
        jobs: What it is called on; those that take longest best come first.
        workers: Processes.
        told: Called with a job and what it tells.
        called_off: Asked several times a second; once true, no other job begins, and those under way see `ended`.
    """
    waiting, crew, no_more = deque(jobs), [], False
    try:
        while crew or (waiting and not no_more):
            if not no_more and called_off():
                no_more = True
                for worker in crew:
                    worker.dismiss()
            while waiting and not no_more and len(crew) < workers:
                crew.append(_Worker())
                crew[-1].start()
                crew[-1].hand(fn, waiting.popleft())
            heard = wait([worker.pipe for worker in crew], timeout=PATIENCE)
            for worker in [it for it in crew if it.pipe in heard or it.process.exitcode is not None]:
                kind, what = worker.hear()
                if kind == "told":
                    told(worker.job, what)
                    continue
                job, worker.job = worker.job, None
                if kind == "ended":
                    crew.remove(worker)
                elif waiting and not no_more:
                    worker.hand(fn, waiting.popleft())
                else:
                    worker.dismiss()
                if job is not None:
                    error = what.whole() if kind == "failed" else WorkerLost(what) if kind == "ended" else None
                    yield Ending(job, what if kind == "done" else None, error)
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A worker process, seen from here; it begins at `start`."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, self._there = context.Pipe()
        self.process = context.Process(target=serve, args=(self._there,), daemon=True)
        self.job: Any = None

    def start(self) -> None:
        with _held_back():
            self.process.start()
        self._there.close()  # else the end of the process would not end the pipe

    def hand(self, fn: Any, job: Any) -> None:
        self.job = job
        self._send((fn, job))

    def dismiss(self) -> None:
        """Tell it to end; a job under way is told that it is called off."""
        self._send(None)

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # it may be dead, which is seen when the pipe is read
            self.pipe.send(what)

    def hear(self) -> tuple[str, Any]:
        """Return what it says; ("ended", how) if it has died, or has nothing more to say."""
        try:
            if self.pipe.poll():  # a process of its own may hold the pipe when it is dead itself
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5.0)
        self.end()
        return "ended", _how(self.process.exitcode)

    def end(self) -> None:
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _how(exitcode: int | None) -> str:
    """Return how a process ended, in words."""
    if exitcode is None or exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    about = signal.strsignal(-exitcode) if name != "SIGKILL" else "by the system for want of memory, perhaps"
    return f"was killed by {name}" + (f" ({about})" if about else "")


@contextmanager
def _held_back() -> Iterator[None]:
    """Block signals that a process which begins in here is to ignore: before it does, they would end it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # begun with the first process, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

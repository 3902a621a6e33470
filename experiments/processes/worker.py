"""A worker process: it does jobs as they come over its pipe, until it is told to end or its parent is gone.

Nothing here loads torch: a worker is bound to its parent before it loads what its jobs need, which takes seconds.
"""

import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import NamedTuple

from loopgrad.experiments.endings import SIGNALS, reserve

HELD_BACK = set(SIGNALS) - {signal.SIGTERM}
"""Signals that reach the parent too, as Ctrl-C does, and are its affair."""
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def serve(pipe: Connection) -> None:
    """Do jobs as they come, each (fn, job): call fn(job, tell, ended); end at None.

    What is sent back is ("told", anything) on the way, and at last ("done", result) or ("failed", Raised).
    """
    _end_with_parent()
    for number in HELD_BACK:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    held_back = reserve()
    while True:
        try:
            asked = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            job = pickle.loads(asked)
            if job is None:
                return
            fn, what = job
            # nothing but None comes while a job is under way
            answer = "done", fn(what, lambda told: pipe.send(("told", told)), pipe.poll)
        except Exception as error:
            held_back.clear()  # there may be no other memory to tell of it
            answer = "failed", Raised.of(error)
        try:
            pipe.send(answer)
        except MemoryError:
            held_back.clear()
            pipe.send(("failed", Raised([(MemoryError(), False)], "")))


def _end_with_parent() -> None:
    """End at once when the parent is gone: the same command may be running anew, in the same folder.

    A thread that waits for it is not enough: while a module is loaded, or LAPACK is called, no thread may run for long.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it was gone before
            os._exit(1)

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Raised(NamedTuple):
    """An exception with those that it comes from, which pickle would drop, and where it was raised."""

    chain: list[tuple[BaseException, bool]]
    where: str

    @classmethod
    def of(cls, error: BaseException) -> "Raised":
        """Take an exception apart."""
        chain: list[tuple[BaseException, bool]] = []
        found: BaseException | None = error
        while found is not None and len(chain) < 20:
            chain.append((_portable(found), found.__cause__ is not None))
            found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
        return cls(chain, "".join(traceback.format_exception(type(error), error, error.__traceback__)))

    def whole(self) -> BaseException:
        """Return the exception as it was, with its traceback as the last cause."""
        traced: BaseException = InWorker(f"\n{self.where}")
        above = traced
        for error, meant in reversed(self.chain):
            if meant or above is traced:
                error.__cause__ = above
            else:
                error.__context__ = above
            above = error
        return above


class InWorker(Exception):
    """The traceback of an exception in a worker, as text."""


def _portable(error: BaseException) -> BaseException:
    """Return the exception, or one of its words if it cannot be sent."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")

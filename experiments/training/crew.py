"""Executing several runs at once, in processes of their own, with one progress display."""

import multiprocessing
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loopgrad.experiments.errors import Interrupted, WorkerLost
from loopgrad.experiments.processes import die_with_parent, on_signal
from loopgrad.experiments.training.runs import Plan, execute


def execute_all(plans: list[Plan], workers: int, console: Console) -> None:
    """Execute plans, `workers` at a time, showing loss, accuracy and bytes of each.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM; every run that had begun has stored its checkpoint.
        WorkerLost: A process was killed from outside.
        Exception: What a run raised, after the others have stored their checkpoints.
    """
    with _progress(console) as progress:
        bars = _Bars(progress, plans)
        if workers == 1:
            for plan in plans:
                execute(plan, bars.show)
                bars.done(plan.name)
        else:
            _share(plans, workers, bars)


def _share(plans: list[Plan], workers: int, bars: "_Bars") -> None:
    """Hand plans out over one pipe per process: no lock and no queue is shared, so a killed process blocks nobody."""
    left = iter(plans)
    finished: set[str] = set()
    failure: BaseException | None = None
    with on_signal() as stop:
        crew = dict(_begin() for _ in range(workers))
        for pipe in crew:
            _hand(pipe, next(left, None))
        told = False
        while crew:
            if not told and (failure or stop.requested or len(crew) < min(workers, len(plans) - len(finished))):
                told = True
                for pipe in crew:
                    _hand(pipe, None)  # a run that is under way stores its checkpoint and ends
            for pipe in wait(list(crew), timeout=0.2):
                assert isinstance(pipe, Connection)
                try:
                    name, entry = pipe.recv()
                except (EOFError, OSError):  # the process has ended
                    crew.pop(pipe).join()
                    continue
                if isinstance(entry, BaseException):
                    failure = failure or entry
                elif entry is not None:
                    bars.show(name, entry)
                else:
                    bars.done(name)
                    finished.add(name)
                    if not told:
                        _hand(pipe, next(left, None))
        if failure:
            raise failure
        if stop.requested:
            raise Interrupted("the comparison", bars.steps)
        if len(finished) < len(plans):
            raise WorkerLost("a worker process was killed; the same command goes on from the checkpoints")


def _begin() -> tuple[Connection, Any]:
    """Start a worker process; return the pipe to it and the process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    mask = getattr(signal, "pthread_sigmask", None)  # inherited: Ctrl-C while a process starts would print a traceback
    if mask:
        mask(signal.SIG_BLOCK, {signal.SIGINT})
    process.start()
    if mask:
        mask(signal.SIG_UNBLOCK, {signal.SIGINT})
    there.close()  # else the end of the process would not end the pipe
    return here, process


def _hand(pipe: Connection, plan: Plan | None) -> None:
    """Give a worker its next plan; None tells it to end."""
    with suppress(OSError):  # it may be dead, which is seen when the pipe is read
        pipe.send(plan)


def _serve(pipe: Connection) -> None:
    """Execute plans as they come; end at None, in the middle of a run too, and with the process that began this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which tells its crew
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=die_with_parent, daemon=True).start()

    while (plan := pipe.recv()) is not None:
        try:
            # nothing but None comes while a plan is under way
            execute(plan, lambda *told: pipe.send(told), ended=pipe.poll)
        except Interrupted:
            return
        except Exception as error:
            pipe.send((plan.name, error))
            return
        pipe.send((plan.name, None))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:>4.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class _Bars:
    """One bar per run that has begun, and one printed line per run that has ended."""

    def __init__(self, progress: Progress, plans: list[Plan]):
        self._progress = progress
        self._total = {plan.name: plan.trainer.train_steps for plan in plans}
        self._bars: dict[str, Any] = {}
        self._last: dict[str, dict[str, Any]] = {}  # with the latest held-out accuracy, which not every step has

    def show(self, name: str, entry: dict[str, Any]) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=self._total[name], note="")
        self._last[name] = {**self._last.get(name, {}), **entry}
        self._progress.update(self._bars[name], completed=entry["step"], note=self._note(name))

    @property
    def steps(self) -> int:
        return sum(entry["step"] for entry in self._last.values())

    def done(self, name: str) -> None:
        if name in self._bars:
            self._progress.remove_task(self._bars.pop(name))
        self._progress.console.print(f"{name:<24} step {self._total[name]:>5}  {self._note(name)}", highlight=False)

    def _note(self, name: str) -> str:
        entry = self._last.get(name)
        if entry is None:
            return ""
        held_out = f"  held-out {entry['test_exact_accuracy']:6.1%}" if "test_exact_accuracy" in entry else ""
        saved = f"  saved {entry['saved_bytes'] / 2**20:.1f} MiB"
        return f"loss {entry['loss']:.3f}  exact {entry['exact_accuracy']:6.1%}{held_out}{saved}"

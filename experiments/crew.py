"""Executing several runs at once, in processes of their own, with one progress display."""

import multiprocessing
import os
import queue
import signal
import threading
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loopgrad.experiments import stopping
from loopgrad.experiments.runs import Interrupted, Plan, execute


class WorkerLost(RuntimeError):
    """A process that ran plans was killed from outside, by the system for want of memory perhaps."""


def workers_for(plans: list[Plan], workers: int | None) -> int:
    """Return how many runs go at once: as asked, else as many as the cores hold, one on an accelerator."""
    if workers is not None:
        return min(workers, len(plans))
    trainer = plans[0].trainer
    if trainer.torch_device().type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(len(plans), cores // trainer.num_threads))


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
    context = multiprocessing.get_context("spawn")
    work, messages = context.Queue(), context.Queue()
    for plan in [*plans, *[None] * workers]:
        work.put(plan)
    work.cancel_join_thread()  # plans that no one will take must not keep this process waiting
    ended = context.Event()
    crew = [context.Process(target=_serve, args=(work, messages, ended), daemon=True) for _ in range(workers)]
    failure: BaseException | None = None
    with stopping.on_signal() as stop:
        for process in crew:
            process.start()
        while any(process.is_alive() for process in crew) or not messages.empty():
            # not by a signal: between two runs, or while a process writes to the queue, it would do harm
            if failure or stop.requested or any(process.exitcode for process in crew):
                ended.set()  # a run that is under way stores its checkpoint and ends
            try:
                name, entry = messages.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(entry, BaseException):
                failure = failure or entry
            elif entry is None:
                bars.done(name)
            else:
                bars.show(name, entry)
        if failure:
            raise failure
        if stop.requested:
            raise Interrupted("the comparison", bars.steps)
        if any(process.exitcode for process in crew):
            raise WorkerLost("a worker process was killed; the same command goes on from the checkpoints")


def _serve(work: Any, messages: Any, ended: Any) -> None:
    """Execute plans from a queue until it says None or `ended` is set; die with the process that began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which tells its crew
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def report(name: str, entry: dict[str, Any]) -> None:
        messages.put((name, entry))

    while not ended.is_set() and (plan := work.get()) is not None:
        try:
            execute(plan, report, ended.is_set)
        except Interrupted:
            return
        except Exception as error:
            messages.put((plan.name, error))
            return
        messages.put((plan.name, None))


def _die_with_parent() -> None:
    """End at once when the parent is gone: the same command may be running anew, in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
        self._last: dict[str, dict[str, Any]] = {}
        self._test: dict[str, float] = {}

    def show(self, name: str, entry: dict[str, Any]) -> None:
        if name not in self._bars:
            self._bars[name] = self._progress.add_task(name, total=self._total[name], note="")
        if "test_exact_accuracy" in entry:
            self._test[name] = entry["test_exact_accuracy"]
        self._last[name] = entry
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
        held_out = f"  held-out {self._test[name]:6.1%}" if name in self._test else ""
        saved = f"  saved {entry['saved_bytes'] / 2**20:.1f} MiB"
        return f"loss {entry['loss']:.3f}  exact {entry['exact_accuracy']:6.1%}{held_out}{saved}"

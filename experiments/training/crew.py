"""Executing several runs at once, in processes of their own, with one progress display."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loopgrad.experiments.errors import Interrupted, WorkerLost
from loopgrad.experiments.processes import ALONE, Ranks, completed, on_signal
from loopgrad.experiments.training.runs import Plan, execute


def execute_all(
    plans: list[Plan],
    workers: int,
    console: Console,
    ranks: Ranks = ALONE,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Execute plans, `workers` at a time, or all ranks one after the other, showing loss, accuracy and bytes of each.

    Args:
        plans: What is run.
        workers: How many at a time.
        console: Where it is shown.
        ranks: Who runs each together.
        enough: Asked after each step whether all of it is to stop, as after a signal.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM, or enough; every run that had begun has stored its checkpoint.
        WorkerLost: The process of a run died; the message says whose and how.
        Exception: What a run raised, after the others have stored their checkpoints.
    """
    with _progress(console) as progress:
        bars = _Bars(progress, plans)
        if workers == 1:
            for plan in plans:  # in this process, where a debugger reaches an estimator of the user's own
                execute(plan, bars.show, enough, ranks)
                bars.done(plan.name)
        else:
            _share(plans, workers, bars, enough)


def assist(ranks: Ranks, plans: list[Plan], console: Console) -> None:
    """Execute plans together with the first rank, which holds the folder, unless it has their results already."""
    if not ranks.told(True):
        execute_all(plans, 1, console, ranks)


def _share(plans: list[Plan], workers: int, bars: "_Bars", enough: Callable[[], bool]) -> None:
    """Execute plans in worker processes; once a run has failed, those under way store their checkpoints and end."""
    failure: BaseException | None = None
    done = 0
    with on_signal() as stop:

        def called_off() -> bool:
            return stop.requested or failure is not None or enough()

        def show(plan: Plan, entry: Any) -> None:
            bars.show(plan.name, entry)

        with closing(completed(_execute, plans, workers, show, called_off)) as endings:
            for plan, error in ((ending.job, ending.error) for ending in endings):
                if error is None:
                    bars.done(plan.name)
                    done += 1
                elif stop.requested and isinstance(error, Interrupted | WorkerLost):
                    pass  # a signal to all processes ends one that has not begun its run yet
                elif failure is None and isinstance(error, Interrupted):
                    pass  # there was enough
                elif isinstance(error, WorkerLost):
                    lost = f"{plan.name}: its process {error}; the same command goes on from the checkpoints"
                    failure = failure or WorkerLost(lost)
                else:
                    failure = failure or error
        if failure:
            raise failure
        if stop.requested or done < len(plans):
            raise Interrupted("the comparison", bars.steps)


def _execute(plan: Plan, tell: Callable[[dict[str, Any]], None], ended: Callable[[], bool]) -> None:
    execute(plan, lambda _, entry: tell(entry), ended)


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

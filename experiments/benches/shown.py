"""How far a bench is: what is being measured, rows done and in all, time gone and left; lines where no terminal is."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text


class ShownRows:
    """Shows the rows of a bench in the block; a context manager.

    Args:
        name: Of the bench.
        console: Where.
    """

    def __init__(self, name: str, console: Console) -> None:
        self.lines = not console.is_terminal
        self._console, self._kept = console, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[part]}"),
            console=console,
            transient=True,
            disable=self.lines,
        )
        self._bar = self._progress.add_task(name, total=0, part="", kept=0)

    def __enter__(self) -> "ShownRows":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def expect(self, rows: int) -> None:
        """Count rows that are to come."""
        self._progress.update(self._bar, total=(self._task.total or 0) + rows)

    def begin(self, name: str) -> None:
        """Show what is being measured."""
        self._progress.update(self._bar, part=name)

    def end(self, name: str, rows: int, kept: bool) -> None:
        """Count rows that are done; without a terminal say so in a line, if they were measured and not kept."""
        self._kept += rows if kept else 0
        self._progress.update(self._bar, advance=rows, kept=self._kept)
        if self.lines and not kept:
            self._console.print(f"{self._task.completed:>4.0f}/{self._task.total:.0f}  {name}")

    @property
    def _task(self) -> Task:
        return self._progress.tasks[0]


class _Left(ProgressColumn):
    """The time that is left, if the rows to come take as long as those that were measured: kept ones took none."""

    def render(self, task: Task) -> Text:
        measured = task.completed - task.fields["kept"]
        if measured <= 0 or task.total is None or task.elapsed is None:
            return Text("-:--:-- left")
        seconds = int(task.elapsed / measured * (task.total - task.completed))
        return Text(f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left")

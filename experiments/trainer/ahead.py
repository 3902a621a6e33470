"""Drawing what the next step needs while this one runs, on a thread: the values are the same, the wait is not."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Drawn = TypeVar("Drawn")


@contextmanager
def ahead(draw: Callable[[int], Drawn], steps: int, wanted: bool = True) -> Iterator[Callable[[int], Drawn]]:
    """Yield `draw`, which calls itself for the next step beforehand.

    What a call raises is raised where its step is asked for. A step that was not foreseen is drawn at once.

    Args:
        draw: A pure function of a step.
        steps: How many there are; none is drawn beyond the last.
        wanted: False yields `draw` as it is.
    """
    if not wanted:
        yield draw
        return
    with ThreadPoolExecutor(1, thread_name_prefix="draws") as thread:
        foreseen: dict[int, Future[Drawn]] = {}

        def drawn(step: int) -> Drawn:
            this = foreseen.pop(step, None)
            foreseen.clear()
            found = draw(step) if this is None else this.result()
            if step + 1 < steps:
                foreseen[step + 1] = thread.submit(draw, step + 1)
            return found

        try:
            yield drawn
        finally:
            thread.shutdown(cancel_futures=True)

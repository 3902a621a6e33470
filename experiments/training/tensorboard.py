"""Scalars of a run for TensorBoard, where it is asked for (extra [log])."""

import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopgrad.experiments.errors import ConfigError


def check_installed(tensorboard: Any) -> None:
    """Check the key `tensorboard`.

    Raises:
        ConfigError: It is not a bool, or it is true and the package is missing.
    """
    if not isinstance(tensorboard, bool):
        raise ConfigError(f"tensorboard={tensorboard}: must be true or false")
    if tensorboard:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise ConfigError("tensorboard=true needs the package: pip install 'loopgrad[log]'") from error


@contextmanager
def scalars(folder: Path | None, first: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes what a step measured; it does nothing where `folder` is None.

    Args:
        folder: Where the event files go.
        first: Steps done already: what an interrupted run wrote beyond them is hidden.
    """
    if folder is None:
        yield lambda entry: None
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder), purge_step=first + 1) as writer:

        def write(entry: dict[str, Any]) -> None:
            for name, value in entry.items():
                if isinstance(value, numbers.Real) and name != "step":
                    writer.add_scalar(name, value, entry["step"])

        yield write

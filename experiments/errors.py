"""What ends a command in one line, with the exit code it ends with; importing them loads nothing else."""

import signal
from typing import Any


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message says what is wrong and what is near."""

    code = 2


class NonFinite(RuntimeError):
    """The loss stopped being a number; the message says at which step and which tensor was the first to go."""

    code = 1


class WorkerLost(RuntimeError):
    """A worker process died; the message says what it was doing and how it died."""

    code = 1


class ExaminationFailed(RuntimeError):
    """Weights could not be examined; the message names them and says why."""

    code = 1


class SweepUnfinished(RuntimeError):
    """Some jobs of a sweep, or some claims, have not ended; the message says which."""

    code = 1


class NoRoom(RuntimeError):
    """Too little memory is left for a command to begin; the message says how much it needs."""

    code = 1


class Interrupted(Exception):
    """The run was asked to stop by a signal and has stored its checkpoint; carries the step."""

    def __init__(self, *about: Any):
        super().__init__(*about)
        self.signal = int(signal.SIGINT)

    @property
    def code(self) -> int:
        """The exit code of what a signal has ended."""
        return 128 + self.signal


class Signalled(KeyboardInterrupt):
    """A signal has cut the command off where it stood; carries its number."""

    @property
    def code(self) -> int:
        """The exit code of what a signal has ended."""
        return 128 + self.args[0]

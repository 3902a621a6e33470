"""What ends a command in one line, with the exit code it ends with; importing them loads nothing else."""


class ConfigError(ValueError):
    """What the user asked for cannot be done; the message says what is wrong and what is near."""


class NonFinite(RuntimeError):
    """The loss stopped being a number; the message says at which step and which tensor was the first to go."""


class WorkerLost(RuntimeError):
    """A worker process was killed from outside, by the system for want of memory perhaps."""


class Interrupted(Exception):
    """The run was asked to stop and has stored its checkpoint; carries the step."""

"""Standard streams of a command: none is closed, what is printed goes through, and an error of theirs is known."""

import errno
import io
import os
import sys
import warnings
from typing import Any

from loopgrad.experiments.endings.signals import number_among_several

OUTPUT = "standard output"


def hold_streams() -> None:
    """Keep what is printed from ending up in a file of the command, and from failing for a character.

    Raises:
        OSError: Standard output is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and be printed into
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if number_among_several():  # the first alone prints; how a command ends, one of them says, see _turn
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        warnings.simplefilter("ignore")
    if sys.stdout is None:
        raise OSError(errno.EBADF, "is closed; send it to /dev/null if it is not wanted", OUTPUT)
    if (
        isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__
    ):  # a character that the encoding lacks is no reason to end
        raw, told = io.BufferedWriter(_Output(1, "w", closefd=False)), sys.stdout
        sys.stdout = io.TextIOWrapper(raw, told.encoding, "backslashreplace", line_buffering=told.line_buffering)


class _Output(io.FileIO):
    """Standard output, whose errors say that they are its own."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            error.filename = OUTPUT
            raise

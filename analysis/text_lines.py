"""Reading text that somebody else wrote: line by line, from a regular file alone, and no more of it than is said."""

import io
from collections.abc import Iterator
from pathlib import Path

from loopgrad.analysis.regular_files import open_regular

_BEGINNINGS = {
    b"\x1f\x8b": "gzip data, to be unpacked first",
    b"PK\x03\x04": "a zip archive, to be unpacked first",
    b"\xff\xfe": "UTF-16, to be saved as UTF-8",
    b"\xfe\xff": "UTF-16, to be saved as UTF-8",
}


def lines_of(path: str | Path, most_bytes: int, most_in_line: int) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line, its end taken off: LF, CRLF or CR; a byte order mark is passed over.

    Args:
        path: A file of UTF-8 text.
        most_bytes: A longer file is refused, also where it grows while it is read.
        most_in_line: A line of more characters is refused.

    Raises:
        ValueError: The file cannot be read, is no regular file, too long, or not UTF-8; the message begins with its
            path, and names the line.
    """
    try:
        with open_regular(path, most_bytes) as file:
            for beginning, what in _BEGINNINGS.items():
                if file.peek(4).startswith(beginning):
                    raise ValueError(f"{path}, line 1: not UTF-8 text but {what}")
            yield from _decoded(file, path, most_bytes, most_in_line)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(file: io.BufferedReader, path: str | Path, most: int, most_in_line: int) -> Iterator[tuple[int, str]]:
    number = read = 0
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape") as text:
        while line := text.readline(most_in_line + 2):  # CRLF and CR come as LF
            number, read, line = number + 1, read + len(line), line.removesuffix("\n")
            if len(line) > most_in_line:
                raise ValueError(f"{path}, line {number}: longer than {most_in_line} characters")
            if read > most:
                raise ValueError(f"{path}, line {number}: at most {most} bytes are read")
            if not line.isascii() and (reason := _undecoded(line)):
                raise ValueError(f"{path}, line {number}: not UTF-8 text ({reason})")
            yield number, line


def _undecoded(line: str) -> str:
    """Return what is wrong with the bytes of a line, in which those that are no UTF-8 are surrogates."""
    try:
        line.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{error.reason} at byte {error.start}"
    return ""

"""Reads text that somebody wants a language model of, from a regular file of UTF-8 within bounds."""

import re
from pathlib import Path

from loopgrad.analysis.text_lines import lines_of

MOST_BYTES = 2**27  # 134 MB; the first 10^8 bytes of Wikipedia, in one line or in many, are below
MOST_SYMBOLS = 2**16
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_POINTER = "version https://git-lfs.github.com/spec/"


def read_text(path: str | Path) -> str:
    """Return the text of a file; its lines end with LF, however the file ends them.

    Args:
        path: A file of UTF-8 text, with or without byte order mark, of at most MOST_BYTES.

    Raises:
        ValueError: The file cannot be read or is no text; the message begins with its path, and says what it is.
    """
    lines = []
    for number, line in lines_of(path, MOST_BYTES, MOST_BYTES):
        if number == 1 and line.startswith(_POINTER):
            raise ValueError(f"{path}: a pointer of Git LFS in place of the text: run `git lfs pull` to get it")
        if found := _CONTROL.search(line):
            raise ValueError(
                f"{path}, line {number}: not text: character {found.start() + 1} is {found[0]!r}, a control character"
            )
        lines.append(line)
    text = "\n".join(lines)
    if len(symbols := set(text)) > MOST_SYMBOLS:
        raise ValueError(f"{path}: {len(symbols)} different characters, and at most {MOST_SYMBOLS} are told apart")
    return text

"""Puzzle files that somebody has tampered with, or that are none: by a seed, and by hand."""

import gzip
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

GRID, OTHER = "1234341221434321", "2143432134121234"
HEADER = "source,question,answer,rating"


def grids(rng: random.Random, count: int) -> list[str]:
    """Full grids of size 4, their digits renamed by chance."""
    renamed = [dict(zip("1234", rng.sample("1234", 4), strict=True)) for _ in range(count)]
    return ["".join(names[digit] for digit in (GRID, OTHER)[i % 2]) for i, names in enumerate(renamed)]


def as_lines(rng: random.Random) -> str:
    """Puzzles, one per line, three blanks each."""
    lines = []
    for grid in grids(rng, 12):
        cells = list(grid)
        for cell in rng.sample(range(16), 3):
            cells[cell] = "."
        lines.append("".join(cells))
    return "\n".join(lines) + "\n"


def as_csv(rng: random.Random) -> str:
    """The same as a CSV with answers and ratings."""
    rows = [
        f'"a, b",{"".join(rng.choice((it, ".")) for it in grid)},{grid},{rng.randrange(99)}' for grid in grids(rng, 12)
    ]
    return "\n".join([HEADER, *rows]) + "\n"


def tampered(seed: int) -> bytes:
    """A file of puzzles, of either kind, with one to four changes by a seed."""
    rng = random.Random(seed)
    text = as_csv(rng) if rng.random() < 0.6 else as_lines(rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = _changed(text, rng) or text
    return text.encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-be")))


def _changed(text: str, rng: random.Random) -> str:
    where, lines = rng.randrange(len(text)), text.split("\n")
    one = rng.randrange(len(lines))
    change = rng.choice(
        (
            lambda: text[:where] + rng.choice('\0"",;#.0x9²\ufeff\u2028\x1b$|\t ') + text[where:],
            lambda: text[:where] + text[where + rng.randrange(1, 20) :],
            lambda: text[:where],
            lambda: text[:where] + rng.choice("123456789.") + text[where + 1 :],
            lambda: "\n".join(lines[:one] + lines[one + 1 :]),
            lambda: "\n".join(lines[: one + 1] + lines[one:]),
            lambda: "\n".join([*lines[:one], ",".join(reversed(lines[one].split(","))), *lines[one + 1 :]]),
            lambda: text.replace(",", ";"),
            lambda: text.replace("rating", rng.choice(("question", "", "RATING ", "rating,rating")), 1),
            lambda: text.rstrip("0123456789\n") + rng.choice(("9" * 30, "1e5", "-1", "", "NaN", "0x1", "9" * 6000)),
            lambda: text.replace("\n", rng.choice(("\r", "\r\n", "\n\n", "\u2028", " \n", "\n#\n"))),
            lambda: text * rng.choice((2, 50)),
        )
    )
    return change()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(path))


def _forbidden(path: Path) -> None:
    path.write_text(GRID)
    path.chmod(0)


def _of_size(path: Path, size: int) -> None:
    path.touch()
    os.truncate(path, size)  # holes, which take no room


MADE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.touch(),
    "blank lines": lambda path: path.write_text("\n \n# x\n"),
    "header alone": lambda path: path.write_text(HEADER),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "random device": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "nothing": lambda path: path.symlink_to(os.devnull),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
    "process": lambda path: path.symlink_to("/proc/self/mem"),
    "not a folder": lambda path: (path.parent / "f").write_text("") and path.symlink_to("f/x"),
    "forbidden": _forbidden,
    "holes": lambda path: _of_size(path, 2**30),
    "huge": lambda path: _of_size(path, 2**40),
    "long line": lambda path: path.write_text("1" * 2**24),
    "long field": lambda path: path.write_text(f'{HEADER}\n"' + "x\n" * 200_000),
    "many columns": lambda path: path.write_text("question,answer,rating" + "," * 9_000),
    "gzip": lambda path: path.write_bytes(gzip.compress(GRID.encode())),
    "zip": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n"),
    "any bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "returns": lambda path: path.write_bytes(b"\r" * 100_000),
    "one puzzle": lambda path: path.write_text(GRID),
    "the same puzzle": lambda path: path.write_text(f"{GRID}\n" * 500),
    "blank puzzle": lambda path: path.write_text("." * 16),
    "of size 9": lambda path: path.write_text("." * 81),
    "html": lambda path: path.write_text("<!DOCTYPE html>\n<html><body>Not Found, sorry</body></html>\n"),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}

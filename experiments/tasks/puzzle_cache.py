"""Large files of puzzles, kept as arrays once they have been read: the second time costs seconds and not minutes."""

import hashlib
import os
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np

from loopgrad.analysis.files import replace_bytes
from loopgrad.experiments.tasks.files import MOST_BYTES as MOST_READ
from loopgrad.experiments.tasks.files import Puzzles, obeys_rules, read_puzzles

LEAST_BYTES = 2**20  # below, a file is read in a moment
MOST_BYTES = 4 * 2**30  # of all that is kept
VERSION = b"puzzles 1"  # of what a reader accepts and how it is kept


def cached_puzzles(path: str | Path, size: int) -> Puzzles:
    """Read a file of puzzles as `read_puzzles` does, or what was kept of a file of the same content.

    Arrays are kept below $XDG_CACHE_HOME/loopgrad, or ~/.cache/loopgrad, under the hash of the content; the oldest go
    when there is too much. What is found there is checked by the rules that a file is read by, nothing in it can run,
    and what is wrong with it, or cannot be written, only costs the time to read the file.

    Args:
        path: The file.
        size: 4, 6 or 9.

    Raises:
        ValueError: As `read_puzzles`.
    """
    path, place = Path(path), _folder()
    before = _stamp(path)
    if place is None or before is None or not LEAST_BYTES <= before[0] <= MOST_READ:
        return read_puzzles(path, size)
    try:
        kept = place / f"{_key(path, size)}.npz"
    except OSError:
        return read_puzzles(path, size)  # which says why
    found = _load(kept, size)
    if found is None:
        found = read_puzzles(path, size)
        if _stamp(path) == before:  # else it is not what was hashed
            with suppress(OSError):
                _keep(kept, found)
    return found


def _folder() -> Path | None:
    told = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(told) if Path(told).is_absolute() else Path.home() / ".cache"  # relative ones are to be passed over
    except RuntimeError:  # a user without a home
        return None
    return root / "loopgrad" / "puzzles"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        told = path.stat()
        return (told.st_size, told.st_mtime_ns) if path.is_file() else None
    except OSError:
        return None


def _key(path: Path, size: int) -> str:
    digest = hashlib.sha256(VERSION + bytes([size]))
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _load(path: Path, size: int) -> Puzzles | None:
    """Return what is kept, None where there is nothing or it is not what `_keep` writes."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if set(arrays.files) != {"questions", "answers", "ratings"}:
                return None
            found = Puzzles(arrays["questions"], arrays["answers"], arrays["ratings"])
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, MemoryError):
        return None
    boards, count = (found.questions, found.answers), len(found.ratings)
    fits = found.ratings.dtype == np.int64 and found.ratings.shape == (count,) and count > 0
    fits = fits and all(it.dtype == np.int8 and it.shape == (count, size**2) for it in boards)
    return found if fits and _right(found, size) else None


def _right(found: Puzzles, size: int) -> bool:
    given = found.questions != 0
    same = (found.questions == found.answers) | ~given
    return bool(same.all() and obeys_rules(found.answers, size).all())


def _keep(path: Path, puzzles: Puzzles) -> None:
    buffer = BytesIO()
    np.savez(buffer, questions=puzzles.questions, answers=puzzles.answers, ratings=puzzles.ratings)
    if buffer.getbuffer().nbytes > MOST_BYTES:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_bytes(path, buffer.getvalue())
    left = MOST_BYTES
    for kept in sorted(path.parent.glob("*.npz"), key=lambda it: (it != path, -it.stat().st_mtime)):
        left -= kept.stat().st_size
        if left < 0:
            kept.unlink(missing_ok=True)

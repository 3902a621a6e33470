"""Arrays of integers in .npy files that somebody else wrote: the header is checked first, and nothing is unpickled."""

import math
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from loopgrad.analysis.regular_files import open_regular
from loopgrad.experiments.errors import ConfigError

_LONGEST_HEADER = 2**12  # one of numpy's has 128 bytes
_BEGINNINGS = {
    b"version https://git-lfs": "it is a pointer of Git LFS and not the file that it stands for: run `git lfs pull`",
    b"PK\x03\x04": "it is a zip archive, such as .npz, and not a single array",
    b"\x80": "it is a pickle, which would have to be run to be read",
    b"\x1f\x8b": "it is gzip data, to be unpacked first",
    b"<": "it is a web page: the download did not give the file",
    b"{": "it is text, JSON perhaps",
}


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which only what is asked for is read.

    The file is mapped into memory on first use, and by each process anew: what is passed to another one is where the
    array lies, and not the array.

    Attributes:
        path: The file.
        dtype: Integers of some size.
        shape: As the header says.
        offset: Bytes before the array.
        stamp: Length of the file and when it was changed last, as it was checked.
    """

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return some rows, as numpy indexes them.

        Raises:
            ConfigError: The file is not what it was any more, which can show in the midst of a command.
        """
        return self._mapped[rows]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    @cached_property
    def _mapped(self) -> np.ndarray:
        try:
            with open_regular(self.path, self.stamp[0]) as file:
                if _stamp(file.fileno()) != self.stamp:
                    raise ConfigError(f"{self.path}: it was changed after it had been checked: begin anew")
                mapped = np.memmap(file, self.dtype, "r", self.offset, self.shape)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return mapped.view(np.ndarray)


def stored_array(path: Path, dims: int, most_bytes: int) -> StoredArray:
    """Return the array of a .npy file, nothing of which is read but its header.

    Args:
        path: The file, or a link to it.
        dims: Dimensions that the array must have.
        most_bytes: A longer file is refused.

    Raises:
        ValueError: The file cannot be read, is no array of integers with so many dimensions, holds none, or is not as
            long as its header says; the message begins with its path.
    """
    with open_regular(path, most_bytes) as file:
        try:
            head, stamp = file.read(_LONGEST_HEADER), _stamp(file.fileno())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    shape, by_columns, dtype, offset = _header(head, path)
    if dtype.hasobject:
        raise ValueError(f"{path}: its array holds objects, which would have to be run to be read: store integers")
    if dtype.kind not in "iu":
        raise ValueError(f"{path}: its array is of {dtype.name[:40]}, and integers are needed")
    if len(shape) != dims or min(shape) < 0:
        raise ValueError(f"{path}: its array is {_shown(shape)}, and one of {dims} dimensions is needed")
    if not math.prod(shape):
        raise ValueError(f"{path}: its array is {_shown(shape)}, and so holds nothing")
    if by_columns and dims > 1:
        raise ValueError(f"{path}: its array is stored by columns: store np.ascontiguousarray of it")
    needed, found = offset + math.prod(shape) * dtype.itemsize, stamp[0]
    if needed != found:
        is_not = "it is cut off, or not all of it was downloaded" if found < needed else "something follows the array"
        raise ValueError(f"{path}: {found} bytes long where its header says {needed}: {is_not}")
    return StoredArray(path, dtype, shape, offset, stamp)


def _header(head: bytes, path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether it is stored by columns, dtype and length of the header, by numpy's own reading of it."""
    if not head:
        raise ValueError(f"{path}: it is empty")
    if not head.startswith(np.lib.format.MAGIC_PREFIX):
        found = (what for beginning, what in _BEGINNINGS.items() if head.lstrip().startswith(beginning))
        raise ValueError(f"{path}: no array of numpy's: {next(found, 'it does not begin as a .npy file does')}")
    buffer = BytesIO(head)
    try:
        version = np.lib.format.read_magic(buffer)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:  # 3.0 is for names of fields
            raise ValueError(f"version {version[0]}.{version[1]} of the format is not read")
        with warnings.catch_warnings():  # of what Python 2 wrote
            warnings.simplefilter("ignore")
            shape, by_columns, dtype = readers[version](buffer)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header makes numpy raise almost anything
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"{path}: its header cannot be read ({reason})") from error
    return shape, by_columns, dtype, buffer.tell()


def _stamp(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size)[:20] for size in shape[:8]) if shape else "a single number"

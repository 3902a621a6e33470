"""Writing a file whole or not at all."""

import os
from pathlib import Path


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, its folder too where there is none: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

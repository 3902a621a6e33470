"""Records as JSON lines: one object per run, written whole or not at all."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import replace_bytes


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records to a file, one JSON object per line, replacing it atomically."""
    replace_text(path, "".join(line(record) + "\n" for record in records))


def line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of strict JSON; numbers that are not finite become null."""
    return json.dumps(_finite(record), allow_nan=False)


def read(path: Path, fields: Mapping[str, tuple[type, ...]] | None = None) -> list[Any]:
    """Read records.

    Args:
        path: File with one JSON object per line; blank lines are passed over.
        fields: Names that each record must hold, with the types that their values may have.

    Raises:
        ValueError: The file is missing, empty, or a line is not a JSON object or lacks a field; the message gives file,
            line and reason.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot read records: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file: {error.reason} at byte {error.start}") from error
    records = []
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content, parse_constant=_refuse_constant)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ValueError(f"{path}, line {number}: not JSON: {reason}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: a record must be a JSON object")
        for name, kinds in (fields or {}).items():
            if name not in record:
                raise ValueError(f"{path}, line {number}: the record lacks {name}")
            if not isinstance(record[name], kinds) or (isinstance(record[name], bool) and bool not in kinds):
                raise ValueError(f"{path}, line {number}: {name} cannot be {json.dumps(record[name])[:40]}")
        records.append(record)
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records


def read_log(path: Path, steps: int, fields: frozenset[str] = frozenset()) -> list[Any]:
    """Return the records of the steps 1, 2, ... of a log, `steps` at most, as far as they are whole and in order.

    Args:
        path: A log, which may end in a line cut short, or not exist.
        steps: How many steps are asked for.
        fields: What each record must hold.
    """
    found: list[Any] = []
    for content in path.read_text(errors="replace").splitlines()[:steps] if path.exists() else ():
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or record.get("step") != len(found) + 1 or not fields <= record.keys():
            break
        found.append(record)
    return found


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader, or a crash, sees the old file or the new one."""
    replace_bytes(path, text.encode())


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return "key: before -> after" for each place in which two nested plain values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{key}.{k}" if key else str(k))]
    return [] if before == after else [f"{key}: {before} -> {after}"]


def slug(name: str) -> str:
    """Return the name of what a record is of, such as some weights, as that of a file."""
    return name.replace("/", "-").replace("@", "-step")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

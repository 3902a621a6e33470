"""Records as JSON lines: one object per run, written whole or not at all."""

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import replace_bytes
from loopgrad.analysis.text_lines import lines_of
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records.schema import check

# of a file of records that a report is made of: more than months of training leave, and what memory holds; a training
# log may be longer
MOST_BYTES, MOST_RECORDS, MOST_PARTS, MOST_VALUES = 2**30, 10_000, 5_000_000, 50_000_000
SHOWN = 100  # characters of a value in a message
LONGEST_NAME = 160  # bytes; a file's name may have 255, suffix included


def write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records to a file, one JSON object per line, replacing it atomically."""
    replace_text(path, "".join(line(record) + "\n" for record in records))


def line(record: Mapping[str, Any]) -> str:
    """Return a record as one line of strict JSON; numbers that are not finite become null."""
    return json.dumps(_finite(record), allow_nan=False)


def read(path: Path, kind: Any = None) -> list[Any]:
    """Read records.

    Args:
        path: File with one JSON object per line; blank lines are passed over.
        kind: TypedDict that each record must be; of such a file no more is read than reports are made of.

    Raises:
        ConfigError: The file is missing, empty, too large, or a line is not a JSON object or not such a record; the
            message gives file, line and reason.
    """
    found = list(_each(path, kind, bounded=kind is not None))
    if not found:
        raise ConfigError(f"{path}: holds no records")
    return found


def first(path: Path) -> dict[str, Any]:
    """Read the first record of a file, within the same limits.

    Raises:
        ConfigError: As `read`.
    """
    with closing(_each(path, None, bounded=True)) as found:
        for record in found:
            return record
    raise ConfigError(f"{path}: holds no records")


def _each(path: Path, kind: Any, bounded: bool) -> Generator[dict[str, Any], None, None]:
    values = parts = count = 0
    try:
        for number, content in lines_of(path, MOST_BYTES if bounded else 2**40, MOST_BYTES):
            if not content.strip():
                continue
            count, values = count + 1, values + content.count(",")
            parts += content.count("[") + content.count("{")
            try:
                for found, most, what in (
                    (count, MOST_RECORDS, "records"),
                    (parts, MOST_PARTS, "lists and objects"),
                    (values, MOST_VALUES, "values"),
                ):
                    if bounded and found > most:
                        raise ValueError(f"of more than {most} {what} no report is made")
                yield _parsed(content, kind)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {_reason(error)}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _parsed(content: str, kind: Any) -> dict[str, Any]:
    record = json.loads(
        content, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_number, object_pairs_hook=_object
    )
    if not isinstance(record, dict):
        raise ValueError("a record must be a JSON object")
    if kind is not None:
        check(record, kind)
    return record


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at character {error.pos + 1}"
    return "not JSON: nested too deeply" if isinstance(error, RecursionError) else str(error)


def read_log(path: Path, steps: int, fields: frozenset[str] = frozenset()) -> list[Any]:
    """Return the records of the steps 1, 2, ... of a log, `steps` at most, as far as they are whole and in order.

    Args:
        path: A log, which may end in a line cut short, or not exist.
        steps: How many steps are asked for.
        fields: What each record must hold, as a number; the rest are numbers or null.

    Raises:
        ConfigError: It is no file.
    """
    found: list[Any] = []
    if not path.exists():
        return found
    if not path.is_file():  # a pipe would be waited for
        raise ConfigError(f"{path}: is no file: remove it")
    with open(path, errors="replace") as lines:
        for content in islice(lines, steps):
            try:
                record = json.loads(content)
            except (ValueError, RecursionError):
                break
            if not isinstance(record, dict) or any(type(record.get(name)) not in (int, float) for name in fields):
                break
            if any(type(value) not in (int, float, type(None)) for value in record.values()):
                break
            if type(step := record.get("step")) is not int or step != len(found) + 1:
                break
            found.append(record)
    return found


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader, or a crash, sees the old file or the new one."""
    replace_bytes(path, text.encode())


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return "key: before -> after" for each place in which two nested plain values differ, all of them cut short."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(k for k in after if k not in before)]
        return [d for k in keys for d in differences(before.get(k), after.get(k), f"{key}.{k}" if key else str(k))]
    return [] if before == after else [" ".join(map(_short, (f"{key}:", before, "->", after)))]


def slug(name: str) -> str:
    """Return the name of what a record is of, such as some weights, as that of a file in whatever folder it goes to."""
    told = name.replace("/", "-").replace("@", "-step")
    told = "".join(it if it.isprintable() and it not in '\\:*?"<>|' else "-" for it in told)
    if len(told.encode()) <= LONGEST_NAME:
        return told
    return f"{told.encode()[:LONGEST_NAME].decode(errors='ignore')}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"not JSON: {name} is no number")


def _integer(digits: str) -> int:
    if len(digits) > 20:  # those of the least and greatest of 64 bits
        raise ValueError(f"the integer {digits[:20]}... has {len(digits)} digits, more than any of a record")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:20]} is beyond what a float holds")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"says {max(names, key=names.count)[:80]} twice")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value

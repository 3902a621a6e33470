"""A ledger on the disk: a line for each part of a bench that is whole, which no other settings and no damage get into.

The first line says what the rows are of. Each other line is a part's name, what it gave, and a digest of both and of
the first line. A line cut short is measured again without a word, as a kill leaves one; a damaged one with a word.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loopgrad.analysis.files import sync_folder
from loopgrad.experiments.benches.ledger import Job, Ledger, Part, Result, Row, Shown
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.processes import mapped
from loopgrad.experiments.records import differences, replace_text


class KeptLedger(Ledger):
    """Keeps what is measured in a file, and does not measure what is in it.

    Args:
        path: The file; made when the first part is whole.
        about: What the rows are of, plain values: the bench with its sizes, versions, commit, device.
        shown: Who is told.
        restart: Whether what is kept is dropped.

    Attributes:
        remarks: What to say of the file that was found.
        count: How many parts it held.

    Raises:
        ConfigError: The file holds rows of something else, or is no file.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], shown: Shown, restart: bool = False) -> None:
        self.path, self.remarks = path, list[str]()
        self._head, self._shown = json.dumps({"about": about}), shown
        self._names: Counter[str] = Counter()
        self._found: dict[str, list[Any]] = {}
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{path} is no file, and rows are kept in one of that name: move it away")
        if restart:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read()
        self.count = len(self._found)

    def each(self, parts: Sequence[Part]) -> Iterator[Row]:
        """Yield the rows of the parts, kept ones without measuring."""
        self._shown.expect(sum(part.rows for part in parts))
        for part in parts:
            name, found, kept = self._named(part.name), list[Row](), True
            if name in self._found:
                found = self._found[name]
                yield from found
            else:
                kept = False
                self._shown.begin(part.name)
                for row in part.measure():
                    found.append(_plain(row))
                    yield found[-1]
                self._keep(name, found)
            self._shown.expect(len(found) - part.rows)
            self._shown.end(part.name, len(found), kept)

    def mapped(
        self, fn: Callable[[Job], Result], jobs: Sequence[Job], workers: int, kind: Callable[..., Result]
    ) -> list[Result]:
        """Return [fn(job) for job in jobs], `workers` at a time, kept ones without calling fn."""
        self._shown.expect(len(jobs))
        names = [self._named(str(job)) for job in jobs]
        left = [place for place, name in enumerate(names) if name not in self._found]
        for place in sorted({*range(len(jobs))} - {*left}):
            self._shown.end(str(jobs[place]), 1, True)

        def ended(order: int, result: Any) -> None:
            place = left[order]
            self._keep(names[place], [_plain(asdict(result))])
            self._shown.end(str(jobs[place]), 1, False)

        if left:
            more = f" and {len(left) - 1} more, {workers} at once" if len(left) > 1 else ""
            self._shown.begin(f"{jobs[left[0]]}{more}")
        mapped(fn, [jobs[place] for place in left], workers, ended)
        return [kind(**self._found[name][0]) for name in names]

    def remove(self) -> None:
        """Remove the file: the record holds all of it."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _named(self, name: str) -> str:
        """Return a name that no part before had; parts come in the same order each time."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name} ({self._names[name]})"

    def _keep(self, name: str, found: list[Any]) -> None:
        """Add a line, which is on the disk when this returns."""
        self._found[name] = found
        if not self.path.exists():
            replace_text(self.path, self._head + "\n")
        with open(self.path, "a") as file:
            file.write(self._line(name, found) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _line(self, name: str, found: list[Any]) -> str:
        told = json.dumps([self._head, name, found])
        return json.dumps({"part": name, "found": found, "sha256": hashlib.sha256(told.encode()).hexdigest()})

    def _read(self) -> None:
        *lines, rest = self.path.read_bytes().split(b"\n")
        self._check_head(lines[0] if lines else b"")
        damaged = 0
        for content in lines[1:]:
            try:
                told = json.loads(content)
                if self._line(told["part"], told["found"]).encode() != content or told["part"] in self._found:
                    raise ValueError
                self._found[told["part"]] = told["found"]
            except (ValueError, TypeError, KeyError, RecursionError):
                damaged += 1
        if damaged:
            self.remarks.append(f"{self.path}: {damaged} damaged lines, whose rows are measured anew")
        if damaged or rest:
            whole = [self._head, *(self._line(name, found) for name, found in self._found.items())]
            replace_text(self.path, "".join(line + "\n" for line in whole))

    def _check_head(self, line: bytes) -> None:
        if line == self._head.encode():
            return
        try:
            changed = differences(json.loads(line)["about"], json.loads(self._head)["about"])
        except (ValueError, TypeError, KeyError, RecursionError):
            changed = []
        what = f"rows of another bench ({', '.join(changed[:5])})" if changed else "no rows that can be read"
        raise ConfigError(
            f"{self.path} holds {what}: the command they are of goes on with them; choose another output_dir=, or "
            "restart=true to drop them"
        )


def _plain(row: Any) -> Any:
    """Return a row as it is read back, so that an interruption changes nothing."""
    return json.loads(json.dumps(row))

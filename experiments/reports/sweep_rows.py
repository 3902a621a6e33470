"""What the jobs of a sweep differ in: its keys, and the runs that differ in their seeds alone put together.

Keys are those of the overrides where all records hold these, else all values of their configurations that vary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loopgrad.experiments.records import RunRecord

LONGEST = 60  # characters of a value that is shown
# what a record says itself, and what changes no result
APART = ("seed", "seeds", "estimator", "output_dir", "workers", "timing_repeats", "logger")

Told = tuple[int, RunRecord, list[str]]  # a job, a run of it, and what that has for each key


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone: of each its job, and what all have for each key that varies."""

    jobs: list[int]
    values: list[str]
    estimator: str
    records: list[RunRecord]


def rows_of(jobs: dict[int, list[RunRecord]]) -> tuple[list[str], list[Row]]:
    """Return the keys that vary, and the runs of all jobs, those together that differ in their seeds alone."""
    found = [(number, record) for number, records in jobs.items() for record in records]
    if all("overrides" in record for _, record in found):
        keys, told = _by_override(found)
        rows = _together(told)
        # else what differs was not typed, as in a file that was edited between two jobs
        if all(len({_plain(record) for record in row.records}) == 1 for row in rows):
            return keys, rows
    keys, told = _by_configuration(found)
    return keys, _together(told)


def _together(told: Sequence[Told]) -> list[Row]:
    rows: dict[tuple[str, ...], Row] = {}
    for number, record, own in told:
        shown = [value if len(value) <= LONGEST else f"{value[: LONGEST - 3]}..." for value in own]
        row = rows.setdefault((*own, record["estimator"]), Row([], shown, record["estimator"], []))
        row.records.append(record)
        row.jobs.append(number)
    return list(rows.values())


def _by_override(found: Sequence[tuple[int, RunRecord]]) -> tuple[list[str], list[Told]]:
    typed = [dict(map(_split, record.get("overrides", []))) for _, record in found]
    keys = dict.fromkeys(key for overrides in typed for key in overrides if key not in APART)
    varied = [key for key in keys if len({overrides.get(key) for overrides in typed}) > 1]
    own = [[overrides.get(key, "") for key in varied] for overrides in typed]
    return varied, [(*it, values) for it, values in zip(found, own, strict=True)]


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), "~" if override.startswith("~") else value


def _by_configuration(found: Sequence[tuple[int, RunRecord]]) -> tuple[list[str], list[Told]]:
    told = [told_of(record) for _, record in found]
    shared: dict[tuple[str, str], set[str]] = {}
    for values in told:
        for key, (of, value) in values.items():
            shared.setdefault((key, of), set()).add(value)
    varied = list(dict.fromkeys(key for (key, _), values in shared.items() if len(values) > 1))
    own = [[values.get(key, ("", ""))[1] for key in varied] for values in told]
    return varied, [(*it, values) for it, values in zip(found, own, strict=True)]


def _plain(record: RunRecord) -> frozenset[tuple[str, str]]:
    return frozenset((key, value) for key, (_, value) in told_of(record).items())


def told_of(record: RunRecord) -> dict[str, tuple[str, str]]:
    """Return the configuration of a run but its seed, flat: for each key of what it is a part, and its value.

    Values are compared among parts of the same name: that a sorting task has no size tells nothing new.
    """
    config, names = record.get("config", {}), {"task": record["task"], "model": record["model"]}
    found = {name: ("", value) for name, value in names.items()}
    for group in ("task", "model", "trainer"):
        for key, value in _flat(config.get(group), group):
            found[key] = names.get(group, ""), value
    for key, value in _flat(config.get("estimator"), f"estimator.{record['estimator']}"):
        found[key] = record["estimator"], value
    return found


def _flat(values: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}")
    elif values is not None:
        yield key, str(values)

"""Whether runs of several folders may be put together as seeds of one: what differs between them, and why not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports.summary import by_estimator
from loopgrad.experiments.reports.sweep_rows import told_of

ABSENT = "-"
MOST_REASONS = 20  # of two folders that are told


@dataclass(frozen=True)
class Place:
    """A folder of results: what it is called, and its records."""

    name: str
    records: Sequence[RunRecord]

    @property
    def estimators(self) -> dict[str, list[RunRecord]]:
        """Return its records by estimator."""
        return by_estimator(self.records)

    def values(self) -> dict[str, str]:
        """Return what its runs were asked for, seeds left out, by key; several values of one key one after another."""
        found: dict[str, dict[str, None]] = {}
        for record in self.records:
            for key, (_, value) in told_of(record).items():
                found.setdefault(key, {})[value] = None
        found["train_steps"] = dict.fromkeys(str(record["train_steps"]) for record in self.records)
        return {key: ", ".join(values) for key, values in found.items()}


def differences(places: Sequence[Place]) -> list[tuple[str, list[str]]]:
    """Return the keys in which the configurations of some folders differ, and what each has for them.

    Of an estimator that not all of them ran, those that did are compared.
    """
    values = [place.values() for place in places]
    found = []
    for key in dict.fromkeys(key for own in values for key in own):
        own = [it.get(key, ABSENT) for it in values]
        some = [it for it in own if it != ABSENT] if key.startswith("estimator.") else own
        if len(set(some)) > 1:
            found.append((key, own))
    return found


def same_task(places: Sequence[Place]) -> list[list[Place]]:
    """Return the folders in groups, those of the same task together, whose scores answer one question."""
    groups: dict[tuple[tuple[str, str], ...], list[Place]] = {}
    for place in places:
        task = tuple(sorted((k, v) for k, v in place.values().items() if k == "task" or k.startswith("task.")))
        groups.setdefault(task, []).append(place)
    return list(groups.values())


def reasons(one: Place, other: Place, estimator: str) -> list[str]:
    """Return why the runs of an estimator in two folders are no seeds of one another; none where they are.

    They must have the same configuration and code, and no seed twice. Device, versions and date may differ.
    """
    pair = [Place(place.name, place.estimators[estimator]) for place in (one, other)]
    if any("config" not in record for place in pair for record in place.records):
        told = ["records without their configuration, which may differ"]
    else:
        told = [f"{key}: {own[0]} and {own[1]}" for key, own in differences(pair)]
    commits = sorted({record["commit"] for place in pair for record in place.records})
    if len(commits) > 1:
        told.append(f"commit: {' and '.join(commits)}, so the code may differ")
    elif commits[0] == "unknown" or commits[0].endswith("+changes"):
        told.append(f"commit: {commits[0]}, so the code may differ")
    first, second = ({record["seed"] for record in place.records} for place in pair)
    if twice := sorted(first & second):
        told.append(
            f"seed{'s' * (len(twice) > 1)} {', '.join(map(str, twice))} in both: the same seed says nothing new"
        )
    return told


def refusals(places: Sequence[Place]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield two folders, an estimator of both, and why its runs are not put together; nothing where they may be."""
    for one, other in combinations(places, 2):
        for estimator in one.estimators:
            if estimator in other.estimators and (told := reasons(one, other, estimator)):
                yield one.name, other.name, estimator, told


def shared(places: Sequence[Place]) -> set[str]:
    """Return the estimators that more than one folder has."""
    names = [name for place in places for name in place.estimators]
    return {name for name in names if names.count(name) > 1}


def pooled(places: Sequence[Place]) -> Mapping[str, list[RunRecord]]:
    """Return the records of all folders by estimator."""
    return by_estimator([record for place in places for record in place.records])

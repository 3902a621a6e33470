"""A claim: what is said and by whom, what is trained to test it, and which differences decide it."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from loopgrad.experiments.conf.annotations import check_value
from loopgrad.experiments.conf.nearest import nearest

SIZES = ("tiny", "cpu", "gpu")
OF_SIZE = ("every", "conditions", "readings")
FIGURES = ("learning", "segments", "lengths")
NAME = re.compile(r"[A-Za-z0-9]\w{0,80}", re.ASCII)  # of a condition, whose runs have folders of that name
LONGEST = 4000  # characters of a text

Given = TypeVar("Given")


@dataclass(frozen=True)
class Readings:
    """What is measured of the weights that a training leaves, beside held-out accuracy over training and costs.

    Attributes:
        segments: Numbers of segments to answer after: reading "segments@n", samples exact.
        lengths: Lengths of the task's sequences to answer: reading "lengths@n", samples exact. The model must take any.
        halting: Whether samples stop when their rule says so: readings "halted", samples exact, and "halted segments",
            the mean number of segments that they ran.
        settles: Multiples of the training's segments after which residuals are taken: readings "solved@n" and
            "unsolved@n", shares of these samples whose states of all streams have converged, "unsettled@n", share of
            the solved that have not, all three where there are cycles enough to judge; "residual@n", the median
            relative residual of a cycle.
        votes: Augmentations that vote on each held-out pair of ARC: readings "pass@1" and "pass@2", means over tasks of
            the share of their pairs that the first answer, or one of the first two, solves; 0 for none.

    Raises:
        ValueError: A number is below 1.
    """

    segments: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    halting: bool = False
    settles: list[int] = field(default_factory=list)
    votes: int = 0

    def __post_init__(self) -> None:
        for name in ("segments", "lengths", "settles"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)} must be numbers of at least 1")
        if self.votes < 0:
            raise ValueError(f"votes={self.votes} must be at least 0")

    def names(self) -> list[str]:
        """Return the names of what is measured, as far as the task and the length of the recursion allow it."""
        found = ["exact", "tokens", "match", "flops"]
        found += [f"{name}@{n}" for name in ("segments", "lengths") for n in getattr(self, name)]
        found += ["halted", "halted segments"] if self.halting else []
        found += [f"{name}@{n}" for n in self.settles for name in ("solved", "unsolved", "unsettled", "residual")]
        return found + (["pass@1", "pass@2"] if self.votes else [])


@dataclass(frozen=True)
class Contrast:
    """A difference that the claim says is there: reading `at` of `more`, less `share` times that of `less`.

    Attributes:
        says: The statement, in words that follow "the claim says that".
        more: Name of a condition.
        less: Name of a condition; None for a difference from nothing.
        at: Name of a reading, "exact" for held-out samples exact at the end; "flops" for held-out samples exact when
            both have spent as many FLOPs as the cheaper of them does in all.
        less_at: That of `less`; None for `at`.
        share: Factor on the reading of `less`.
        by: Least difference that matters.

    Raises:
        ValueError: A number is not finite, `share` is not above 0, or nothing is said.
    """

    says: str
    more: str
    less: str | None = None
    at: str = "exact"
    less_at: str | None = None
    share: float = 1.0
    by: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            raise ValueError(f"share={self.share} must be a finite number above 0")
        if not abs(self.by) < float("inf"):
            raise ValueError(f"by={self.by} must be a finite number")
        _check_text("says", self.says)


@dataclass(frozen=True)
class Condition:
    """One way of training.

    Attributes:
        name: Its name.
        overrides: Of `loopgrad train`.
    """

    name: str
    overrides: list[str]


@dataclass(frozen=True)
class Claim:
    """A claim and the experiment that could refute it.

    Attributes:
        title: A few words.
        statement: What is claimed, a sentence.
        sources: Keys of loopgrad/references.bib.
        published: Published figures to stand beside, and what they took.
        change: What would change the verdict.
        sizes: By "tiny", "cpu" and "gpu": `every`, overrides of `loopgrad train` for all conditions; `conditions`, by
            name those of each; `readings`, arguments of `Readings`.
        contrasts: By name, arguments of `Contrast`: the claim holds where all do, and does not where one does not.
        figure: What is drawn: "learning" for accuracy over steps, or over "segments" or "lengths", which must be read.
        equal: What the conditions have in common, for the reader.

    Raises:
        ValueError: A part is missing or unknown, or a contrast names a condition or a reading that a size lacks.
    """

    title: str
    statement: str
    sources: list[str]
    published: str
    change: str
    sizes: Mapping[str, Any]
    contrasts: Mapping[str, Any]
    figure: str = "learning"
    equal: str = ""

    def __post_init__(self) -> None:
        for name in ("title", "statement", "published", "change"):
            _check_text(name, getattr(self, name))
        if self.figure not in FIGURES:
            raise ValueError(f"figure={self.figure}: there is no such figure; {nearest(self.figure, FIGURES)}")
        if set(self.sizes) != set(SIZES):
            raise ValueError(f"sizes must be {', '.join(SIZES)}, got {', '.join(map(str, self.sizes)) or 'none'}")
        for size, values in self.sizes.items():
            self._check_size(size, values)
        if not self.contrasts:
            raise ValueError("contrasts is empty: a claim needs a difference that could go either way")
        for name, found in self.differences().items():
            for size in SIZES:
                self._check_difference(name, found, size)

    def _check_size(self, size: str, values: Any) -> None:
        if not isinstance(values, Mapping) or set(values) - set(OF_SIZE) or not values.get("conditions"):
            raise ValueError(f"sizes.{size} must have conditions, and may have every and readings, nothing else")
        if not isinstance(values["conditions"], Mapping):
            raise ValueError(f"sizes.{size}.conditions must give overrides by the names of conditions")
        for name, overrides in [("every", values.get("every", [])), *values["conditions"].items()]:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"sizes.{size}: a condition cannot be called {name}: take letters, digits and _")
            if not isinstance(overrides, list) or not all(isinstance(it, str) for it in overrides):
                raise ValueError(f"sizes.{size}: {name} must be a list of overrides, such as [task=sudoku4]")
        if self.figure != "learning" and not getattr(self.readings(size), self.figure):
            raise ValueError(f"figure={self.figure}: size={size} has no readings of {self.figure}")

    def _check_difference(self, name: str, found: Contrast, size: str) -> None:
        conditions, readings = [it.name for it in self.conditions(size)], self.readings(size).names()
        for asked, known, what in (
            ((found.more, found.less or found.more), conditions, "conditions"),
            ((found.at, found.less_at or found.at), readings, "readings"),
        ):
            if missing := set(asked) - set(known):
                raise ValueError(
                    f"contrasts.{name} names {min(missing)}, and size={size} has {what} {', '.join(known)}"
                )

    def conditions(self, size: str) -> list[Condition]:
        """Return the conditions of a size, each with the overrides that all have in front."""
        values = self.sizes[size]
        every = values.get("every", [])
        return [Condition(name, [*every, *own]) for name, own in values["conditions"].items()]

    def readings(self, size: str) -> Readings:
        """Return what is measured at a size."""
        return _given(f"sizes.{size}.readings", self.sizes[size].get("readings", {}), Readings)

    def differences(self) -> dict[str, Contrast]:
        """Return the contrasts by name."""
        return {str(name): _given(f"contrasts.{name}", values, Contrast) for name, values in self.contrasts.items()}


def _given(place: str, values: Any, kind: type[Given]) -> Given:
    """Return what a mapping gives the arguments of, which are checked by name."""
    known = {it.name: it for it in fields(kind)}  # pyright: ignore[reportArgumentType]
    if not isinstance(values, Mapping):
        raise ValueError(f"{place}={values}: must be a mapping of {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{place}: there is no {name}; {nearest(str(name), known)}")
        check_value(f"{place}.{name}", value, get_type_hints(kind)[name])
    for name, it in known.items():
        if name not in values and it.default is MISSING and it.default_factory is MISSING:
            raise ValueError(f"{place}: {name} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None  # the innermost is what is told


def _check_text(name: str, text: str) -> None:
    if not 1 <= len(text) <= LONGEST:
        raise ValueError(f"{name} must be a text of 1 to {LONGEST} characters, and has {len(text)}")

"""All claims at a glance: the last verdict on each, and a page with the figure of each."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import ClaimRecord, replace_text
from loopgrad.experiments.reports.claims.page import read
from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import in_short
from loopgrad.experiments.reports.inert import inert, link, prose
from loopgrad.experiments.reports.whole import making

TITLE = "# Claims about recursion, tested"
OPENING = """\
What is said of applying the same weights many times, each claim tried by an experiment that could refute it. A claim
holds where each difference that it asserts, paired by seed, has a 95 % interval above what matters, and does not where
one has an interval below; else it is undecided at that size. `loopgrad claims NAME` repeats one, and its report has
the tables, the commands and what would change the verdict."""


def listed(folder: Path, names: Sequence[str], sizes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the verdict on each claim at each size of which a folder has a record, by name and size.

    Raises:
        ConfigError: A record is not that of a claim.
    """
    return {
        name: {place.name: _outcome(place, read(place)) for place in _recorded(folder, name, sizes)} for name in names
    }


def check_index(page: Path) -> None:
    """Check that the page of all claims, where there is one, may be replaced.

    Raises:
        ConfigError: It is none that `write_index` wrote.
    """
    if not page.exists() and not page.is_symlink():
        return
    if page.is_file():
        with open(page, "rb") as file:
            if file.read(len(TITLE) + 1) == f"{TITLE}\n".encode():
                return
    raise ConfigError(f"{page} is not a page of claims, and one goes there: move it away, or choose another place")


def index(folder: Path, names: Sequence[str], sizes: Sequence[str], home: Path) -> str:
    """Return the page of all claims that have a record: of each the verdict, a sentence and the figure.

    The largest size that has a record speaks for a claim.

    Args:
        folder: Where the records are.
        names: Names of the claims.
        sizes: Names of the sizes, the largest last.
        home: Folder of the page, from which its links lead.

    Raises:
        ConfigError: A record is not that of a claim.
    """
    places = [found[-1] for name in names if (found := list(_recorded(folder, name, sizes)))]
    return "\n".join([TITLE, "", OPENING, "", *(line for place in places for line in _part(place, home))])


def write_index(folder: Path, names: Sequence[str], sizes: Sequence[str], page: Path) -> None:
    """Write the page of all claims, see `index`.

    Raises:
        ConfigError: A record is not that of a claim, or the page is another's.
    """
    check_index(page)
    replace_text(page, index(folder, names, sizes, page.parent))


def _recorded(folder: Path, name: str, sizes: Sequence[str]) -> Iterator[Path]:
    return (place for size in sizes if ((place := folder / name / size) / "records.jsonl").exists())


def _outcome(place: Path, record: ClaimRecord) -> str:
    with making(place / "records.jsonl"):
        return verdict(findings(record))


def _part(place: Path, home: Path) -> list[str]:
    record, way = read(place), Path(os.path.relpath(place, home)).as_posix()
    outcome = _outcome(place, record)
    with making(place / "records.jsonl"):
        own = inert(record, prose)
        told = in_short(own, findings(own), outcome)
    figure = [f"![{own['title']}]({link(f'{way}/claim.png')})", ""] if (place / "claim.png").exists() else []
    return [f"## {own['title']}: {outcome}", "", f"{told} [Report]({link(f'{way}/report.md')})", "", *figure]


def lines(found: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return rows for the console: name, verdicts by size."""
    told = {name: "; ".join(f"{size}: {it}" for size, it in verdicts.items()) for name, verdicts in found.items()}
    return [[name, verdicts or "not run"] for name, verdicts in told.items()]

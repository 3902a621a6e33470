"""All claims at a glance: the last verdict on each, and a page with the figure of each."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.records import ClaimRecord, replace_text
from loopgrad.experiments.reports.claims.page import read
from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import paragraph
from loopgrad.experiments.reports.inert import inert, link, prose
from loopgrad.experiments.reports.whole import making

TITLE = "# Claims about recursion, tested"


def listed(folder: Path, names: Sequence[str], sizes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the verdict on each claim at each size of which a folder has a record, by name and size.

    Raises:
        ConfigError: A record is not that of a claim.
    """
    return {
        name: {place.name: _outcome(place, read(place)) for place in _recorded(folder, name, sizes)} for name in names
    }


def check_index(folder: Path) -> None:
    """Check that the index of a folder, where there is one, may be replaced.

    Raises:
        ConfigError: It is none that `write_index` wrote.
    """
    path = folder / "index.md"
    if not path.exists() and not path.is_symlink():
        return
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(len(TITLE) + 1) == f"{TITLE}\n".encode():
                return
    raise ConfigError(
        f"{path} is not an index of claims, and one goes there: move it away, or choose another output_dir="
    )


def write_index(folder: Path, names: Sequence[str], sizes: Sequence[str]) -> Path | None:
    """Write index.md: of each claim the verdict, the paragraph and the figure; None where there is no record.

    The largest size that has a record speaks for a claim.

    Raises:
        ConfigError: A record is not that of a claim, or index.md is another's.
    """
    places = [found[-1] for name in names if (found := list(_recorded(folder, name, sizes)))]
    if not places:
        return None
    check_index(folder)
    page = "\n".join([TITLE, "", *(line for place in places for line in _part(place, folder))])
    replace_text(folder / "index.md", page)
    return folder / "index.md"


def _recorded(folder: Path, name: str, sizes: Sequence[str]) -> Iterator[Path]:
    return (place for size in sizes if ((place := folder / name / size) / "records.jsonl").exists())


def _outcome(place: Path, record: ClaimRecord) -> str:
    with making(place / "records.jsonl"):
        return verdict(findings(record))


def _part(place: Path, folder: Path) -> list[str]:
    record, way = read(place), place.relative_to(folder)
    outcome = _outcome(place, record)
    with making(place / "records.jsonl"):
        own = inert(record, prose)
        told = paragraph(own, findings(own), outcome)
    figure = [f"![{own['title']}]({link(f'{way}/claim.png')})", ""] if (place / "claim.png").exists() else []
    report = f"[Tables, commands and how it was made]({link(f'{way}/report.md')})."
    return [f"## {own['title']}: {outcome}", "", *figure, told, "", report, ""]


def lines(found: Mapping[str, Mapping[str, str]], titles: Mapping[str, str]) -> list[list[str]]:
    """Return rows for the console: name, title, verdicts by size."""
    told = {name: "; ".join(f"{size}: {it}" for size, it in verdicts.items()) for name, verdicts in found.items()}
    return [[name, titles[name], told.get(name) or "not run"] for name in titles]

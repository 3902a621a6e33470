"""All claims at a glance: the last verdict on each, and a page with the figure of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from loopgrad.experiments.records import ClaimRecord, replace_text
from loopgrad.experiments.reports.claims.page import read
from loopgrad.experiments.reports.claims.verdicts import findings, verdict
from loopgrad.experiments.reports.claims.words import paragraph
from loopgrad.experiments.reports.inert import inert, link, prose


def listed(folder: Path, names: Sequence[str], sizes: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the verdict on each claim at each size of which a folder has a record, by name and size.

    Raises:
        ConfigError: A record is not that of a claim.
    """
    return {
        name: {
            size: verdict(findings(read(folder / name / size)))
            for size in sizes
            if (folder / name / size / "records.jsonl").exists()
        }
        for name in names
    }


def write_index(folder: Path, names: Sequence[str], sizes: Sequence[str]) -> Path | None:
    """Write index.md: of each claim the verdict, the paragraph and the figure; None where there is no record.

    The largest size that has a record speaks for a claim.
    """
    parts = []
    for name in names:
        known = [size for size in sizes if (folder / name / size / "records.jsonl").exists()]
        if known:
            parts += _part(read(folder / name / known[-1]), f"{name}/{known[-1]}", folder)
    if not parts:
        return None
    replace_text(folder / "index.md", "\n".join(parts))
    return folder / "index.md"


def _part(record: ClaimRecord, place: str, folder: Path) -> list[str]:
    own = inert(record, prose)
    found = findings(own)
    outcome = verdict(findings(record))
    figure = folder / place / "claim.svg"
    picture = [f"![{own['title']}]({link(f'{place}/claim.svg')})", ""] if figure.exists() else []
    return [
        *(f"## {own['title']}: {outcome}", ""),
        *picture,
        *(paragraph(own, found, outcome), ""),
        *(f"[Tables, commands and how it was made]({link(f'{place}/report.md')}).", ""),
    ]


def lines(found: Mapping[str, Mapping[str, str]], titles: Mapping[str, str]) -> list[list[str]]:
    """Return rows for the console: name, title, verdicts by size."""
    told = {name: "; ".join(f"{size}: {it}" for size, it in verdicts.items()) for name, verdicts in found.items()}
    return [[name, titles[name], told.get(name) or "not run"] for name in titles]

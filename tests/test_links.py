"""What README and docs link to is in the repository, not only on the disk of whoever wrote it."""

import re
import subprocess
from pathlib import Path

import pytest
from repository import ROOT, pages

# what the site writes when it is built; Sphinx sees to those
GENERATED = (ROOT / "docs" / "gallery.md", ROOT / "docs" / "api" / "estimators", ROOT / "docs" / "api" / "packages")


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_that_git_tracks(page):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {ROOT / name for name in listed.splitlines()}
    made = {path.with_suffix(".html") for path in tracked if path.is_relative_to(ROOT / "docs" / "results")}
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", prose(page)) if "://" not in link]
    files = {(page.parent / link).resolve() for link in links}
    written = {file for file in files if {file, *file.parents} & set(GENERATED) or file in made}
    assert files - written <= tracked


PATHS = re.compile(r"`((?:analysis|docs|experiments|gradients|loopgrad|models|tests)/[\w/.-]*)`")


@pytest.mark.parametrize("page", [p for p in pages() if p.name not in ("log.md", "CHANGELOG.md")], ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    """The log and the changelog speak of their own day."""
    named = [name for name in PATHS.findall(page.read_text()) if "NAME" not in name]
    assert [name for name in named if not (ROOT / name).exists()] == []

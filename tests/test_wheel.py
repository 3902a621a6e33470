"""A wheel of the source holds every module and every configuration file, and its console script runs from elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from repository import FOLDERS, PYPROJECT, ROOT

pytestmark = pytest.mark.slow

# gives the new environment the torch and the other libraries of this one; its loopgrad is not on this path, since it is
# installed by a hook that only a .pth file in a real site-packages would set up
SHIPPED = (".py", ".yaml", ".html", ".css", ".js")
LIBRARIES = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


class Installed(NamedTuple):
    """The wheel's file names, the environment that it is installed in, and another folder to start from."""

    files: list[str]
    metadata: str
    environment: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints when it is started from another folder."""
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        ran = run(
            str(self.environment / "bin" / program),
            *arguments,
            cwd=self.elsewhere,
            env=clean | {"OMP_NUM_THREADS": "1"},
        )
        return ran.stdout


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stdout}\n{ran.stderr}"
    return ran


def copied(folder: Path) -> Path:
    """Copy the files that git tracks or does not ignore."""
    names = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # not one that is tracked but deleted
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(folder / "source")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (name for name in files if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    python = str(environment / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]
    run(*pip, "install", "--no-deps", "--no-index", str(wheel))
    # only now, so that pip finds no installed loopgrad there
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code).stdout.strip())
    (site / "libraries.pth").write_text("\n".join(LIBRARIES) + "\n")
    (folder / "elsewhere").mkdir()
    return Installed(files, text, environment, folder / "elsewhere")


def test_the_wheel_holds_the_packages_and_nothing_else(installed):
    folders = [path for top in FOLDERS for path in (ROOT / top).rglob("*") if path.suffix in SHIPPED]
    source = {path.relative_to(ROOT).as_posix() for path in folders} | {"loopgrad/py.typed", "loopgrad/references.bib"}
    expected = {name if name.startswith("loopgrad/") else f"loopgrad/{name}" for name in source}
    assert {name for name in installed.files if ".dist-info/" not in name} == expected
    assert "loopgrad/experiments/conf/experiment/smoke.yaml" in expected
    assert any(name.endswith("licenses/LICENSE") for name in installed.files)


def test_the_metadata_names_the_core_dependencies_and_the_extras(installed):
    required = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", installed.metadata, re.MULTILINE)
    assert sorted(required) == ["hydra-core", "jinja2", "numpy", "pyyaml", "rich", "safetensors", "scipy", "torch"]
    extras = re.findall(r"^Provides-Extra: (.+)$", installed.metadata, re.MULTILINE)
    assert set(extras) == set(PYPROJECT["project"]["optional-dependencies"])
    assert "\nLicense-Expression: Apache-2.0\n" in installed.metadata
    assert "\nRequires-Python: >=3.10\n" in installed.metadata


def test_the_packages_are_those_of_the_new_environment(installed):
    code = """
import importlib, importlib.metadata
for name in ("", ".gradients", ".models", ".analysis", ".experiments.cli", ".experiments.conf"):
    print(importlib.import_module(f"loopgrad{name}").__file__)
print(importlib.metadata.version("loopgrad"))
"""
    *files, version = installed.run("python", "-c", code).splitlines()
    for file in files:
        assert Path(file).is_relative_to(installed.environment), file
    assert version == PYPROJECT["project"]["version"]


def test_the_console_script_tells_its_commands(installed):
    said = installed.run("loopgrad", "--help")
    assert [c for c in ("compare", "train", "bench", "report", "cite") if f"\n  {c} " not in said] == []


def test_the_console_script_cites(installed):
    said = installed.run("loopgrad", "cite", "model=hrm", "estimator=[one_step]")
    assert said.startswith("@software{loopgrad,") and "\n@misc{wang2025hierarchical," in said


def test_the_console_script_compares(installed):
    results = installed.elsewhere / "results of a run"
    said = installed.run(
        "loopgrad", "compare", "experiment=smoke", "trainer.train_steps=2", "estimator=[bptt]", "timing_repeats=1",
        "workers=1", f"output_dir={results}",
    )  # fmt: skip
    (record,) = map(json.loads, (results / "records.jsonl").read_text().splitlines())
    assert (record["estimator"], record["train_steps"], record["seed"]) == ("bptt", 2, 0)
    assert record["commit"] == "unknown", "the installed package is no checkout"
    assert (results / "report.md").read_text() and "bptt" in said
    assert b"Content-Security-Policy" in (results / "report.html").read_bytes()
    assert sorted(path.name for path in installed.elsewhere.iterdir()) == [results.name], "written beside output_dir"

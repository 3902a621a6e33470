"""The face: `import loopgrad` names what one starts with, and loads it only when it is asked for."""

import ast
import importlib
import pickle
import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from repository import FOLDERS, PYPROJECT, ROOT

import loopgrad
from loopgrad.__main__ import main
from loopgrad.experiments import endings

PACKAGES = [name for name in FOLDERS if name != "loopgrad"]


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter."""
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_every_name_is_what_its_package_calls_so():
    assert len(loopgrad.__all__) == len(set(loopgrad.__all__))
    for package, names in loopgrad._PACKAGES.items():
        module = importlib.import_module(f"loopgrad.{package}")
        assert getattr(loopgrad, package) is module
        for name in names:
            assert name in module.__all__ and getattr(loopgrad, name) is getattr(module, name)
    assert set(loopgrad._PACKAGES) == set(PACKAGES)


def test_type_checkers_see_what_is_found_while_running():
    tree = ast.parse(Path(ROOT / "loopgrad/__init__.py").read_text())
    seen = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("loopgrad")]
    names = [(node.module, alias.name) for node in seen for alias in node.names]
    assert all(alias.name == alias.asname for node in seen for alias in node.names), "else it is private to a checker"
    found = [(f"loopgrad.{package}", name) for package, names in loopgrad._PACKAGES.items() for name in names]
    assert sorted(names) == sorted([("loopgrad", package) for package in PACKAGES] + found)


def test_every_estimator_is_a_headline():
    gradients = loopgrad.gradients
    public = [getattr(gradients, name) for name in gradients.__all__]
    estimators = {e.__name__ for e in public if isinstance(e, type) and issubclass(e, gradients.Estimator)}
    assert estimators - {"Estimator"} <= set(loopgrad.__all__)


def test_the_face_alone_loads_no_torch_and_is_quick():
    code = "import sys, loopgrad; dir(loopgrad); hasattr(loopgrad, 'x'); print(*sys.modules)"
    loaded = fresh("-c", code).stdout.split()
    assert "loopgrad" in loaded and not {"torch", "numpy", "hydra"} & set(loaded)
    assert [name for name in loaded if name.startswith("loopgrad.")] == []
    lines = fresh("-X", "importtime", "-c", "import loopgrad").stderr.splitlines()
    (cumulative,) = (line.split("|")[1] for line in lines if line.endswith("| loopgrad"))
    assert int(cumulative) < 300_000, "microseconds"


def test_the_version_loads_no_torch_and_is_the_same_by_every_way(monkeypatch, capsys):
    code = "import sys; from loopgrad.__main__ import main; main(); print(*sys.modules)"
    said, loaded = fresh("-c", code, "--version").stdout.splitlines()
    assert said == version("loopgrad") == loopgrad.__version__ and not {"torch", "hydra"} & set(loaded.split())
    assert fresh("-m", "loopgrad", "-V").stdout.strip() == said
    monkeypatch.setattr("sys.argv", ["loopgrad", "-V"])
    monkeypatch.setattr(endings, "ignore_signals", lambda: None)  # the end of this command is not that of the tests
    main()
    assert capsys.readouterr().out.strip() == said
    assert PYPROJECT["project"]["scripts"] == {"loopgrad": "loopgrad.__main__:main"}


def test_run_as_a_module_the_command_of_a_record_is_that_of_the_program(monkeypatch):
    from loopgrad.experiments import cli, provenance

    seen = []
    monkeypatch.setattr(endings, "ignore_signals", lambda: None)
    monkeypatch.setattr(cli, "main", lambda: seen.append(provenance.command()))
    monkeypatch.setattr("sys.argv", ["/somewhere/loopgrad/__main__.py", "compare", "a=1"])
    monkeypatch.delitem(sys.modules, "loopgrad.__main__")  # runpy warns of what is loaded already
    runpy.run_module("loopgrad", run_name="__main__")
    assert seen == ["loopgrad compare a=1"]


def test_names_are_listed_and_star_imported():
    assert set(loopgrad.__all__) | set(PACKAGES) | {"__version__"} <= set(dir(loopgrad))
    namespace: dict[str, object] = {}
    exec("from loopgrad import *", namespace)
    assert set(loopgrad.__all__) == set(namespace) - {"__builtins__"}


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("BPPT", "BPTT"), ("bptt", "BPTT"), ("Recoder", "Recorder"), ("model", "models")]
)
def test_a_misspelt_name_is_answered_by_the_nearest(wrong, nearest):
    with pytest.raises(AttributeError, match=f"loopgrad has no {wrong}; the nearest names are .*{nearest}"):
        getattr(loopgrad, wrong)
    with pytest.raises(ImportError):
        exec(f"from loopgrad import {wrong}")


def test_what_is_like_no_name_is_not_there():
    assert not hasattr(loopgrad, "x")
    with pytest.raises(AttributeError, match="^loopgrad has no qqqq$"):
        loopgrad.qqqq  # noqa: B018


def test_classes_pickle_under_the_module_that_defines_them_and_a_reload_changes_nothing():
    estimator = loopgrad.TruncatedBPTT(2)
    assert pickle.loads(pickle.dumps(estimator)) == estimator
    assert loopgrad.BPTT.__module__ == "loopgrad.gradients.bptt"
    before = {name: getattr(loopgrad, name) for name in loopgrad.__all__}
    assert importlib.reload(loopgrad) is loopgrad
    assert {name: getattr(loopgrad, name) for name in loopgrad.__all__} == before


def test_the_first_lines_of_a_newcomer():
    cell = loopgrad.Stationary(lambda z, x: z / 2)
    assert loopgrad.BPTT()(cell, torch.ones(1, 1), None, 2).state.item() == 0.25
    trace = loopgrad.record(cell, torch.ones(1, 1), None, 40, lags=4)
    assert loopgrad.classify(trace)["state"].label == ["converged"]

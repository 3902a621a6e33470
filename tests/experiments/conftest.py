"""Commands run inside the test process, as typed: cheaper than a new interpreter, and as true."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from loopgrad.experiments import cli
from loopgrad.experiments.commands import compare, train

TINY = (
    "experiment=smoke",
    "model.hidden_size=16",
    "model.num_heads=2",
    "task.num_train=40",
    "task.num_test=16",
    "trainer.train_steps=4",
    "trainer.batch_size=8",
    "trainer.eval_every=2",
    "trainer.checkpoint_every=2",
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def tiny():
    return list(TINY)


@pytest.fixture
def loopgrad(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; return exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["/some/where/bin/loopgrad", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        found = capsys.readouterr()
        return Result(code, found.out, found.err)

    return run


@pytest.fixture
def refused(loopgrad, tmp_path, monkeypatch):
    """Run a command that must be refused: exit code 2, one line, nothing written; return the line."""

    def begun(*_):
        raise AssertionError("a command that must be refused has begun to train")

    monkeypatch.setattr(compare, "execute_all", begun)
    monkeypatch.setattr(train, "execute_all", begun)

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = loopgrad(*arguments)
        assert result.code == 2, result
        assert "Traceback" not in result.out + result.err
        assert result.err.startswith("loopgrad: ") and result.err.count("\n") == 1, result.err
        assert sorted(tmp_path.rglob("*")) == before, "a refused command wrote something"
        return result.err

    return run


@pytest.fixture(scope="session")
def compared(tmp_path_factory) -> Path:
    """A folder with the results of one tiny comparison of all default estimators on two seeds."""
    folder = tmp_path_factory.mktemp("compared") / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["loopgrad", "compare", *TINY, "seeds=[0,1]", "workers=1", f"output_dir={folder}"])
        cli.main()
    return folder

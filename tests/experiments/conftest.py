"""Commands run inside the test process, as typed: cheaper than a new interpreter, and as true."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gym_stub
import pytest
import torch
from filelock import FileLock
from rich.console import Console

from loopgrad.experiments import cli
from loopgrad.experiments.commands import claims, compare, train
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.endings import SIGNALS
from loopgrad.experiments.errors import ConfigError

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
        code, handlers = 0, {number: signal.getsignal(number) for number in SIGNALS}
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            torch.set_num_threads(1)  # a command sets what its configuration says
            for number, handler in handlers.items():  # and one that has ended is not to be interrupted
                signal.signal(number, handler)
        found = capsys.readouterr()
        return Result(code, found.out, found.err)

    return run


def written(folder: Path) -> list[Path]:
    """What is below a folder, but for the modules that Python has compiled."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """A block in which nothing may begin to train and nothing may be written."""

    def begun(*_):
        raise AssertionError("a command that must be refused has begun to train")

    monkeypatch.setattr(compare, "execute_all", begun)
    monkeypatch.setattr(train, "execute_all", begun)
    monkeypatch.setattr(claims, "execute_all", begun)

    @contextmanager
    def block() -> Iterator[None]:
        before = written(tmp_path)
        yield
        assert written(tmp_path) == before, "a refused command wrote something"

    return block


@pytest.fixture
def refused_as_typed(loopgrad, untouched):
    """Run a whole command that must be refused: exit code 2, one line, nothing written; return the line."""

    def run(*arguments: str) -> str:
        with untouched():
            result = loopgrad(*arguments)
        assert result.code == 2, result
        assert "Traceback" not in result.out + result.err
        assert result.err.startswith("loopgrad: ") and result.err.count("\n") == 1, result.err
        return result.err

    return run


@pytest.fixture
def refused(loopgrad, untouched):
    """Compose and begin a command that must be refused in one line, nothing written, without Hydra around it."""

    def run(command: str, *overrides: str) -> str:
        with untouched(), pytest.raises(ConfigError) as caught:
            config = composed(command, list(overrides))
            main = importlib.import_module(f"loopgrad.experiments.commands.{command}").main
            main(config, Names("task", "model"), Console())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return run


@pytest.fixture(scope="session")
def compared(tmp_path_factory) -> Path:
    """A folder with the results of one tiny comparison of all default estimators on two seeds, made once for all."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    folder = place / "compared" / "results"
    with FileLock(place / "compared.lock"), pytest.MonkeyPatch.context() as patch:
        if not (folder / "report.md").exists():
            typed = ["loopgrad", "compare", *TINY, "seeds=[0,1]", "workers=1", f"output_dir={folder}"]
            patch.setattr(sys, "argv", typed)
            cli.main()
    return folder


@pytest.fixture
def gym(tmp_path, monkeypatch):
    """The folder of a package that stands in for reasoning-gym."""
    gym_stub.write(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "reasoning_gym", raising=False)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("reasoning_gym", None)

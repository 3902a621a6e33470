"""The console script: loopgrad compare | train | analyse | bench | report | cite, with Hydra overrides.

loopgrad COMMAND --help lists the groups and keys of a command.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from rich.console import Console

from loopgrad import __version__
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.overrides import composed
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.errors import ConfigError, Interrupted, NonFinite, WorkerLost

COMMANDS = ("compare", "train", "analyse", "bench", "report", "cite")
USAGE = """usage: loopgrad COMMAND [key=value ...]

  compare   train one model under several gradient estimators; table, figures, records
  train     train one model under one estimator, with checkpoints to go on from
  analyse   follow the recursion of trained weights: does it converge, for whom, and what are gradients worth there
  bench     measure estimators beside other libraries: loopgrad bench [NAME], recursion if none is named
  report    render table and figures anew from the records in output_dir
  cite      print the BibTeX of what a configuration uses

Configuration groups: task, model, estimator, trainer, analysis, experiment. For example:
  loopgrad compare experiment=smoke output_dir=results/smoke
  loopgrad train task=sudoku9 task.path=puzzles.csv estimator=checkpointed
  loopgrad analyse checkpoint=results/compare
loopgrad COMMAND --help shows all keys; -m sweeps over comma-separated values, as Hydra does."""


def main() -> None:
    """Run the command named on the command line; exit with 2 if it was asked for wrongly, with 130 if interrupted."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=not sys.stdout.isatty())
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        raise SystemExit(0)
    command, *overrides = arguments
    typed = sys.argv
    try:
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command}; {nearest(command, (*COMMANDS, '--version', '--help'))}")
        if command == "bench" and overrides and overrides[0].isidentifier():
            overrides[0] = f"bench={overrides[0]}"
        asked = get_args(overrides)
        if not (asked.config_path or asked.config_name or asked.config_dir or asked.experimental_rerun):
            composed(command, asked.overrides, sweep=asked.multirun)  # else Hydra alone knows the configuration
    except ConfigError as error:
        _end(2, str(error))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # what is not the user's mistake is shown whole

    def task(config: DictConfig) -> None:
        sys.argv = typed  # for records, which hold the command as typed
        _run(command, config, console)

    sys.argv = [sys.argv[0], *overrides]
    hydra.main(config_path="conf", config_name=command, version_base="1.3")(task)()


def _run(command: str, config: DictConfig, console: Console) -> None:
    runtime = HydraConfig.get()
    if runtime.mode == RunMode.MULTIRUN and "output_dir" in config:
        with open_dict(config):
            config.output_dir = str(Path(config.output_dir) / str(runtime.job.num))
    try:
        importlib.import_module(f"loopgrad.experiments.commands.{command}").main(config, Names.chosen(), console)
    except ConfigError as error:
        _end(2, str(error))
    except NonFinite as error:
        _end(1, f"the loss is not finite any more: {error}")
    except WorkerLost as error:
        _end(1, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _end(1, f"{error.filename}: {error.strerror}")
    except (Interrupted, KeyboardInterrupt):
        rest = {"compare": "goes on from the last checkpoint", "analyse": "goes on with the weights left"}
        rest["train"] = rest["compare"]
        _end(130, f"interrupted; the same command {rest.get(command, 'begins anew: nothing was stored')}")


def _end(code: int, message: str) -> NoReturn:
    print(f"loopgrad: {message}", file=sys.stderr)
    raise SystemExit(code) from None

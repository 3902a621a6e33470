"""The console script: loopgrad compare | train | plan | analyse | show | bench | claims | report | cite, and overrides.

loopgrad COMMAND --help lists the groups and keys of a command.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from loopgrad import __version__
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.overrides import composed, keys_of, said
from loopgrad.experiments.conf.own_files import check_folder
from loopgrad.experiments.conf.values import Names
from loopgrad.experiments.endings import OUTPUT, check_room, cut_off, going_on, in_one_line, on_signals
from loopgrad.experiments.errors import ConfigError, NonFinite, SweepUnfinished

JOINT = ("compare", "train")  # sweeps of these have a report of all jobs
OF_TASK = "of_task"
LISTS = re.compile(r"(also|\+?claim\.sizes\.\w+\.(?:every|conditions\.\w+))=\[(.*)\]", re.DOTALL)  # of overrides
COMMANDS = ("compare", "train", "plan", "analyse", "show", "bench", "claims", "report", "cite")
TOGETHER = ("compare", "train")  # those that several processes can share
USAGE = """usage: loopgrad COMMAND [key=value ...]

  compare   train one model under several gradient estimators; table, figures, records
  train     train one model under one estimator, with checkpoints to go on from
  plan      will it fit: bytes, evaluations and largest batch of each estimator, before anything is run
  analyse   follow the recursion of trained weights: does it converge, for whom, and what are gradients worth there
  show      one sample of the test set through the recursion of trained weights, segment by segment
  bench     measure estimators beside other libraries: loopgrad bench [NAME], recursion if none is named
  claims    test what is said of recursion: loopgrad claims lists it, loopgrad claims NAME or all runs it
  report    render tables and figures anew from records; of several folders side by side: loopgrad report A B
  cite      print the BibTeX of what a configuration uses

Configuration groups: task, model, estimator, trainer, analysis, experiment. For example:
  loopgrad compare experiment=smoke output_dir=results/smoke
  loopgrad train task=sudoku9 task.path=puzzles.csv estimator=checkpointed
  loopgrad plan model=trm_published task=sudoku9 memory_budget=24GiB
  loopgrad analyse checkpoint=results/compare
  loopgrad show checkpoint=results/train sample=3
  torchrun --nproc_per_node=2 -m loopgrad train task=sudoku9 task.path=puzzles.csv
loopgrad COMMAND --help shows all keys; -m sweeps over comma-separated values, as Hydra does.

A command that ends badly says why in one line, and its exit code says of what kind that is: 1 the computation failed,
2 it was asked for wrongly, 3 the system refused (disk full, output closed), 130 Ctrl-C, 143 SIGTERM."""


def main() -> None:
    """Run the command named on the command line; what ends it badly becomes one line and an exit code."""
    with in_one_line():
        _main(sys.argv)


def _main(typed: list[str]) -> None:
    arguments = typed[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        raise SystemExit(0)
    command, *overrides = arguments
    if command not in COMMANDS:
        raise ConfigError(f"there is no command {command}; {nearest(command, (*COMMANDS, '--version', '--help'))}")
    overrides = spelt(command, overrides)
    swept = _check(command, overrides)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what is not the user's mistake is shown whole
    os.environ["MPLBACKEND"] = "agg"  # figures go to files
    sys.argv = [typed[0], *overrides]
    try:
        hydra.main(config_path="conf", config_name=command, version_base="1.3")(Task(command, typed))()
    except Exception as error:
        if OF_TASK in vars(error) or isinstance(error, MemoryError) or getattr(error, "filename", None) == OUTPUT:
            raise
        raise ConfigError(said(error)) from error  # Hydra raises all kinds of them for what it was asked
    if swept is not None:
        _report_jointly(swept)


@dataclass(frozen=True)
class Task:
    """What Hydra calls with the configuration of a job, in this process or in that of a launcher.

    Attributes:
        command: Name of the command.
        typed: The command line, for records.
    """

    command: str
    typed: list[str]

    def __call__(self, config: DictConfig) -> None:
        """Run the command; in a sweep the other jobs go on where this one fails, or was asked for wrongly."""
        sys.argv = self.typed
        console = _console()  # not handed in: it cannot be sent to another process
        sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
        if sweeping:
            own = [override for override in HydraConfig.get().overrides.task if override not in self.typed]
            console.print(f"Job {HydraConfig.get().job.num}{': ' * bool(own)}{', '.join(own)}")
        codes = (ConfigError.code, NonFinite.code) if sweeping else ()
        try:  # one line in here, for Hydra has lines of its own for what passes
            with going_on(codes), on_signals(cut_off), in_one_line(self.command):
                _run(self.command, config, console)
        except Exception as error:
            setattr(error, OF_TASK, True)  # which stays with it on its way from another process
            raise


def spelt(command: str, overrides: list[str]) -> list[str]:
    """Return overrides as Hydra reads them: a bench or a claim that is named in front, and lists of overrides."""
    if command == "claims":
        found = [(it, LISTS.fullmatch(it)) for it in overrides]
        overrides = [f"{listed[1]}=[{','.join(quoted(listed[2]))}]" if listed else it for it, listed in found]
    if command == "report":
        return _folders(overrides)
    if command not in ("bench", "claims") or not overrides or not overrides[0].isidentifier():
        return overrides
    name, *rest = overrides
    if command == "bench":
        return [f"bench={name}", *below(name, rest)]
    return ["all=true" if name == "all" else f"claim={name}", *rest]


def _folders(overrides: list[str]) -> list[str]:
    """Return overrides with folders that are named in front as a key: output_dir= of one, folders= of several."""
    named = list(takewhile(lambda it: "=" not in it and not it.startswith("-"), overrides))
    quoted_each = ["'" + it.replace("\\", "\\\\").replace("'", "\\'") + "'" for it in named]
    key = [f"output_dir={quoted_each[0]}"] if len(named) == 1 else [f"folders=[{','.join(quoted_each)}]"] * bool(named)
    return [*key, *overrides[len(named) :]]


def quoted(listed: str) -> Iterator[str]:
    """Yield the items of a list in quotes, in which Hydra lets an = stand; one with quotes of its own stays so."""
    if not listed.strip() or set(listed) & {"'", '"'}:
        yield from [listed] if listed.strip() else []
        return
    depth, begin = 0, 0
    for place, letter in enumerate([*listed, ","]):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and (depth <= 0 or place == len(listed)):
            yield f"'{listed[begin:place].strip()}'"
            begin = place + 1


def below(bench: str, overrides: list[str]) -> list[str]:
    """Return overrides with the keys of a bench where it has them: size=tiny is bench.size=tiny."""
    file = resources.files("loopgrad.experiments.conf") / "bench" / f"{bench}.yaml"
    own = OmegaConf.create(file.read_text()) if file.is_file() else {}
    return [f"bench.{it}" if it.partition("=")[0] in own and "=" in it else it for it in overrides]


def _check(command: str, overrides: list[str]) -> Path | None:
    """Check options and overrides before Hydra reads them; return the folder of a sweep that has a joint report.

    Raises:
        ConfigError: An option is unknown or lacks its value, or an override is refused.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; loopgrad {command} --help shows what there is")

    parser.error = refuse
    asked = parser.parse_args(overrides)
    if asked.experimental_rerun:
        raise ConfigError(
            f"--experimental-rerun={asked.experimental_rerun}: it unpickles a file, which could run anything: "
            "repeat the command as it was typed, which records hold under `command`"
        )
    if asked.multirun or os.environ.get("WORLD_SIZE"):
        check_room(loads=True)  # what follows loads torch
    if os.environ.get("WORLD_SIZE"):
        _check_ranks(command, asked.multirun)
    if asked.package and not asked.cfg:
        raise ConfigError(f"--package {asked.package}: goes with --cfg, of which it shows a part")
    for folder in filter(None, (asked.config_dir, asked.config_path)):
        check_folder(Path(folder))
    if asked.config_path or asked.config_name or asked.config_dir or asked.shell_completion:
        return None  # Hydra alone knows the configuration
    config, swept = composed(command, asked.overrides, sweep=asked.multirun), None
    if asked.multirun and "output_dir" in config:
        folder = _folder(config)  # which Hydra makes before the first job
        if (folder / "config.json").exists():
            raise ConfigError(f"output_dir={folder}: holds results of its own: choose another for those of a sweep")
        swept = folder if command in JOINT and not asked.cfg and not asked.info and not asked.help else None
    if asked.package and asked.cfg == "job" and OmegaConf.select(config, asked.package) is None:
        raise ConfigError(f"--package {asked.package}: there is none; {nearest(asked.package, keys_of(config))}")
    return swept


def _check_ranks(command: str, sweep: bool) -> None:
    from loopgrad.experiments.processes.ranks import started

    size = started().size
    if size > 1 and command not in TOGETHER:
        raise ConfigError(f"{command} works in one process, and WORLD_SIZE={size}: run it without torchrun")
    if size > 1 and sweep:
        raise ConfigError(f"-m: a sweep is of runs in one process, and WORLD_SIZE={size}: start torchrun for each run")


def _run(command: str, config: DictConfig, console: Console) -> None:
    runtime = HydraConfig.get()
    if runtime.mode == RunMode.MULTIRUN and "output_dir" in config:
        with open_dict(config):
            config.output_dir = str(_folder(config) / str(runtime.job.num))
    main = importlib.import_module(f"loopgrad.experiments.commands.{command}").main
    try:
        main(config, Names.chosen(), console)
    except OmegaConfBaseException as error:  # a configuration of the user's own lacks a key, say
        raise ConfigError(said(error)) from error


def _folder(config: DictConfig) -> Path:
    from loopgrad.experiments.folders import output_folder  # loads torch

    return output_folder(config.output_dir)


def _report_jointly(folder: Path) -> None:
    """Render the joint report of a sweep.

    Raises:
        ConfigError: No job has ended.
        SweepUnfinished: Some have not.
    """
    from loopgrad.experiments.reports import sweep

    if missing := sweep.render(folder, _console()):
        told = ", ".join(map(str, missing[:20])) + ", ..." * (len(missing) > 20)
        where = f" in {folder / '.submitit'}" if (folder / ".submitit").is_dir() else ""
        raise SweepUnfinished(
            f"{len(missing)} of the jobs in {folder} have not ended: {told}; each has said why{where}, and the same "
            "command goes on with them"
        )


def _console() -> Console:
    return Output(markup=False, emoji=False, highlight=False, soft_wrap=not sys.stdout.isatty())


class Output(Console):
    """The console, which leaves a broken pipe to those who end the command."""

    def on_broken_pipe(self) -> None:
        """Raise what was caught."""
        raise

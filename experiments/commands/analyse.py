"""loopgrad analyse: follow the recursion of trained weights and say, per sample and stream, whether it converges.

    loopgrad analyse checkpoint=results/compare
    loopgrad analyse checkpoint=results/train/runs/last_cycle-seed0/weights.safetensors
    loopgrad analyse checkpoint=step_1000 task=sudoku9 official.num_heads=8

An interrupted analysis goes on with the weights that are left.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from loopgrad.experiments import provenance, records
from loopgrad.experiments.conf.applies import check_estimators
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.parts import estimators_of
from loopgrad.experiments.conf.values import Names, check_count, plain
from loopgrad.experiments.deltas.examination import meet
from loopgrad.experiments.deltas.jobs import Job, do_all
from loopgrad.experiments.deltas.weights import Weights, find
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import ANALYSIS, claimed, complete, output_folder
from loopgrad.experiments.processes import at_once
from loopgrad.experiments.reports import deltas
from loopgrad.experiments.trainer import device_of
from loopgrad.experiments.training.seeds import seeded


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Examine, record, report."""
    made = provenance.stamp()
    settings = build(config.analysis, "analysis")
    check_count("workers", config.workers, optional=True)
    check_count("figures", config.figures, least=0)
    try:
        device = device_of(settings.device)
    except ValueError as error:
        raise ConfigError(f"analysis.{error}") from error
    folder = output_folder(config.output_dir)
    estimators = {name: seeded(it, 0) for name, it in estimators_of(config).items()}
    found = [weights for place in _places(config) for weights in _at(place, config)]
    if len({weights.name for weights in found}) < len(found):
        raise ConfigError("checkpoint: two of these weights have one name, such as runs of folders of the same name")
    met = meet(found[0], replace(settings, samples=1))  # what does not fit is refused before anything is written
    check_estimators(estimators, met.model, trained=True)
    last = {(weights.group, weights.estimator, weights.seed): weights for weights in found}  # steps are in order
    count = min(config.figures, len(last))
    drawn = [list(last.values())[i * len(last) // count] for i in range(count)]
    jobs = [Job(weights, settings, estimators, folder, weights in drawn) for weights in found]
    with claimed(folder, plain(config), config.restart, ANALYSIS) as whole:
        left = [job for job in jobs if not job.done()]
        if left or not whole:
            workers = at_once(len(left), config.workers, device, settings.num_threads)
            with closing(do_all(left, workers)) as done:  # whatever happens here ends the workers
                for _ in track(done, "Examining", len(left), console=console):
                    pass
            shared = {**made, "device": provenance.device_name(device), "config": plain(config)}
            complete(folder, [records.read(job.stored)[0] | shared for job in jobs])
        deltas.render(folder, console)


def _places(config: DictConfig) -> list[Path]:
    given = list(config.checkpoint) if OmegaConf.is_list(config.checkpoint) else [config.checkpoint]
    if not given or any(not isinstance(place, str) or not place for place in given):
        raise ConfigError(
            f"checkpoint={config.checkpoint}: name a file of weights, the folder of a run or of a comparison, or a list"
        )
    return [Path(place) for place in given]


def _at(place: Path, config: DictConfig) -> list[Weights]:
    steps = None if config.steps is None else list(config.steps) if OmegaConf.is_list(config.steps) else [config.steps]
    if steps == [] or steps is not None and any(isinstance(s, bool) or not isinstance(s, int) or s < -1 for s in steps):
        raise ConfigError(f"steps={config.steps}: must be a list of steps, -1 for the last")
    given = {part: plain(config[part]) for part in ("task", "model", "trainer") if config.get(part) is not None}
    return find(place, given, plain(config.official), steps)

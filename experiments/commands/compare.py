"""loopgrad compare: train one model under several gradient estimators and say what each cost.

    loopgrad compare
    loopgrad compare task=rolling_sum estimator=[bptt,one_step] seeds=[0] output_dir=results/sum
    torchrun --nproc_per_node=2 -m loopgrad compare

Same data order, same initial weights and same number of steps for every estimator of a seed.
"""

from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from loopgrad.experiments import provenance
from loopgrad.experiments.conf.parts import Parts, parts
from loopgrad.experiments.conf.values import Names, check_count, run_seeds
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import claimed, complete, output_folder
from loopgrad.experiments.processes import Ranks, at_once, joined
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports import comparison
from loopgrad.experiments.training import shards
from loopgrad.experiments.training.crew import assist, execute_all
from loopgrad.experiments.training.parallel import check_rows, placed
from loopgrad.experiments.training.results import probed
from loopgrad.experiments.training.runs import Plan, plans


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Train, probe, record, report."""
    made = provenance.stamp()
    seeds, folder = run_seeds(config.seeds), output_folder(config.output_dir)
    check_count("workers", config.workers, optional=True)
    check_count("timing_repeats", config.timing_repeats)
    ranks = placed(config)
    built = parts(config)
    runs = plans(built, seeds, folder)
    check_rows(built.trainer, ranks)
    shards.check(built.trainer, ranks)
    if ranks.size > 1 and config.workers not in (None, 1):
        raise ConfigError(
            f"workers={config.workers}: under torchrun all {ranks.size} processes share each run, one run after the "
            "other: leave it out, or set it to 1"
        )
    with joined(ranks, built.trainer.torch_device()) as ranks:
        if not ranks.first:
            return assist(ranks, runs, console)
        with claimed(folder, built.values, config.restart) as done:
            ranks.told(done)
            if done:
                console.print(f"{folder} holds this comparison already; restart=true runs it anew.")
            else:
                complete(folder, _found(runs, built, seeds, config, names, made, console, ranks))
            comparison.render(folder, console)


def _found(
    runs: list[Plan],
    built: Parts,
    seeds: list[int],
    config: DictConfig,
    names: Names,
    made: dict[str, Any],
    console: Console,
    ranks: Ranks,
) -> list[RunRecord]:
    """Train and probe; return the records."""
    workers = 1
    if ranks.size == 1:
        workers = at_once(len(runs), config.workers, built.trainer.torch_device(), built.trainer.num_threads)
    console.print(
        f"{len(built.estimators)} estimators x {len(seeds)} seeds of {names.model} on {names.task}, "
        f"{built.trainer.train_steps} steps each, {workers} at a time; results go to {config.output_dir}"
    )
    test = built.task.test_set()
    console.print(built.task.render(test.inputs[0], test.labels[0]), highlight=False, markup=False)
    execute_all(runs, workers, console, ranks)
    found: list[RunRecord] = []
    with console.status("Probing the trained weights: time, bytes, gradients, residuals"):
        for seed in seeds:
            found += probed([plan for plan in runs if plan.seed == seed], names, config.timing_repeats, made)
    return found

"""loopgrad train: train one model under one gradient estimator, with checkpoints to go on from.

loopgrad train task=sudoku9 task.path=puzzles.csv estimator=checkpointed output_dir=results/sudoku9
"""

from omegaconf import DictConfig
from rich.console import Console

from loopgrad.experiments import provenance, records
from loopgrad.experiments.compare import probed
from loopgrad.experiments.crew import execute_all
from loopgrad.experiments.overrides import ConfigError
from loopgrad.experiments.plans import Names, claim, data_seeds, output_folder, parts, plans


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Train to the last step, then probe and record."""
    made = provenance.stamp()
    seeds, folder = data_seeds(config.seed, "seed"), output_folder(config)
    built = parts(config)
    if len(built.estimators) > 1 or len(seeds) > 1:
        raise ConfigError(f"train takes one estimator and one seed, got {', '.join(built.estimators)}: use compare")
    done = claim(folder, config, config.restart)
    (plan,) = plans(config, built, seeds, folder)
    if done:
        console.print(f"{folder} holds this run already; restart=true runs it anew.")
    else:
        execute_all([plan], 1, console)
        records.write(folder / "records.jsonl", probed([plan], names, 3, made))
    (record,) = records.read(folder / "records.jsonl")
    console.print(
        f"{record['exact_accuracy']:.1%} of held-out samples exact, {record['token_accuracy']:.1%} of tokens; "
        f"weights in {plan.folder / 'weights.safetensors'}, record in {folder / 'records.jsonl'}",
        highlight=False,
    )

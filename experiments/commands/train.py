"""loopgrad train: train one model under one gradient estimator, with checkpoints to go on from.

loopgrad train task=sudoku9 task.path=puzzles.csv estimator=checkpointed output_dir=results/sudoku9
torchrun --nproc_per_node=2 -m loopgrad train task=sudoku9 task.path=puzzles.csv output_dir=results/sudoku9
"""

from omegaconf import DictConfig
from rich.console import Console

from loopgrad.experiments import provenance, records
from loopgrad.experiments.conf.parts import parts
from loopgrad.experiments.conf.values import Names, run_seeds
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.folders import claimed, complete, output_folder
from loopgrad.experiments.processes import joined
from loopgrad.experiments.records import RunRecord
from loopgrad.experiments.reports.summary import other_answers
from loopgrad.experiments.training import shards
from loopgrad.experiments.training.crew import assist, execute_all
from loopgrad.experiments.training.parallel import check_rows, placed
from loopgrad.experiments.training.results import probed
from loopgrad.experiments.training.runs import plans


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Train to the last step, then probe and record."""
    made = provenance.stamp()
    seeds, folder = run_seeds(config.seed, "seed"), output_folder(config.output_dir)
    ranks = placed(config)
    built = parts(config)
    if len(built.estimators) > 1 or len(seeds) > 1:
        raise ConfigError(f"train takes one estimator and one seed, got {', '.join(built.estimators)}: use compare")
    (plan,) = plans(built, seeds, folder)
    check_rows(built.trainer, ranks)
    shards.check(built.trainer, ranks)
    with joined(ranks, built.trainer.torch_device()) as ranks:
        if not ranks.first:
            return assist(ranks, [plan], console)
        with claimed(folder, built.values, config.restart, reported=False) as done:
            ranks.told(done)
            if done:
                console.print(f"{folder} holds this run already; restart=true runs it anew.")
            else:
                execute_all([plan], 1, console, ranks)
                complete(folder, probed([plan], names, 3, made))
    record, *more = records.read(folder / "records.jsonl", RunRecord)
    if more:
        raise ConfigError(f"{folder / 'records.jsonl'}: holds {1 + len(more)} records, and a run has one: restart=true")
    matched = f" ({record['match_accuracy']:.1%} equal to their label)" if other_answers([record]) else ""
    console.print(
        f"{record['exact_accuracy']:.1%} of held-out samples exact{matched}, {record['token_accuracy']:.1%} of tokens; "
        f"weights in {plan.folder / 'weights.safetensors'}, record in {folder / 'records.jsonl'}",
        highlight=False,
    )
    if voted := record.get("votes"):
        shares = ", ".join(f"{share:.1%} in {tried}" for tried, share in voted["pass_at"].items())
        over = f"by votes over {voted['augmentations']} augmentations, by number of answers tried"
        console.print(f"{over}: {shares}", highlight=False)

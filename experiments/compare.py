"""loopgrad compare: train one model under several gradient estimators and say what each cost.

    loopgrad compare
    loopgrad compare task=rolling_sum estimator=[bptt,one_step] seeds=[0] output_dir=results/sum

Same data order, same initial weights and same number of steps for every estimator of a seed.
"""

from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from loopgrad.experiments import probe, provenance, records, report
from loopgrad.experiments.crew import at_once, execute_all
from loopgrad.experiments.plans import Names, check_count, claim, data_seeds, output_folder, parts, plans
from loopgrad.experiments.runs import Plan, history, trained_model


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Train, probe, record, report."""
    made = provenance.stamp()
    seeds, folder = data_seeds(config.seeds), output_folder(config)
    check_count("workers", config.workers, optional=True)
    check_count("timing_repeats", config.timing_repeats)
    built = parts(config)
    if claim(folder, config, config.restart):
        console.print(f"{folder} holds this comparison already; restart=true runs it anew.")
        report.render(folder, console)
        return
    runs = plans(config, built, seeds, folder)
    workers = at_once(len(runs), config.workers, built.trainer.torch_device(), built.trainer.num_threads)
    console.print(
        f"{len(built.estimators)} estimators x {len(seeds)} seeds of {names.model} on {names.task}, "
        f"{built.trainer.train_steps} steps each, {workers} at a time; results go to {folder}"
    )
    test = built.task.test_set()
    console.print(built.task.render(test.inputs[0], test.labels[0]), highlight=False, markup=False)
    execute_all(runs, workers, console)
    found = []
    with console.status("Probing the trained weights: time, bytes, gradients, residuals"):
        for seed in seeds:
            found += probed([plan for plan in runs if plan.seed == seed], names, config.timing_repeats, made)
    records.write(folder / "records.jsonl", found)
    report.render(folder, console)


def probed(runs: list[Plan], names: Names, repeats: int, made: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the finished runs of one seed, their estimators timed in turn on the same weights."""
    trainer, task, seed = runs[0].trainer, runs[0].task, runs[0].seed
    torch.set_num_threads(trainer.num_threads)  # as in training, and so that idle threads do not disturb the timing
    test = task.test_set()
    probes = {plan.name: probe.start(trained_model(plan), trainer, test) for plan in runs}
    first = probes[runs[0].name]
    seconds = probe.times(first, {plan.name: plan.estimator for plan in runs}, repeats)
    result = []
    for plan in runs:
        log = history(plan)
        last, mine = log[-1], probes[plan.name]
        costs = probe.cost(mine, plan.estimator)
        result.append(
            {
                "estimator": plan.name.removesuffix(f"-seed{seed}"),
                "task": names.task,
                "model": names.model,
                "seed": seed,
                "train_steps": trainer.train_steps,
                "loss": last["test_loss"],
                "exact_accuracy": last["test_exact_accuracy"],
                "token_accuracy": last["test_token_accuracy"],
                **seconds[plan.name],
                **costs,
                **probe.agreement(mine, plan.estimator),
                **probe.residuals(mine, plan.estimator),
                "kind": plan.estimator.kind,
                "train_seconds": sum(entry["seconds"] for entry in log),
                "curve": {
                    "step": [entry["step"] for entry in log if "test_loss" in entry],
                    "exact_accuracy": [entry["test_exact_accuracy"] for entry in log if "test_loss" in entry],
                    "train_loss": [entry["loss"] for entry in log],
                },
                "verdicts": _verdicts(log),
                "probe": {"samples": len(mine.batch), "segment": 2, "timing_repeats": repeats},
                **made,
                "device": provenance.device_name(mine.batch.inputs.device),
                "config": plan.fingerprint,
            }
        )
    return result


def _verdicts(log: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what an implicit estimator said of its samples at each step, and the share trusted over training."""
    names = [name for name in log[-1] if name.startswith("implicit_")]
    if not names:
        return None
    found = {name.removeprefix("implicit_"): [entry[name] for entry in log] for name in names}
    return {"mean_trusted": sum(found["trusted"]) / len(log), **found}

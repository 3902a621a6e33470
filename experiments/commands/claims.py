"""loopgrad claims [NAME | all]: test what is said of recursion, each claim by an experiment that could refute it.

    loopgrad claims
    loopgrad claims gradient_scope size=tiny
    loopgrad claims all minutes=60

Every training is one that `loopgrad train` would run; the report of a claim prints the command of each. After a kill
the same command goes on.
"""

import time
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from loopgrad.experiments import provenance
from loopgrad.experiments.claims import SIZES, Claim, Training, read, trainings
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.nearest import nearest
from loopgrad.experiments.conf.values import Names, check_count, run_seeds
from loopgrad.experiments.errors import ConfigError, Interrupted, SweepUnfinished
from loopgrad.experiments.folders import claimed, complete, output_folder
from loopgrad.experiments.processes import at_once, mapped
from loopgrad.experiments.records import differences
from loopgrad.experiments.reports import claims as reports
from loopgrad.experiments.reports.tables import console_table
from loopgrad.experiments.training.crew import execute_all

KIND = frozenset({"claim", "size", "every"})


def main(config: DictConfig, names: Names, console: Console) -> None:
    """List the claims, or test one or all of them."""
    folder, known = output_folder(config.output_dir), _known()
    if config.size not in SIZES:
        raise ConfigError(f"size={config.size}: no such size; {nearest(str(config.size), SIZES)}")
    if not isinstance(config.all, bool):
        raise ConfigError(f"all={config.all}: must be true or false")
    if config.all and config.get("claim") is not None:
        raise ConfigError("all=true tests every claim: leave claim= out")
    if not config.all and config.get("claim") is None:
        _list(folder, list(known), console)
        if config.page is not None:
            _write_page(output_folder(config.page, "page"), folder, list(known), console)
        return
    check_count("workers", config.workers, optional=True)
    check_count("minutes", config.minutes, optional=True)
    run_seeds(config.seeds)
    if not OmegaConf.is_list(config.also) or not all(isinstance(it, str) for it in config.also):
        raise ConfigError(f"also={config.also}: must be a list of overrides, such as also=[trainer.device=cpu]")
    page = output_folder(config.page, "page") if config.page is not None else folder / "index.md"
    reports.check_index(page)  # before the training, which takes minutes
    chosen = {name: _built(node) for name, node in known.items()} if config.all else {_name(): _built(config.claim)}
    ends = time.monotonic() + 60 * config.minutes if config.minutes is not None else None
    unfinished: SweepUnfinished | None = None
    try:
        _test_each(chosen, config, ends, console)
    except SweepUnfinished as error:  # the others are tested
        unfinished = error
    _write_page(page, folder, list(dict.fromkeys([*known, *chosen])), console)
    if unfinished:
        raise unfinished


def _write_page(page: Path, folder: Path, names: list[str], console: Console) -> None:
    if any(reports.listed(folder, names, SIZES).values()):
        reports.write_index(folder, names, SIZES, page)
        console.print(f"All claims: {page}")


def _test_each(chosen: dict[str, Claim], config: DictConfig, ends: float | None, console: Console) -> None:
    failed: list[str] = []
    for name, claim in chosen.items():
        console.print(f"{name}: {claim.title}")
        try:
            _test(name, claim, config, ends, console)
        except ConfigError as error:
            if not config.all:
                raise
            failed.append(name)
            console.print(f"{name}: {error}")
    if failed:
        raise SweepUnfinished(f"{len(failed)} of {len(chosen)} claims could not be tested: {', '.join(failed)}")


def _list(folder: Path, known: list[str], console: Console) -> None:
    found = reports.listed(folder, known, SIZES)
    header = ["claim", "verdict"]
    console.print(console_table(header, reports.lines(found), header))
    console.print("loopgrad claims NAME [size=tiny|cpu|gpu] tests one, loopgrad claims all every one")


def _known() -> dict[str, DictConfig]:
    """Return the nodes of the claims of this package by name."""
    folder = resources.files("loopgrad.experiments.conf") / "claim"
    files = sorted((it for it in folder.iterdir() if it.name.endswith(".yaml")), key=lambda it: it.name)
    found = {it.name.removesuffix(".yaml"): OmegaConf.create(it.read_text()) for it in files}
    return {name: node for name, node in found.items() if isinstance(node, DictConfig)}


def _name() -> str:
    return str(HydraConfig.get().runtime.choices["claim"])


def _built(node: DictConfig) -> Claim:
    claim = build(node, "claim")
    if not isinstance(claim, Claim):
        raise ConfigError(f"claim: {node['_target_']} is not a Claim")
    return claim


def _test(name: str, claim: Claim, config: DictConfig, ends: float | None, console: Console) -> None:
    """Train, read, record and report, unless the folder holds all that already."""
    size, seeds = str(config.size), run_seeds(config.seeds)
    folder = output_folder(config.output_dir) / name / size
    also = list(config.also)
    conditions = claim.conditions(size)
    described: dict[str, Any] = {
        "claim": name,
        "size": size,
        "seeds": seeds,
        "every": also,
        "conditions": {it.name: it.overrides for it in conditions},
        "readings": vars(claim.readings(size)),
    }
    made = provenance.stamp()

    def planned() -> list[Training]:
        return trainings(conditions, claim.readings(size), seeds, also, folder)

    # what cannot be composed is refused before anything is written; where results are stored it need not be composed
    jobs = [] if (folder / "records.jsonl").exists() and config.restart is not True else planned()
    with claimed(folder, described, config.restart, KIND) as done:
        if not done:
            jobs = jobs or planned()
            found = _run(jobs, config, ends, console)
            made["device"] = provenance.device_name(jobs[0].plan.trainer.torch_device())
            complete(folder, [_record(name, claim, size, also, found, made)])
        else:
            _check_judged(folder, claim)
            console.print(f"{folder} holds this claim's results already; restart=true runs it anew.")
        reports.render(folder, console)


def _check_judged(folder: Path, claim: Claim) -> None:
    """Check that a record was judged by the differences that are asked for, whatever the words for them.

    Raises:
        ConfigError: By others.
    """
    stored, asked = reports.read(folder)["contrasts"], {name: vars(it) for name, it in claim.differences().items()}
    before, after = ({name: {**it, "says": ""} for name, it in found.items()} for found in (stored, asked))
    if changed := differences(before, after, "contrasts"):
        raise ConfigError(
            f"{folder} holds results that were judged by other differences ({', '.join(changed[:5])}): choose another "
            "output_dir=, or restart=true to replace them"
        )


def _run(jobs: list[Training], config: DictConfig, ends: float | None, console: Console) -> list[dict[str, Any]]:
    def enough() -> bool:
        return ends is not None and time.monotonic() > ends

    trainer = jobs[0].plan.trainer
    workers = at_once(len(jobs), config.workers, trainer.torch_device(), trainer.num_threads)
    try:
        execute_all([it.plan for it in jobs], workers, console, enough=enough)
    except Interrupted as error:
        if not enough():
            raise
        raise SweepUnfinished(
            f"minutes={config.minutes} are over; the same command goes on from what is stored"
        ) from error
    with console.status("Reading the trained weights"):
        return mapped(read, jobs, workers)


def _record(
    name: str, claim: Claim, size: str, also: list[str], found: list[dict[str, Any]], made: dict[str, Any]
) -> dict[str, Any]:
    told = ("title", "statement", "sources", "published", "change", "equal", "figure")
    return {
        "claim": name,
        "size": size,
        **{key: getattr(claim, key) for key in told},
        "contrasts": {key: vars(it) for key, it in claim.differences().items()},
        "every": also,
        "trainings": found,
        **made,
    }

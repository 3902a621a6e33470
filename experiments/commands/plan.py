"""loopgrad plan: which estimators fit a memory, with bytes, evaluations and the largest batch, before anything is run.

    loopgrad plan model=trm_published task=sudoku9 memory_budget=24GiB trainer.batch_size=768
    loopgrad plan cell=mypackage.cells:Cell state=[81,512] inputs=[81,512] num_steps=64 memory_budget=24GiB

Operators are followed on tensors without data, so that sizes cost nothing; for online gradients the first updates are
run on a few samples before. It writes no files.
"""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from loopgrad.analysis.cell_steps import step_of, without_data
from loopgrad.analysis.plans import Planned, Step, cheapest_exact, planned
from loopgrad.experiments.conf.build import build
from loopgrad.experiments.conf.own_cells import shapes_of, the_cell
from loopgrad.experiments.conf.parts import build_model, estimators_of
from loopgrad.experiments.conf.values import Names, check_count
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.reports.tables import console_table
from loopgrad.experiments.tasks.base import Task
from loopgrad.experiments.trainer import Trainer
from loopgrad.gradients import Estimator, Stats
from loopgrad.gradients.budget import parse_bytes
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.ramp import Ramp, estimator_at

GIVEN = ("state", "inputs", "xs")
OF_CELL = (*GIVEN, "num_steps")


def main(config: DictConfig, names: Names, console: Console) -> None:
    """Foresee, and print a table."""
    try:
        budget = parse_bytes(config.memory_budget, "memory_budget={!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if isinstance(config.copies, bool) or not isinstance(config.copies, int | float) or not config.copies >= 0:
        raise ConfigError(f"copies={config.copies}: must be a number of at least 0, 4 for AdamW with an average")
    trainer = build(config.trainer, "trainer")
    estimators = {name: _last(it, trainer) for name, it in estimators_of(config).items()}
    step = _of_model(config, trainer) if config.cell is None else _of_cell(config, trainer)
    rows = planned(step, estimators, budget, trainer.batch_size)
    _check_any_fits(rows, config.memory_budget, trainer.batch_size)
    console.print(_table(rows, step, trainer.batch_size))
    for row in rows:
        if row.remark:
            console.print(f"{row.name} is not foreseen: {row.remark}")
    console.print(_words(rows, step, budget, str(config.memory_budget)))


def _last(estimator: Estimator, trainer: Trainer) -> Estimator:
    """Return what an estimator is at the end of training, where a ramp is at its most."""
    return estimator_at(estimator, trainer.train_steps - 1) if isinstance(estimator, Ramp) else estimator


def _of_model(config: DictConfig, trainer: Trainer) -> Step:
    """Return a segment of training of a model: encoder, recursion, readout and loss, forward and backward."""
    if given := [name for name in OF_CELL if config[name] is not None]:
        raise ConfigError(f"{given[0]}={config[given[0]]}: is of a cell of your own: name it, cell=module:attribute")
    if config.requires_grad != list(GIVEN):
        raise ConfigError(f"requires_grad={config.requires_grad}: is of a cell of your own: cell=module:attribute")
    task = build(config.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(f"task: {config.task['_target_']} is not a Task")
    try:
        spec = task.spec  # with its data read, or encoded
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    with torch.device("meta"):
        model = build_model(config.model, task, seed=0)

    def make(batch: int, num_steps: int) -> Any:
        tokens = torch.zeros(batch, spec.seq_len, dtype=torch.int64)
        ids = torch.zeros(batch, dtype=torch.int64) if spec.num_puzzles else None
        return without_data(model), tokens, ids

    def with_data(batch: int, num_steps: int) -> Any:
        tokens = torch.randint(spec.vocab_size, (batch, spec.seq_len), generator=torch.Generator().manual_seed(0))
        ids = torch.zeros(batch, dtype=torch.int64) if spec.num_puzzles else None
        return build_model(config.model, task, seed=0), tokens, ids

    def forward(made: Any, estimator: Estimator, num_steps: int) -> tuple[torch.Tensor, Stats]:
        model, tokens, ids = made
        with trainer.precision(torch.device("cpu")):
            scored = model.scored(None, tokens, ids, tokens, estimator, trainer.loss_of_token())
            return scored.loss + scored.output.q_halt.sum(), scored.output.stats

    kept = sum(buffer.nbytes for buffer in model.buffers())
    kept += round(config.copies * sum(parameter.nbytes for parameter in model.parameters()))
    return Step(make, forward, model.num_steps, period_of(model.cell), kept, with_data=with_data)


def _of_cell(config: DictConfig, trainer: Trainer) -> Step:
    """Return the recursion of a cell of the user's own, with a mean of squares for a loss."""
    check_count("num_steps", config.num_steps)
    if config.state is None:
        raise ConfigError("state: give the shape of one sample's state without the batch, such as state=[81,512]")
    cell = the_cell(config.cell)
    wanted = config.requires_grad
    if not OmegaConf.is_list(wanted) or not set(wanted) <= set(GIVEN):
        raise ConfigError(f"requires_grad={wanted}: must be a list of some of {', '.join(GIVEN)}, or []")
    plain = [OmegaConf.to_object(it) if OmegaConf.is_config(it) else it for it in (config[name] for name in GIVEN)]
    state, inputs, xs = (shapes_of(name, it, name in wanted) for name, it in zip(GIVEN, plain, strict=True))
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[trainer.autocast]
    try:
        return step_of(cell, state, inputs, config.num_steps, xs, config.copies, dtype)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"cell={config.cell}: {error}") from error


def _check_any_fits(rows: list[Planned], budget: Any, batch_size: int) -> None:
    known = [row for row in rows if row.bytes is not None]
    if any(row.fits for row in rows):
        return
    if not known:
        raise ConfigError(f"estimator: none of them is foreseen; {rows[0].name}: {rows[0].remark}")
    least = min(known, key=lambda row: row.bytes or 0)
    best = max(known, key=lambda row: row.largest_batch)
    batch = f", or trainer.batch_size={best.largest_batch} with {best.name}" if best.largest_batch else ""
    raise ConfigError(
        f"memory_budget={budget}: too small for every estimator at trainer.batch_size={batch_size}: the least is "
        f"{_typed(least.bytes or 0)}, with {least.name}: give that{batch}"
    )


def _table(rows: list[Planned], step: Step, batch_size: int) -> Any:
    header = ["estimator", "fits", "kind", f"bytes at {batch_size}", "evaluations", "vjps", "largest batch"]
    shown = [
        [
            row.name,
            "yes" if row.fits else "no",
            row.kind,
            amount(row.bytes or 0),
            str(row.evaluations) if row.evaluations else "-",
            str(row.vjps) if row.evaluations else "-",
            f"{row.largest_batch:,}",
        ]
        for row in rows
        if row.bytes is not None
    ]
    return console_table(header, shown, ["estimator", "fits", "kind"])


def _words(rows: list[Planned], step: Step, budget: int, said: str) -> str:
    lines = [
        f"{step.num_steps} updates; {amount(step.kept)} of weights and what is kept beside them are counted; "
        "an accelerator's scratch and allocator are not: leave a tenth."
    ]
    best = cheapest_exact(rows)
    if best is None and not any(row.kind == "exact" for row in rows):
        lines.append("None of these is exact: estimator=[bptt,checkpointed] are.")
    elif best is None:
        lines.append(f"No exact gradient fits {said}: take a smaller batch or a larger memory_budget.")
    else:
        lines.append(f"The cheapest exact gradient that fits {said}: {best.name}.")
    auto = next((row for row in rows if row.room is not None and row.room > 0), None)
    if auto is not None and auto.room is not None:
        unit, of = next(it for it in ((2**20, "MiB"), (2**10, "KiB"), (1, "")) if auto.room >= 100 * it[0] or not it[1])
        most = f"{auto.room // unit}{of}"
        lines.append(
            f"For the recursion alone there are {amount(auto.room)}: estimator.{auto.name}.memory_budget={most}"
        )
    return "\n".join(lines)


def _typed(size: int) -> str:
    """Return a budget of at least that size, as it is typed."""
    return f"{-(-size // 2**10)}KiB"


def amount(size: int) -> str:
    """Return bytes in the unit that suits them."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size < 1000 * unit else f"{size / unit:,.0f} {name}"
    return f"{size} bytes"

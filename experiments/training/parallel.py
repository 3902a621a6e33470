"""A training step in parts: each rank has rows of the batch, and runs them in micro-batches.

A loss is a mean over samples, so that the whole batch's is the mean of those of its parts, weighted by their rows, and
its gradient likewise. Gradients are added up over ranks after backward and not in hooks: weights that every update of a
recursion uses have theirs at the very end of backward, so that nothing could be sent before, and in an order that does
not depend on which parameters a rank's rows happen to use.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.processes import Ranks, cut, settle, started
from loopgrad.experiments.tasks.base import Batch
from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import tree
from loopgrad.models import supervision

BUCKET = 2**24
"""Numbers that are sent at once, beside the gradients themselves."""
SUMS = ("finished", "finished_exact", "finished_segments")
"""Metrics of a segment that count rows; the others are means over them."""


@dataclass(frozen=True)
class Part:
    """Rows of a training step that are run at once.

    Attributes:
        carry: Theirs.
        batch: Their new samples, on the device.
        depth: Their cycles, see `depths.drawn`.
        exploration: Arguments of `run_segment` from which halting explores.
        weight: Their share of the whole batch.
        place: First row and size of the whole batch; None where they are all of it.
    """

    carry: supervision.Carry
    batch: Batch
    depth: Any
    exploration: dict[str, Any]
    weight: float
    place: tuple[int, int] | None


def placed(config: DictConfig) -> Ranks:
    """Return which process this is, on the accelerator that is its own.

    Raises:
        ConfigError: The environment, or `trainer.device`, is not as torchrun wants it.
    """
    ranks = started()
    settle(ranks, str(OmegaConf.select(config, "trainer.device", default="auto")))
    return ranks


def check_rows(trainer: Trainer, ranks: Ranks) -> None:
    """Check that each rank has rows for each of its micro-batches.

    Raises:
        ConfigError: It has not.
    """
    least = ranks.size * trainer.micro_batches
    if trainer.batch_size < least:
        raise ConfigError(
            f"trainer.batch_size={trainer.batch_size}: {ranks.size} processes times trainer.micro_batches="
            f"{trainer.micro_batches} need a row each, {least}: lower them, or take a larger batch"
        )


def parts(
    carry: supervision.Carry, batch: Batch, depth: Any, exploration: torch.Generator, trainer: Trainer, ranks: Ranks
) -> Iterator[Part]:
    """Yield the parts of a step that are this rank's; all that is drawn is drawn for the whole batch on every rank.

    Args:
        carry: Of this rank's rows.
        batch: All new samples.
        depth: Drawn for all samples, or for the batch.
        exploration: Source of exploration.
        trainer: Says how many micro-batches.
        ranks: Who shares the batch.
    """
    device = carry.segment.device
    if ranks.size * trainer.micro_batches == 1:
        yield Part(carry, batch.to(device), depth, {"generator": exploration}, 1.0, None)
        return
    total, own = len(batch), ranks.rows(len(batch))
    least = trainer.halting.explored(total, exploration)
    for rows in cut(own, trainer.micro_batches):
        yield Part(
            rows_of(carry, slice(rows.start - own.start, rows.stop - own.start)),
            batch[rows].to(device),
            depth[rows] if isinstance(depth, Tensor) else depth,
            {"generator": exploration} if least is None else {"least": least[rows]},
            (rows.stop - rows.start) / total,
            (rows.start, total),
        )


def own_rows(carry: supervision.Carry, ranks: Ranks) -> supervision.Carry:
    """Return this rank's rows of a carry of the whole batch."""
    return carry if ranks.size == 1 else rows_of(carry, ranks.rows(len(carry.segment)))


def rows_of(carry: supervision.Carry, rows: slice) -> supervision.Carry:
    """Return rows of a carry, as tensors of their own."""
    leaves, unflatten = tree.flatten(carry)
    return unflatten([leaf[rows].clone() for leaf in leaves])


def together(carries: Sequence[supervision.Carry]) -> supervision.Carry:
    """Return the carry of the rows of several."""
    if len(carries) == 1:
        return carries[0]
    _, unflatten = tree.flatten(carries[0])
    return unflatten([torch.cat(leaves) for leaves in zip(*(tree.flatten(it)[0] for it in carries), strict=True)])


def whole(carry: supervision.Carry, ranks: Ranks) -> supervision.Carry:
    """Return the carry of the whole batch, on the CPU where it is gathered from several ranks."""
    if ranks.size == 1:
        return carry
    leaves, unflatten = tree.flatten(carry)
    return unflatten(
        [torch.cat(gathered) for gathered in zip(*ranks.all([leaf.cpu() for leaf in leaves]), strict=True)]
    )


def add_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Add up gradients over ranks; a parameter has none afterwards only if it has none on any of them."""
    if ranks.size == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    present = [any(of_ranks) for of_ranks in zip(*ranks.all([p.grad is not None for p in parameters]), strict=True)]
    sparse = [any(of_ranks) for of_ranks in zip(*ranks.all([_is_sparse(p.grad) for p in parameters]), strict=True)]
    bucket: list[Tensor] = []
    for parameter, wanted, rows in zip(parameters, present, sparse, strict=True):
        if not wanted:
            continue
        if rows:
            _add_rows(parameter, ranks)
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradient = parameter.grad
        if bucket and (gradient.dtype != bucket[0].dtype or sum(it.numel() for it in bucket) >= BUCKET):
            _add(bucket, ranks)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _add(bucket, ranks)


def _is_sparse(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.is_sparse


def _add_rows(parameter: nn.Parameter, ranks: Ranks) -> None:
    """Add up gradients of some rows of a table, each rank's own; those that no rank has stay away."""
    own = None
    if parameter.grad is not None:
        found = parameter.grad.coalesce()
        own = found.indices().cpu(), found.values().cpu()
    gathered = [of_rank for of_rank in ranks.all(own) if of_rank is not None]
    indices, values = (torch.cat(pair, dim) for pair, dim in zip(zip(*gathered, strict=True), (1, 0), strict=True))
    total = torch.sparse_coo_tensor(indices, values, parameter.shape, device=parameter.device, check_invariants=False)
    parameter.grad = total.coalesce()


def _add(gradients: list[Tensor], ranks: Ranks) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    ranks.add(flat)
    for gradient, total in zip(gradients, flat.split([it.numel() for it in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))


class Done:
    """What the parts of a step have given so far.

    Attributes:
        carries: Theirs, in order.
        saved: Bytes that the largest kept for backward.
        suspect: The first whose loss is not finite, else the last one.
    """

    def __init__(self) -> None:
        self.carries: list[supervision.Carry] = []
        self.saved = 0
        self.suspect: supervision.Segment | None = None
        self._names: list[str] = []
        self._metrics: list[tuple[float, Tensor]] = []
        self._stats: list[Any] = []
        self._finite = True

    def add(self, part: Part, result: supervision.Segment, saved: int) -> None:
        """Take what a part has given, once its backward pass has run."""
        self.carries.append(result.carry)
        self.saved = max(self.saved, saved)
        if self._finite:
            self.suspect = result
            self._finite = part.weight == 1 or bool(result.loss.isfinite())
        numbers = torch.stack([value.double() for value in result.metrics.values()])
        self._names = list(result.metrics)
        self._metrics.append((part.weight, numbers))
        self._stats.append(result.output.stats)

    def whole(self, saved: int, ranks: Ranks) -> tuple[dict[str, float], Any, int]:
        """Return metrics, stats and saved bytes of the whole batch, each rank's part in it saving `saved`."""
        own = [(weight, numbers.tolist()) for weight, numbers in self._metrics]
        if ranks.size * len(own) == 1:
            return dict(zip(self._names, own[0][1], strict=True)), self._stats[0], saved
        found = ranks.all((own, on_cpu(stats_of(self._stats)), saved))
        parts = [part for of_rank, _, _ in found for part in of_rank]
        metrics = {
            name: math.fsum(numbers[place] if name in SUMS else weight * numbers[place] for weight, numbers in parts)
            for place, name in enumerate(self._names)
        }
        return metrics, stats_of([stats for _, stats, _ in found]), sum(of_rank for _, _, of_rank in found)


def stats_of(found: Sequence[Any]) -> Any:
    """Return the stats of the whole batch from those of parts: samples side by side, the largest of what is counted."""
    if len(found) == 1:
        return found[0]
    first, joined = found[0], copy.copy(found[0])
    for field in dataclasses.fields(first):
        values = [value for it in found if (value := getattr(it, field.name)) is not None]
        if not values:
            continue
        if isinstance(values[0], Tensor):
            new: Any = torch.cat([value.reshape(-1) for value in values])
        elif dataclasses.is_dataclass(values[0]):
            new = stats_of(values)
        elif isinstance(values[0], tuple):
            new = sum(values, ())
        else:
            new = max(values)
        object.__setattr__(joined, field.name, new)
    return joined


def on_cpu(stats: Any) -> Any:
    """Return stats whose tensors can be sent to another process."""
    moved = copy.copy(stats)
    for field in dataclasses.fields(stats):
        value = getattr(stats, field.name)
        if isinstance(value, Tensor):
            object.__setattr__(moved, field.name, value.detach().cpu())
        elif dataclasses.is_dataclass(value):
            object.__setattr__(moved, field.name, on_cpu(value))
    return moved


def reseed(ranks: Ranks, seed: int, step: int) -> None:
    """Give each rank but the first, which goes on as one process does, dropout of its own for a step."""
    if not ranks.first:
        key = (seed_for("dropout", seed), ranks.rank, step)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, dtype=np.uint32)[0]))

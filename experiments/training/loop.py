"""Deep-supervision training: one optimiser step is one segment of every row, or several."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from loopgrad.analysis.counters import SavedBytes
from loopgrad.experiments.errors import NonFinite
from loopgrad.experiments.processes import ALONE, Ranks, lost_ranks
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.trainer import Joined, Trainer
from loopgrad.experiments.trainer.ahead import ahead
from loopgrad.experiments.trainer.building import clip, dense, own_part, shared_table, total_norm
from loopgrad.experiments.trainer.compiling import compile_in_place
from loopgrad.experiments.trainer.scaling import overflowed, scaled, scaled_step, scaler_of
from loopgrad.experiments.training import depths, parallel, shards
from loopgrad.experiments.training.seeds import generators, seed_for
from loopgrad.experiments.training.walk import settling
from loopgrad.gradients import Estimator, jacobian_penalty, tree
from loopgrad.gradients.ramp import estimator_at
from loopgrad.models import supervision
from loopgrad.models.losses import right_tokens, token_loss
from loopgrad.models.model import Model
from loopgrad.models.synthetic_gradients import Synthesiser


@dataclass
class Run:
    """All that changes while a model trains, the estimator's noise apart; `checkpoint` stores it whole.

    `log` is a digest of the lines that were logged, so that a checkpoint tells which ones it counts. `unit` is what
    training steps call where processes share the weights, see `shard`. `synthesiser` is that of `trainer.synthetic`.
    """

    model: Model
    average: AveragedModel
    optimizer: Joined
    carry: supervision.Carry
    exploration: torch.Generator
    step: int = 0
    log: str = ""
    scaler: torch.amp.GradScaler | None = None
    unit: shards.Unit | None = None
    synthesiser: Synthesiser | None = None

    @property
    def trained(self) -> list[nn.Module]:
        """What the optimiser has the weights of."""
        return [self.model] if self.synthesiser is None else [self.model, self.synthesiser]

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated: the average of the weights."""
        model = self.average.module
        assert isinstance(model, Model)
        return model


def begin(trainer: Trainer, task: Task, model: Model, seed: int) -> Run:
    """Return a run at step 0; seeds torch's global generator for dropout.

    Where processes are to share the weights they are on the host until `shard` has given each its part.
    """
    device = trainer.torch_device()
    place = device if trainer.shard == "none" else torch.device("cpu")
    model = model.to(place).train()
    torch.manual_seed(seed_for("dropout", seed))
    synthesiser = None
    if trainer.synthetic is not None:
        synthesiser = trainer.synthetic.of(model, trainer.halting.max_segments, seed_for("synthesiser", seed))
    optimizer = trainer.optimizer_of(model, synthesiser)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(trainer.ema_decay))
    if trainer.puzzle_optimizer is not None:
        shared_table(model, average.module)
    first = task.train_batch(seed_for("data", seed), 0, trainer.batch_size).to(place)
    exploration = torch.Generator(device=device).manual_seed(seed_for("exploration", seed))
    carry, scaler = supervision.initial_carry(model, first), scaler_of(model, trainer.autocast, device)
    if trainer.shard == "none":
        compile_in_place(model, trainer.compile)  # after the copy for the average, which is evaluated as it is
    return Run(model, average.eval(), optimizer, carry, exploration, scaler=scaler, synthesiser=synthesiser)


def shard(run: Run, trainer: Trainer, ranks: Ranks) -> None:
    """Give each process its part of the weights, of their average and of what the optimiser keeps, if it is asked for.

    Raises:
        ConfigError: There is one process alone.
    """
    shards.check(trainer, ranks)
    if trainer.shard == "none":
        return
    kept = run.optimizer.state_dict()["state"]
    run.unit = shards.sharded(run.model, trainer, ranks)
    shards.shard_average(run.evaluated, trainer, ranks)
    run.optimizer = trainer.optimizer_of(run.model)
    shards.shard_moments(run.optimizer, kept)
    run.carry = tree.map_tensors(lambda tensor: tensor.to(trainer.torch_device()), run.carry)
    compile_in_place(run.model, trainer.compile)


def train(
    run: Run, trainer: Trainer, task: Task, estimator: Estimator, seed: int, ranks: Ranks = ALONE
) -> Iterator[dict[str, Any]]:
    """Train to the last step, yielding what each step measured; evaluations are part of it.

    Args:
        run: Where it stands; its carry is that of the rows of this rank.
        trainer: Hyperparameters.
        task: Gives the samples.
        estimator: How gradients are obtained.
        seed: Seed of the run.
        ranks: Who trains it together; each yields the same, but for its seconds.

    Raises:
        NonFinite: The loss or the gradient is not finite; the weights are those before the step.
    """
    test = task.test_set()
    saved = None

    def draw(step: int) -> list[Batch]:
        # drawn whole whether or not rows take it, so that what is at (step, row) never depends on when rows halt
        numbers = range(step * trainer.segments_per_update, (step + 1) * trainer.segments_per_update)
        return [task.train_batch(seed_for("data", seed), number, trainer.batch_size) for number in numbers]

    with ahead(draw, trainer.train_steps, trainer.prefetch) as drawn:
        while run.step < trainer.train_steps:
            began = time.perf_counter()
            with lost_ranks(computing=True):
                entry, saved = _step(run, trainer, drawn(run.step), estimator, seed, saved, ranks)
            run.step += 1
            entry = {"step": run.step, **entry, "seconds": time.perf_counter() - began}
            if run.step % trainer.eval_every == 0 or run.step == trainer.train_steps:
                with shards.gathered(run.evaluated):
                    scores = evaluate(run.evaluated, trainer, task, test, ranks, task.test_groups())
                    scores |= settling(run.evaluated, trainer, test)
                entry |= {f"test_{name}": value for name, value in scores.items()}
            yield entry


def _step(
    run: Run, trainer: Trainer, batches: list[Batch], estimator: Estimator, seed: int, saved: int | None, ranks: Ranks
) -> tuple[dict[str, Any], int]:
    before = estimator_at(estimator, max(0, run.step - 1))
    estimator, depth = estimator_at(estimator, run.step), depths.drawn(trainer, seed, run.step)
    parallel.reseed(ranks, seed, run.step)
    if generators(estimator) or depth is not None or estimator != before:
        saved = None  # it may be another at each draw
    run.optimizer.zero_grad(set_to_none=True)
    done, carry, left = parallel.Done(), run.carry, len(batches) * trainer.micro_batches
    for batch in batches:
        own = []
        for part in parallel.parts(carry, batch, depth, run.exploration, trainer, ranks):
            left -= 1
            shards.exchange(run.unit, last=not left)
            own.append(replace(part, weight=part.weight / len(batches)))
            done.add(own[-1], *_part(run, trainer, estimator, seed, own[-1], saved is None, ranks))
        carry = parallel.together(done.carries[-len(own) :])
    if run.unit is None:
        for module in run.trained:
            parallel.add_gradients(module, ranks)
    if run.scaler is not None:
        run.scaler.unscale_(run.optimizer)
    parameters = list(run.model.parameters())
    norm = total_norm(parameters)
    saved = done.saved if saved is None else saved
    metrics, stats, all_saved = done.whole(saved, ranks)
    entry = {"gradient_norm": norm.item(), **metrics}
    if depth is not None:
        entry["cycles"] = depths.mean_of(depth)
    own = ("stopped", "residual", "doubt", "steps", "iterations", "fallback")
    entry |= {name if name in own else f"implicit_{name}": value for name, value in stats.numbers().items()}
    finite = math.isfinite(entry["gradient_norm"])
    if not (math.isfinite(entry["loss"]) and (finite or overflowed(run.scaler, parameters))):
        raise NonFinite(_first_non_finite(run, done.suspect, ranks))
    if trainer.grad_clip and finite:  # one bad gradient, clipped, spoils them all
        clip(parameters, trainer.grad_clip, norm)
    factor = trainer.rate_factor(run.step + 1)
    run.optimizer.set_rates(factor)
    if run.scaler is None:
        run.optimizer.step()
    else:
        entry |= {"loss_scale": run.scaler.get_scale()}
        entry |= {"skipped": int(not scaled_step(run.scaler, run.optimizer))}
    if finite:
        run.average.update_parameters(run.model)
    else:
        del entry["gradient_norm"]  # a log holds numbers
    run.carry = carry
    return {**entry, "learning_rate": trainer.learning_rate * factor, "saved_bytes": all_saved}, saved


def _part(
    run: Run, trainer: Trainer, estimator: Estimator, seed: int, part: parallel.Part, counted: bool, ranks: Ranks
) -> tuple[supervision.Segment, int]:
    """Run a part forward and backward; return what it gave, and the bytes that it kept where they are to be counted."""

    def forward() -> tuple[torch.Tensor, supervision.Segment, int]:
        counter = (
            SavedBytes([it for one in run.trained for it in (*one.parameters(), *one.buffers())]) if counted else None
        )
        with trainer.precision(run.carry.segment.device), counter or nullcontext():
            result = supervision.run_segment(
                run.model,
                part.carry,
                part.batch,
                estimator,
                trainer.halting,
                cross_entropy=trainer.loss_of_token(),
                depth=part.depth,
                synthesiser=run.synthesiser,
                **part.exploration,
            )
            penalty = _jacobian(run, trainer, result, seed, part) if trainer.jacobian_weight else None
        held = counter.held() if counter else 0
        if penalty is None:
            return result.loss, result, held
        result.metrics["jacobian_penalty"] = penalty.detach()
        return result.loss + trainer.jacobian_weight * penalty, result, held

    loss, result, held = shards.called(run.unit, forward)
    weight = part.weight if run.unit is None else part.weight * ranks.size  # of their gradients it takes the mean
    scaled(run.scaler, loss if weight == 1 else weight * loss).backward()
    return result, held


def _jacobian(run: Run, trainer: Trainer, result: supervision.Segment, seed: int, part: parallel.Part) -> torch.Tensor:
    """Return the Jacobian penalty at the states that the segment ended in."""
    probe = torch.Generator(device=run.carry.segment.device).manual_seed(seed_for("jacobian", seed) + run.step)
    x = run.model.encode(result.carry.batch.inputs, result.carry.batch.puzzle_ids)
    return jacobian_penalty(run.model.cell, result.carry.state, x, run.model.num_steps, probe, place=part.place)


def _first_non_finite(run: Run, result: supervision.Segment | None, ranks: Ranks) -> str:
    """Name the first tensor that is not finite on any rank, in the order in which a step computes them."""
    assert result is not None
    named = [(f"parameter {name}", p) for module in run.trained for name, p in module.named_parameters()]
    named += [(name, tensor) for name, tensor in tree.leaves_with_names(run.carry.state, "carried state")]
    named += [(name, tensor) for name, tensor in tree.leaves_with_names(result.output.state, "new state")]
    named += [("logits", result.output.logits), ("q_halt", result.output.q_halt), ("loss", result.loss)]
    named += [(f"gradient of {name}", dense(p.grad)) for name, p in run.model.named_parameters() if p.grad is not None]
    place = next(
        (place for place, (_, tensor) in enumerate(named) if not own_part(tensor).isfinite().all()), len(named)
    )
    name = [*(name for name, _ in named), "norm of the gradient"][min(ranks.all(place))]
    return f"step {run.step + 1}: {name} is not finite; the weights of step {run.step} are kept"


@torch.no_grad()
def evaluate(
    model: Model,
    trainer: Trainer,
    task: Task,
    samples: Batch,
    ranks: Ranks = ALONE,
    groups: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return the scores of a model on held-out samples.

    exact_accuracy is by the task's checker; match_accuracy is the share of samples equal to their label in every scored
    token, which is less where a sample has several right answers; token_accuracy is that of scored tokens, and loss
    their mean cross entropy; "exact_accuracy@k=3" is exact_accuracy of one of `groups`, rows of `samples` by name. Each
    rank evaluates some of the samples, and all return what all of them gave.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    solved, matched, tokens, losses = [], [], [], []
    own = samples[ranks.rows(len(samples))]
    for start in range(0, len(own), trainer.eval_batch_size):
        batch = own[start : start + trainer.eval_batch_size].to(device)
        with trainer.precision(device):
            segments, depth = trainer.halting.max_segments, trainer.halting.depth(None)
            output = supervision.predict(model, batch.inputs, batch.puzzle_ids, segments, depth)
        solved.append(task.is_solved(batch.inputs.cpu(), output.logits.argmax(-1).cpu()).double())
        share, all_right = right_tokens(output.logits, batch.labels)
        tokens.append(share.double().cpu())
        matched.append(all_right.double().cpu())
        losses.append(token_loss(output.logits, batch.labels, trainer.loss_of_token()).double().cpu() * len(batch))
    model.train(training)
    told = ranks.all((solved, matched, tokens, losses))
    solved, matched, tokens, losses = (sum(of_ranks, []) for of_ranks in zip(*told, strict=True))
    exact = torch.cat(solved)
    return {
        "exact_accuracy": exact.mean().item(),
        "match_accuracy": torch.cat(matched).mean().item(),
        "token_accuracy": torch.cat(tokens).mean().item(),
        "loss": torch.stack(losses).sum().item() / len(samples),
        **{f"exact_accuracy@{name}": exact[rows].mean().item() for name, rows in (groups or {}).items()},
    }

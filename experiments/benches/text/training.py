"""One training of the language model under one estimator, and what is taken from it: losses, and other gradients."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from loopgrad.analysis import Cost, measure
from loopgrad.experiments.benches.text.model import LanguageModel
from loopgrad.experiments.benches.text.sizes import (
    BANDS,
    CHECKPOINTED,
    COUPLED,
    EXACT,
    FORWARD,
    RANDOM,
    REVERSIBLE,
    TWINS,
    Sizes,
    truncated,
)
from loopgrad.experiments.tasks import Text
from loopgrad.experiments.tasks.tales import recalls
from loopgrad.experiments.training.seeds import seed_for
from loopgrad.gradients import (
    BPTT,
    CheckpointedBPTT,
    Estimator,
    ForwardGradient,
    RandomTruncation,
    ReversibleBPTT,
    TruncatedBPTT,
)

LOOKS = 5  # at the held-out loss: before, and after N / 8, N / 4, N / 2, N updates
DRAWS = 5  # of random truncation, for its cost


@dataclass(frozen=True)
class HeldOut:
    """Windows of the held-out part, and the recalls in them.

    Attributes:
        text: (windows, characters) tokens.
        recalls: For each band of distances, row and column of the losses of its recalls.
    """

    text: Tensor
    recalls: list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Training:
    """One training: whose numbers follow from these alone."""

    bench: Sizes
    length: int
    name: str
    learning_rate: float
    seed: int
    data_seed: int = 0

    def __str__(self) -> str:
        return f"{self.name} on {self.length} characters, seed {self.seed}"

    @property
    def looks(self) -> list[int]:
        """Numbers of updates after which the held-out loss is taken."""
        return sorted({self.bench.updates >> i for i in range(LOOKS - 1)} | {0})

    @cached_property
    def task(self) -> Text:
        """Windows of a character more than there are updates in a rollout."""
        return Text(self.length + 1, num_chars=self.bench.num_chars, data_seed=self.data_seed)

    def model(self, seed: int) -> LanguageModel:
        """Return a new one: its weights depend on the seed alone."""
        gamma = self.bench.gamma if self.name in (COUPLED, REVERSIBLE) else None
        generator = torch.Generator().manual_seed(seed_for("weights", seed))
        sizes = self.task.spec.vocab_size, self.bench.hidden_size, max(self.bench.lengths)
        return LanguageModel(*sizes, gamma, generator)

    def batch(self, step: int) -> Tensor:
        """Return the windows of an update of the weights, as many characters at any length."""
        return self.task.train_batch(seed_for("data", self.seed), step, self.bench.tokens // self.length).inputs

    def estimator(self, name: str) -> Estimator:
        """Return a new one."""
        bench, seed = self.bench, seed_for("estimator", self.seed)
        every: dict[str, Estimator] = {truncated(window): TruncatedBPTT(window) for window in bench.windows}
        every |= {
            EXACT: BPTT(),
            CHECKPOINTED: CheckpointedBPTT(),
            COUPLED: BPTT(),
            REVERSIBLE: ReversibleBPTT(),
            RANDOM: RandomTruncation(mean_steps=bench.mean, seed=seed),
            FORWARD: ForwardGradient(bench.num_tangents, seed=seed),
        }
        return every[name]

    def held_out(self) -> HeldOut:
        """Return windows of the greatest length, the same for all."""
        task = Text(max(self.bench.lengths) + 1, num_chars=self.bench.num_chars, data_seed=self.data_seed)
        bands: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(BANDS) + 1)]
        for row in range(len(text := task.test_set().inputs)):
            window = task.held_out[row * task.length : (row + 1) * task.length]
            for it in recalls(window):
                rows, columns = bands[sum(it.distance >= bound for bound in BANDS)]
                rows.append(row)
                columns.append(it.at - 1)  # the character is told after the one before it
        return HeldOut(text, bands)


@dataclass(frozen=True)
class Curve:
    """What a training left.

    Attributes:
        losses: Held-out losses at its looks.
        recalled: At the end, the held-out loss of recalls in each band of distances.
        cosines: At the end, those of other gradients with the exact one, by name.
        same: Names of twins whose gradient had its bits at the first and at the last weights.
    """

    losses: list[float]
    recalled: list[float]
    cosines: dict[str, float]
    same: list[str]


def train(job: Training) -> Curve:
    """Train, and take the held-out loss on the way."""
    torch.set_num_threads(job.bench.num_threads)
    model, held_out, estimator = job.model(job.seed), job.held_out(), job.estimator(job.name)
    optimiser = torch.optim.Adam(model.parameters(), job.learning_rate)
    same = _same(job, model, 0)
    losses, found = [], Tensor()
    for step in range(job.bench.updates + 1):
        if step in job.looks:
            found = model.losses(held_out.text)
            losses.append(float(found.mean()))
        if step == job.bench.updates or not math.isfinite(losses[-1]):
            break
        optimiser.zero_grad()
        model.loss(job.batch(step), estimator)[0].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    recalled = [float(found[rows, columns].mean()) for rows, columns in held_out.recalls]
    cosines = _cosines(job, model)
    same = [name for name in _same(job, model, job.bench.updates) if name in same]
    return Curve(losses + [math.nan] * (len(job.looks) - len(losses)), recalled, cosines, same)


def _gradient(job: Training, model: LanguageModel, name: str, step: int) -> Tensor:
    loss, _ = model.loss(job.batch(step), job.estimator(name))
    return torch.cat([it.flatten() for it in torch.autograd.grad(loss, list(model.parameters()))])


def _same(job: Training, model: LanguageModel, step: int) -> list[str]:
    """Return the twins of this job's estimator whose gradient is the same, bit for bit."""
    twins = [twin for twin, other in TWINS.items() if other == job.name]
    own = _gradient(job, model, job.name, step) if twins else Tensor()
    return [twin for twin in twins if torch.equal(own, _gradient(job, model, twin, step))]


def _cosines(job: Training, model: LanguageModel) -> dict[str, float]:
    """Return the cosines of every other gradient of the plain recursion with that of BPTT, by which it was trained."""
    if job.name != EXACT:
        return {}
    own = _gradient(job, model, EXACT, job.bench.updates)
    others = [name for name in job.bench.names(job.length) if name not in (COUPLED, REVERSIBLE, EXACT)]
    gradients = {name: _gradient(job, model, name, job.bench.updates) for name in others}
    return {name: float(torch.cosine_similarity(own, it, dim=0)) for name, it in gradients.items()}


def cost(job: Training) -> Cost:
    """Measure a forward and backward pass; of random truncation the one of the most bytes of some draws."""
    model, text = job.model(0), job.batch(0)
    costs = []
    for seed in range(DRAWS if job.name == RANDOM else 1):
        drawing = replace(job, seed=seed)  # a new estimator at each call, so that all counters see the same draw
        run = lambda: model.loss(text, drawing.estimator(job.name))[0]  # noqa: B023, E731
        costs.append(measure(run, cell=model.cell, exclude=[model, text], repeats=0, warmup=0))
    return max(costs, key=lambda it: it.peak_bytes)

"""Backpropagation through a random number of last updates, weighted so that its mean is the exact gradient."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.agreement import agree
from loopgrad.gradients.checks import only_one
from loopgrad.gradients.contract import Estimator, Rollout, Stats, may_differentiate, period_of, run, sources
from loopgrad.gradients.depth_distribution import DepthDistribution, DepthFamily, check_depth_distribution
from loopgrad.gradients.graphs import is_floating, merged
from loopgrad.gradients.noise import check_seed, common_seed, generator_of
from loopgrad.gradients.observed import run_watched
from loopgrad.gradients.reaching import reaching
from loopgrad.gradients.stepwise import asks
from loopgrad.gradients.weighted import Weighted, weighted
from loopgrad.gradients.windows import consecutive, in_windows


@dataclass(frozen=True)
class RandomTruncation(Estimator):
    r"""Truncated backpropagation through time of random length, reweighted to be unbiased.

    Write the gradient of BPTT as sum_d g_d, d = 0..T-1, where g_d is what the update d before the last one adds to it
    through its parameters and inputs. Each call draws one k for the whole batch and returns

    .. math:: \sum_{d=0}^{\min(k, T) - 1} \frac{g_d}{P(k > d)}

    whose mean over k is the sum of all g_d, by multiplying the cotangent of z_{T-d} with P(k > d-1) / P(k > d) on its
    way back. z_0 gets its gradient over P(k >= T) when k >= T, else zeros. Forward values are those of BPTT, bit for
    bit. With G_d = sum_{e >= d} g_e,

    .. math:: E |\mathrm{estimate}|^2 = \sum_d \frac{|G_d|^2 - |G_{d+1}|^2}{P(k > d)}

    so the variance grows with T without bound where |G_d|^2 shrinks no faster than P(k > d).

    k is drawn at each call made with autograd on, and at no other, so that evaluations under no_grad change no later
    draw; from the generator of this estimator, never the global one. k is that of the whole batch: processes that train
    together draw the same one from the same seed, and those whose weights are one cell's (`fully_shard`, tensor
    parallelism) or that meet in it (SyncBatchNorm) agree on that of the first, whatever their seeds. A cell that
    exchanges something else at its updates needs a seed, the same on all processes.

    Args:
        mean_steps: Mean of k in updates, above 1. Give one of the two.
        mean_cycles: Mean of k / cell.period, for a k of whole cycles, above 1; d counts cycles then.
        distribution: Distribution of k, as in `DepthDistribution`: "geometric", "poisson" or "lognormal".
        sigma: Sigma of "lognormal".
        reweight: False leaves the weights out: `TruncatedBPTT` of random length, biased; the mean may be 1 then.
        seed: Seed of the draws; None starts from the system's entropy.

    Cost:
        T cell evaluations, min(k, T) vjps; saves the graph of k updates, O(k): all T where k is drawn so large. Ranks
        that train together without a seed wait for the longest k among them.
    Not recommended when:
        T is much larger than the mean and the Jacobians do not shrink what they are multiplied with,
        that is when the spectral radius of the cell's Jacobian is near or above one: rare draws with large weights then
        carry the distant terms. Poisson's tail is light: its weights 1 / P(k > d) explode past the mean. From 2 to 20
        times the mean those of "geometric" are the smallest of the three. `CheckpointedBPTT` has no variance at all,
        for O(sqrt T) and a second evaluation of each update.
        No gradient is None: parameters of the cell, inputs and z_0 get zeros where the last k updates do not use them.
    Reference:
        Tallec and Ollivier 2017, arXiv 1705.08209: ARTBP, with a constant probability of truncation the "geometric"
        case. They report that it slightly outperforms truncated BPTT on character-level language modelling of Penn
        Treebank.

    Raises:
        TypeError: A mean or sigma is not a number, or reweight is not a bool.
        ValueError: Neither or both of mean_steps and mean_cycles are given, or the given one is below 1, or 1 with
            reweight; the distribution is unknown; sigma is below 0; the seed is not None or an int of at least 0.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import Stationary
        >>> from loopgrad.gradients.random_truncation import RandomTruncation
        >>> cell = Stationary(lambda z, x: 0.5 * z + x)
        >>> x, estimator = torch.ones(1, 1, requires_grad=True), RandomTruncation(mean_steps=2, seed=0)
        >>> z = [estimator(cell, torch.zeros(1, 1), x, num_steps=8).state for _ in range(8)]
        >>> [torch.autograd.grad(last, x)[0].item() for last in z]  # sum_{d<k} 2^-d / P(k > d) = k; BPTT: 1.9922
        [1.0, 1.0, 1.0, 3.0, 1.0, 1.0, 2.0, 1.0]
    """

    mean_steps: float | None = None
    mean_cycles: float | None = None
    distribution: DepthFamily = "geometric"
    sigma: float = 0.5
    reweight: bool = True
    seed: int | None = None
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    kind = "unbiased"
    memory = "O(k)"
    references = ("tallec2017unbiasing",)
    outputs = "emitted"
    by_sample = False

    def __post_init__(self) -> None:
        hint = "mean_cycles=2 differentiates two cycles of the cell in the mean"
        name, mean = only_one("RandomTruncation", hint, mean_steps=self.mean_steps, mean_cycles=self.mean_cycles)
        check_depth_distribution("RandomTruncation", name, mean, self.distribution, self.sigma)
        if not isinstance(self.reweight, bool):
            raise TypeError(f"RandomTruncation(reweight=...) must be True or False, got {self.reweight!r}")
        if mean == 1 and self.reweight:
            raise ValueError(
                f"RandomTruncation({name}=1) never differentiates more than the last one, so that no weight makes it "
                "unbiased: give a mean above 1, or reweight=False"
            )
        check_seed("RandomTruncation", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))
        if not self.reweight:
            object.__setattr__(self, "kind", "biased")

    @property
    def depths(self) -> DepthDistribution:
        """The distribution of k, in updates or in cycles."""
        mean = self.mean_steps if self.mean_steps is not None else self.mean_cycles
        return DepthDistribution(mean or 1, self.distribution, self.sigma)

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the first updates without a graph, the last ones under autograd with weights between them."""
        if not torch.is_grad_enabled():
            return Rollout(run(cell, state, inputs, range(num_steps)), Stats(num_steps, vjps=0))
        depths, unit = self.depths, 1 if self.mean_cycles is None else period_of(cell)
        agree(self.generator, cell)
        draws = torch.Generator().manual_seed(common_seed(self.generator))
        if asks(inputs) and may_differentiate(cell, state, inputs):
            return self._in_windows(cell, state, inputs, num_steps, unit, draws)
        kept = unit * depths.sample(draws)
        first = max(0, num_steps - kept)
        reached = sources(cell, state, inputs)
        if first:
            state = run_watched(cell, state, inputs, range(first))
        for step in range(first, num_steps):
            distance = num_steps - step  # of the update before this one; the last update has distance 0
            if self.reweight and step > first and distance % unit == 0:
                near, far = (depths.survival(d) for d in (distance // unit - 1, distance // unit))
                state = weighted(state, near / far)
            state = cell(state, inputs, step)
        if reached and num_steps:
            leaves, unflatten = tree.flatten(state)
            floating = list(filter(is_floating, leaves))
            state = unflatten(merged(reaching(floating, reached), leaves))
        return Rollout(state, Stats(num_steps, vjps=num_steps - first if reached else 0))

    def _in_windows(
        self, cell: nn.Module, state: Any, inputs: Any, num_steps: int, unit: int, draws: torch.Generator
    ) -> Rollout:
        """Cut the recursion into windows of random length, with the weights of the updates that are not cut off."""
        lengths, factors, depths = [], {}, self.depths
        while (start := sum(lengths)) < num_steps:
            lengths.append(min(unit * depths.sample(draws), num_steps - start))
            for d in range(1, -(-lengths[-1] // unit)):
                near, far = depths.survival(d - 1), depths.survival(d)
                factors[start + d * unit] = near / far
        if self.reweight:
            cell = Weighted(cell, factors)
        return in_windows(cell, state, inputs, num_steps, consecutive(lengths), type(self).__name__)

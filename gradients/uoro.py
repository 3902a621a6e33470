"""Unbiased online recurrent optimisation: one random rank of the influence, carried forward."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns
from loopgrad.gradients.influence import Carried
from loopgrad.gradients.noise import check_seed, fresh_seed, generator_of
from loopgrad.gradients.online import Online, of_columns
from loopgrad.gradients.patterns import Patterns
from loopgrad.gradients.rank_one import RankOne


@dataclass(frozen=True)
class UORO(Online):
    r"""Unbiased online recurrent optimisation: a random vector of the state times one of the parameters, per sample.

    .. math:: \tilde J_t = s_t \theta_t^T, \quad s_{t+1} = \rho_0 \frac{\partial F}{\partial z} s_t + \rho_1 \nu, \quad
       \theta_{t+1} = \frac{\theta_t}{\rho_0} + \frac{1}{\rho_1} \nu^T \frac{\partial F}{\partial p}

    with fresh random signs nu, rho_0 = sqrt(|theta_t| / |dF/dz s_t|) and rho_1 = sqrt(|nu^T dF/dp| / |nu|), so that the
    mean of s theta^T is the influence J of `RTRL`. A loss at every step is taken in where it arises, with the s and
    theta of that step, and its own derivative by the parameters of a readout is exact.

    Args:
        seed: Seed of the estimator's own generator, from which each forward pass draws a fresh one; None starts it
            from the system's entropy. Ranks of torch.distributed draw different noise even with the same seed.
        scope: "sample" if samples do not see each other, "batch" if they do: one rank then serves all of them.
        max_numbers: Most numbers that the tangents of an update may hold, lest a large cell fill the memory.

    Variance:
        Of order n times the squared norm of the gradient, for n features of a sample, and it grows with T where the
        recursion remembers: see docs/forward-in-time.md.
    Cost:
        Saves n + P numbers per sample, and P for each number of a sample's answers, at any T. The tangents of an update
        are those of `RTRL`: its own O(P) backward product is not used, for it would mix the samples of a batch.
    Not recommended when:
        `CheckpointedBPTT` fits, which is exact. Where the last state alone has a loss, `ForwardGradient` carries n
        numbers per tangent in place of n + P. Wherever a bias can be borne: `SnAp(1)` has the same memory and no noise.
    Reference:
        Tallec and Ollivier 2018, arXiv 1702.05043.

    Raises:
        ValueError: seed is below 0; see `RTRL`.
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: See `RTRL`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import UORO, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = UORO(seed=0)(cell, torch.zeros(16, 3), torch.ones(16, 3), num_steps=64)
        >>> rollout.state.square().mean().backward()
    """

    seed: int | None = None
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    kind = "unbiased"
    references = ("tallec2018unbiased",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("UORO", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))

    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return s and theta of the initial state."""
        pattern, _ = of_columns(columns, patterns)
        drawing = torch.Generator().manual_seed(fresh_seed(self.generator))
        return RankOne.start(pattern, columns.of_state, like, drawing)

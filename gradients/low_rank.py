"""Low-rank evolution strategies: perturbed weight matrices that are never formed, and no autograd through updates."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from loopgrad.gradients.checks import check_choice, check_int
from loopgrad.gradients.compiled import refuse_compiled
from loopgrad.gradients.contract import Estimator, Rollout, may_differentiate, run
from loopgrad.gradients.forward_recursion import ForwardStats
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.low_rank_pass import LowRankPass, LowRankRecursion
from loopgrad.gradients.noise import check_seed, generator_of
from loopgrad.gradients.recursion_node import joined
from loopgrad.gradients.row_layout import RowLayout


@dataclass(frozen=True)
class LowRankES(Estimator):
    r"""Evolution strategies with low-rank perturbations (EGGROLL): the memory of inference, and no autograd at all.

    .. math:: \hat g = \frac{1}{K} \sum_k \frac{g \cdot (z_T(\theta + \sigma E_k) - z_T(\theta - \sigma E_k))}{2 \sigma}
       E_k, \qquad E_k = A_k B_k^T / \sqrt{r}

    with the cotangent g of z_T in place of two losses, and normal A (out, r), B (in, r) for each weight matrix W that
    the cell reads through `torch.nn.functional.linear`, as nn.Linear does, or as a weight of nn.GRUCell, nn.LSTMCell or
    nn.RNNCell. W + sigma E is never formed: the layer returns x W^T + sigma / sqrt(r) (x B) A^T. All else that requires
    grad (biases, norms, embeddings, matrices that are read in another way, inputs, z_0) has a plain dense normal
    perturbation. E has mean 0 and the covariance of a dense
    normal one, so that the mean of the estimate is the gradient of g . z_T smoothed over these perturbations, which
    tends to that of BPTT as sigma^2.

    Args:
        rank: r. The noise of E tends to a normal one as 1 / r. None perturbs matrices densely too, and forms what it
            adds to them: zeroth order as it was before, to compare with.
        population: K, the perturbations.
        antithetic: Two runs for each, at plus and minus; False takes one, and its difference from the run at theta.
        sigma: Size of a perturbation, per element.
        seed: Seed of the estimator's own generator, from which each forward pass draws a fresh one; None starts it
            from the system's entropy. Ranks of torch.distributed draw different noise even with the same seed.
        scope: "sample" if samples do not see each other, "batch" if they do: one coefficient then serves all of them.
        chunk: Perturbations that run at once, as one larger batch. Draws do not depend on it, and the gradient only by
            rounding. The cell is run through torch.vmap, which can take no update that draws random numbers, writes
            values of a sample to a buffer or looks at values (`if z.sum() > 0`): such a cell needs 1, the default.

    Forward values are those of `BPTT`, bit for bit.

    Variance:
        E ||estimate - g||^2 = C / K ||g||^2 with C of order P, the perturbed numbers, as of a dense perturbation and a
        little more for small r: low rank makes a run cheap, not the estimate good.
    Cost:
        1 + 2K recursions (1 + K without antithetic), no vjp. Saves K last states; a run holds `chunk` times one
        update's widest intermediate, (out + in) r numbers for each matrix, and what is perturbed densely. With chunk=1
        small cells cost the interpreter's time; a chunk of rows that fill the processor costs hardly more than plain
        forward passes of them.
    Not recommended when:
        `CheckpointedBPTT` fits, which is exact for one more forward pass. Beyond a few thousand weights at a small
        population. In 16-bit arithmetic, in which the differences drown.
    Reference:
        Sarkar et al. 2025, arXiv 2511.16652; Malladi et al. 2023, arXiv 2305.17333.

    Raises:
        ValueError: An argument is out of range; weights of 16 bits, or autocast; leaves of the state have no first
            dimension in common and scope is "sample".
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: A tensor that requires grad and that the cell reads could not be followed, or was changed in place
            before backward; or backward got create_graph=True; or torch.vmap cannot run the cell and chunk is above 1.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import LowRankES, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = LowRankES(population=4)(cell, torch.zeros(16, 3), torch.ones(16, 3), num_steps=8)
        >>> rollout.state.square().mean().backward()
        >>> rollout.stats.cell_evaluations, rollout.stats.vjps
        (72, 0)
    """

    rank: int | None = 1
    population: int = 8
    antithetic: bool = True
    sigma: float = 1e-2
    seed: int | None = None
    scope: Literal["sample", "batch"] = "sample"
    chunk: int = 1
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    kind = "unbiased"
    memory = "O(1)"
    outputs = "carried"
    compiles = False
    references = ("sarkar2025evolution", "malladi2023fine")
    passes = LowRankPass

    def __post_init__(self) -> None:
        if self.rank is not None:
            check_int("LowRankES", "rank", self.rank, 1)
        check_int("LowRankES", "population", self.population, 1)
        check_int("LowRankES", "chunk", self.chunk, 1)
        if not isinstance(self.antithetic, bool):
            raise TypeError(f"LowRankES(antithetic={self.antithetic!r}) must be True or False")
        if not (isinstance(self.sigma, int | float) and 0 < self.sigma < math.inf):
            raise ValueError(f"LowRankES(sigma={self.sigma!r}) must be a finite number above 0")
        check_choice("LowRankES", "scope", self.scope, ("sample", "batch"))
        check_seed("LowRankES", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run the recursion as it is, then once or twice for each perturbation."""
        if num_steps == 0 or not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), ForwardStats(num_steps, 0))
        refuse_compiled(cell, "LowRankES")
        functional, stats = FunctionalCell(cell, state, inputs), ForwardStats(0, 0)
        rows = RowLayout(functional.state, self.scope == "sample")
        forward = self.passes(functional, num_steps, self, stats, rows)
        last, kept = forward.run()
        leaves = joined(LowRankRecursion, forward, last, kept, functional.sources)
        return Rollout(functional.unflatten_state(leaves), stats)

"""Kronecker-factored real-time recurrent learning: a random Kronecker product for the influence of each weight."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns
from loopgrad.gradients.influence import Carried, Influence
from loopgrad.gradients.kronecker import Kronecker, weights_of
from loopgrad.gradients.noise import check_seed, fresh_seed, generator_of
from loopgrad.gradients.online import Online, everywhere, of_columns
from loopgrad.gradients.patterns import Patterns


@dataclass(frozen=True)
class KFRTRL(Online):
    r"""Kronecker-factored real-time recurrent learning: a vector times a matrix for each weight, per sample.

    .. math:: \tilde J_t = u_t \otimes A_t, \quad u_{t+1} = p_1 u_t + s p_2 a_t, \quad
       A_{t+1} = \frac{1}{p_1} \frac{\partial F}{\partial z} A_t + \frac{s}{p_2} D_t

    for a weight matrix W that an update multiplies with one vector a, so that dF_i / dW_jk = D_ij a_k: RNNs, LSTMs,
    GRUs and whatever is made of such products, however they are combined. s is a fresh random sign,
    p_1 = sqrt(|dF/dz A| / |u|) and p_2 = sqrt(|D| / |a|), so that the mean of u (x) A is the influence J of `RTRL`, and
    after one update u (x) A is J. Biases, inputs and z_0 have their exact influence, as in `RTRL`. Each weight matrix
    has a product of its own, where the paper puts those with one D together. That the immediate influence is a product
    is checked at every update.

    Args:
        seed: Seed of the estimator's own generator, from which each forward pass draws a fresh one; None starts it
            from the system's entropy. Ranks of torch.distributed draw different noise even with the same seed.
        scope: "sample" if samples do not see each other; "batch" is refused for batches of more than one.
        max_numbers: Most numbers that the tangents of an update may hold, lest a large cell fill the memory.

    Variance:
        That of one random sign per weight and update, in place of `UORO`'s n: the terms that it mixes are those of
        pairs of updates.
    Cost:
        Saves m + n o numbers per sample for a weight matrix (o, m) and n features, and n for each bias, input and
        number of z_0. The tangents of an update are those of `RTRL`.
    Not recommended when:
        `CheckpointedBPTT` fits, which is exact. Where a bias can be borne: `SnAp(1)` keeps less and has no noise. A
        block over tokens, or of two layers that share weights: it is refused, and `UORO` takes it.
    Reference:
        Mujika, Meier and Steger 2018, arXiv 1805.10842.

    Raises:
        ValueError: seed is below 0; see `RTRL`.
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: The immediate influence of a weight is no Kronecker product; see also `SnAp` and `RTRL`.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import KFRTRL, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = KFRTRL(seed=0)(cell, torch.zeros(16, 3), torch.ones(16, 3), num_steps=64)
        >>> rollout.state.square().mean().backward()
    """

    seed: int | None = None
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    kind = "unbiased"
    references = ("mujika2018approximating",)
    needs_pattern = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("KFRTRL", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))

    def carried(self, columns: Columns, patterns: Patterns, like: Tensor) -> Carried:
        """Return the factors of the initial state, and the exact influence of what is no weight matrix."""
        pattern, kept = of_columns(columns, patterns)
        weights, kept = weights_of(columns, pattern), everywhere(kept).clone()
        for weight in weights:
            kept[:, weight.start : weight.stop] = False
        drawing = torch.Generator().manual_seed(fresh_seed(self.generator))
        return Kronecker.start(weights, Influence.start(kept, pattern, columns.of_state, like), like, drawing)

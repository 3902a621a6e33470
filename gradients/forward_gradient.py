"""Forward gradients: random directions carried forward beside the state, in memory that does not grow with depth."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from loopgrad.gradients import tree
from loopgrad.gradients.checks import check_choice, check_int
from loopgrad.gradients.compiled import refuse_compiled
from loopgrad.gradients.contract import Estimator, Rollout, may_differentiate, needs_gradient, run
from loopgrad.gradients.forward_recursion import ForwardPass, ForwardRecursion, ForwardStats
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import requires_grad
from loopgrad.gradients.noise import DISTRIBUTIONS, Distribution, check_seed, generator_of
from loopgrad.gradients.observed import watch
from loopgrad.gradients.recompute import Conditions
from loopgrad.gradients.recursion_node import joined
from loopgrad.gradients.row_layout import RowLayout


@dataclass(frozen=True)
class ForwardGradient(Estimator):
    r"""Forward gradients: unbiased, from K tangents carried forward; backward needs no stored updates.

    .. math:: \hat g = \frac{1}{K} \sum_{k=1}^{K} (g \cdot u_T^{(k)}) \, v^{(k)}, \qquad u_{t+1} = J_z u_t + J_w v

    perturb="weights": from u_0 = v_z0, with random v and the cotangent g of z_T, as above. For parameters g . u_T is
    over all samples; what has a row per sample takes that of each sample: z_0, and inputs whose first dimension has the
    size of the batch, unless `batch_dim` says otherwise.

    perturb="state": u_{t+1} = J_z u_t + xi_{t+1} with fresh noise per sample after every update; the adjoint of z_t is
    estimated by the mean over tangents of (g . u_T) xi_t, row by row; the last one, g, is known. A second recursion
    repeats the noise from its seed and takes the exact vector-Jacobian product of each update with these adjoints. It
    is UORO without its scaling of the noise and with the second recursion in place of the trace of parameters.

    mode="central" differences the recursion itself, u_T = (z_T(+eps) - z_T(-eps)) / (2 eps): no forward-mode rules are
    needed and, with perturb="weights", no autograd at all: the zeroth-order estimator (SPSA, MeZO, CD-RGE), with a
    cotangent in place of two losses.

    Args:
        num_tangents: K. The error falls as 1 / sqrt(K).
        perturb: "state" or "weights".
        window: Last updates that are differentiated exactly, by autograd; 0 for none. With k >= T all of it is `BPTT`.
        distribution: Distribution of the noise, "rademacher" (least variance) or "gaussian".
        mode: "jvp" or "central".
        epsilon: Step of mode="central", per element.
        chunk_size: Tangents carried at once, None for all K; the recursion runs once per chunk. Changes no number.
        seed: Seed of the estimator's own generator, from which each forward pass draws a fresh one; None starts it
            from the system's entropy. Ranks of torch.distributed draw different noise even with the same seed.
        scope: "sample" if samples do not see each other, "batch" if they do: one coefficient then serves all of them.

    Forward values are those of `BPTT`, bit for bit; with mode="jvp" attention runs on the kernel that has forward-mode
    rules, and rounds otherwise.

    Variance:
        E ||estimate - g||^2 = C / K ||g'||^2 over all parameters, g' being the part that the window leaves.
        weights: C = P - 1 (rademacher) or P + 1 (gaussian) for P perturbed numbers, at any depth; the cosine with g is
        about sqrt(K / (P + K)). state: of order (T - window) features / batch times a constant of the cell; far less
        for small states and large batches.
    Cost:
        "weights": about 3 forward passes for one tangent, 10 for four; state: 3 for one, 8 for four, then a forward and
        a backward pass; central: 1 + 2K forward passes, and with "state" a forward and a backward pass. Saves the K
        last tangents, K |z_T|, the same at any depth, and the graph of the window. While an update runs, K tangents
        hold K times its widest intermediate, and "weights" the K P numbers of v: chunk_size bounds both.
    Not recommended when:
        `CheckpointedBPTT` fits, which is exact for one more forward pass: backpropagation with
        checkpoints was up to 31.1 % more accurate, converged 34.8 % faster and took 3.8 times less compute at
        comparable memory (Panchal et al. 2025). "weights" beyond a few hundred numbers: with 7 million the cosine is
        0.003 at 64 tangents. "state" where a sample's state is large, as with tokens. mode="central" in 16-bit
        arithmetic. And where the least error per FLOP is wanted: plain truncation mostly has less.
    Reference:
        Baydin et al. 2022, arXiv 2202.08587; Tallec and Ollivier 2018, arXiv 1702.05043; Malladi et al. 2023,
        arXiv 2305.17333; Panchal et al. 2025, arXiv 2506.21833.

    Raises:
        ValueError: An argument is not one of the above; mode="central" with 16-bit weights or under autocast; leaves of
            the state have no first dimension in common and scope is "sample".
        TypeError: torch.compile has compiled the cell, or a net in it.
        RuntimeError: An operator of the cell has no forward-mode rule; a tensor that requires grad and that the cell
            reads could not be followed; a tensor was changed in place before backward; or backward got
            create_graph=True.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ForwardGradient, Stationary
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear)
        >>> rollout = ForwardGradient(num_tangents=8)(cell, torch.zeros(16, 3), torch.ones(16, 3), num_steps=64)
        >>> rollout.state.square().mean().backward()
    """

    num_tangents: int = 8
    perturb: Literal["state", "weights"] = "state"
    window: int = 1
    distribution: Distribution = "rademacher"
    mode: Literal["jvp", "central"] = "jvp"
    epsilon: float = 1e-4
    chunk_size: int | None = None
    seed: int | None = None
    scope: Literal["sample", "batch"] = "sample"
    generator: torch.Generator = field(default=None, repr=False, compare=False, kw_only=True)  # pyright: ignore

    kind = "unbiased"
    memory = "O(1)"
    outputs = "carried"
    compiles = False
    references = ("baydin2022gradients", "tallec2018unbiased", "malladi2023fine", "panchal2025cost")

    def __post_init__(self) -> None:
        check_choice("ForwardGradient", "perturb", self.perturb, ("state", "weights"))
        check_choice("ForwardGradient", "distribution", self.distribution, DISTRIBUTIONS)
        check_choice("ForwardGradient", "mode", self.mode, ("jvp", "central"))
        check_choice("ForwardGradient", "scope", self.scope, ("sample", "batch"))
        check_int("ForwardGradient", "num_tangents", self.num_tangents, 1)
        check_int("ForwardGradient", "window", self.window, 0)
        if self.chunk_size is not None:
            check_int("ForwardGradient", "chunk_size", self.chunk_size, 1)
        if not self.epsilon > 0:
            raise ValueError(f"ForwardGradient(epsilon={self.epsilon!r}) must be above 0")
        check_seed("ForwardGradient", self.seed)
        object.__setattr__(self, "generator", generator_of(self.seed, self.generator))

    def rollout(self, cell: nn.Module, state: Any, inputs: Any, num_steps: int) -> Rollout:
        """Run all but the last updates with tangents beside them, the last ones under autograd."""
        stats = ForwardStats(0, 0)
        if not may_differentiate(cell, state, inputs):
            return Rollout(run(cell, state, inputs, range(num_steps)), ForwardStats(num_steps, 0))
        refuse_compiled(cell, "ForwardGradient")
        functional, wanted = FunctionalCell(cell, state, inputs), needs_gradient(cell, state, inputs)
        if not wanted:
            watch(functional, Conditions(cell, [*functional.state, *functional.others]), stats, num_steps)
            wanted = any(tensor.requires_grad for tensor in functional.others)
        first = max(0, num_steps - self.window) if wanted else 0
        if first:
            rows = RowLayout(functional.state, self.scope == "sample")
            forward = ForwardPass(functional, first, self, stats, rows)
            last, kept = forward.run()
            leaves = joined(ForwardRecursion, forward, last, kept, functional.sources)
            state = functional.unflatten_state(leaves)
        last = run(cell, state, inputs, range(first, num_steps))
        stats.cell_evaluations += num_steps - first
        stats.vjps += (num_steps - first) * wanted
        if wanted and first < num_steps and not any(map(requires_grad, tree.flatten(last)[0])):
            raise RuntimeError(
                f"ForwardGradient(window={self.window}) differentiates the last updates by autograd, and the cell "
                "records no graph of them (it leaves torch, or detaches): use "
                "ForwardGradient(perturb='weights', window=0, mode='central')"
            )
        return Rollout(last, stats)

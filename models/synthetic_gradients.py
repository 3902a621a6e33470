"""Synthetic gradients: what later segments want of the carried state, predicted, as a carry has no graph to tell it.

A supervision and no estimator: it changes the loss of a segment, whatever obtains the gradient of that loss.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.gradients import Estimator
from loopgrad.models.cells import State
from loopgrad.models.layers import Embedding, Linear
from loopgrad.models.losses import IGNORE
from loopgrad.models.model import Model

Synthesis = Callable[[State, Tensor, Any], State]
"""s(state, segment, batch): of states, segments done (batch,) and samples, a prediction for each stream."""


class Synthesiser(nn.Module):
    r"""Predicts the gradient that the losses of later segments send to a carried state, and learns from the next one.

    .. math:: \tilde L_n = L_n + \langle s_\phi(z_{n+1}), z_{n+1} \rangle, \qquad
        \nabla_\phi = J_{s_\phi}(z_n)^\top \left(s_\phi(z_n) - \frac{\partial \tilde L_n}{\partial z_n}\right)

    Segment n goes from z_n to z_{n+1}, and s in the loss is a constant. Were s right at every z, the sum over segments
    would have the gradient of all segments in one graph. The target holds s(z_{n+1}): TD(0), that is lambda = 0. Hand
    it to `run_segment`: `loss.backward()` fills the gradients of phi beside the model's, for an optimiser of its own.

    Here s is, at each position, a linear map (or one hidden layer) of all streams, the label and the segment, and zero
    at first. Any module with this `forward` will do; predictions are of the loss of a sample, not of a batch's mean.

    Args:
        features: Features of each stream, by name; every stream is (batch, positions, features).
        vocab_size: Number of symbols of labels.
        max_segments: Segments of a sample; later ones are told as the last.
        hidden_size: Units of the hidden layer; 0 for a linear map.
        seed: Seed of the initial weights.

    Cost:
        Graphs stay one segment long. Two calls of s per segment, one with a graph, and the vjps of the first update
        with respect to its state. Eligibility traces (lambda > 0, Pemberton and Costa 2024, arXiv 2401.07044) would
        hold, for each sample, a number per entry of the state and weight of s: they are not here.
    Not recommended when:
        All segments fit as checkpoints, which is exact; or the state at the start gets no gradient, as under
        `TruncatedBPTT` and `ImplicitGradient`: refused.
    Reference:
        Jaderberg et al. 2017, arXiv 1608.05343.

    Raises:
        ValueError: A size is below 1, or hidden_size below 0.

    Example:
        >>> from loopgrad.models import TRM, Synthesiser
        >>> model = TRM(vocab_size=6, seq_len=5, hidden_size=8, num_heads=2)
        >>> synthesiser = Synthesiser.of(model, max_segments=4)
        >>> sum(p.numel() for p in synthesiser.parameters())  # of 2 streams, 6 symbols and "not scored", 4 segments
        432
    """

    references = ("jaderberg2017decoupled",)

    def __init__(
        self, features: Mapping[str, int], vocab_size: int, max_segments: int, hidden_size: int = 0, seed: int = 0
    ):
        super().__init__()
        sizes = {"vocab_size": vocab_size, "max_segments": max_segments, **features}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if hidden_size < 0:
            raise ValueError(f"hidden_size={hidden_size} must be at least 0, which is a linear map")
        generator = torch.Generator().manual_seed(seed)
        self.features, total = dict(features), sum(features.values())
        width, std = (hidden_size, hidden_size**-0.5) if hidden_size else (total, 0.0)
        self.inner = Linear(total, width, generator)
        self.labels = Embedding(vocab_size + 1, width, std, generator)
        self.segments = Embedding(max_segments, width, std, generator)
        self.out = Linear(width, total, generator) if hidden_size else None
        nn.init.zeros_((self.out or self.inner).weight)

    @classmethod
    def of(cls, model: Model, max_segments: int, hidden_size: int = 0, seed: int = 0) -> "Synthesiser":
        """Return one for the states of a model.

        Raises:
            ValueError: A stream of the model has no positions, or it is not known how many symbols there are.
        """
        state = model.initial_state(1, model.embedding.seq_len or 1)
        symbols, kind = model.embedding.vocab_size, type(model).__name__
        if symbols is None or any(z.dim() != 3 for z in state.values()):
            raise ValueError(
                f"Synthesiser reads streams (batch, positions, features) and labels out of a table, which {kind} does "
                "not have: write a module s(state, segment, batch) -> state of your own, and hand run_segment that"
            )
        return cls({name: z.shape[-1] for name, z in state.items()}, symbols, max_segments, hidden_size, seed)

    def forward(self, state: State, segment: Tensor, batch: Any) -> State:
        """Predict, for each stream, the gradient of what the later segments of each sample lose.

        Args:
            state: Streams (batch, positions, features), without a graph.
            segment: (batch,) int64, segments done.
            batch: The samples; labels (batch, seq_len) are those of the last seq_len positions.
        """
        weight = self.inner.weight
        z = torch.cat([state[name].to(weight.dtype) for name in self.features], -1)  # (batch, positions, all features)
        table = self.labels.weight.shape[0] - 1
        labels = batch.labels.masked_fill(batch.labels == IGNORE, table)
        labels = F.pad(labels, (z.shape[1] - labels.shape[1], 0), value=table)  # (batch, positions)
        done = segment.clamp(max=self.segments.weight.shape[0]) - 1
        found = self.inner(z) + self.labels(labels) + self.segments(done.clamp(min=0)).unsqueeze(1)
        if self.out is not None:
            found = self.out(F.silu(found))
        return dict(zip(self.features, found.split(list(self.features.values()), -1), strict=True))


def check_start(estimator: Estimator) -> None:
    """Raise ValueError if an estimator has no gradient of the state that a segment starts from."""
    if "state" in estimator.not_differentiated:
        raise ValueError(
            f"synthesiser: it learns from the gradient of the state that a segment starts from, and "
            f"{type(estimator).__name__} has none: use CheckpointedBPTT() or BPTT(), or leave the synthesiser out"
        )


def taught(synthesis: Synthesis, state: State, segment: Tensor, batch: Any) -> tuple[State, Tensor]:
    """Return the state that a segment starts from, whose gradient goes to the synthesiser, and a part of the loss.

    Together they have the gradient of sum |s(z) - g|^2 / (2 batch), where g / batch is the gradient of the segment's
    mean loss with respect to z; the term in g comes out of backward, and so has any factor that the loss is given. Rows
    that begin a sample teach nothing: no segment came before them.
    """
    known, rows = segment > 0, len(segment)
    start, half = {}, torch.zeros((), device=segment.device)
    for name, said in synthesis(state, segment, batch).items():
        said = torch.where(_like(known, said), said, 0.0)
        start[name] = _Teaching.apply(state[name], said)
        half = half + said.square().sum() / (2 * rows)
    return start, half - half.detach()


def wanted_later(synthesis: Synthesis, state: State, segment: Tensor, batch: Any, goes_on: Tensor) -> Tensor:
    """Return a part of the loss whose gradient with respect to the last state is what later segments are said to want.

    Its value is zero, so that a loss is told as it is. Rows that end here have no later segments.
    """
    with torch.no_grad():
        said = synthesis({name: z.detach() for name, z in state.items()}, segment, batch)
        said = {name: torch.where(_like(goes_on, s), s, 0.0) for name, s in said.items()}
    term = torch.stack([(s * state[name]).sum() for name, s in said.items()]).sum() / len(segment)
    return term - term.detach()


def _like(rows: Tensor, other: Tensor) -> Tensor:
    """Return (batch,) flags as broadcast over the rest of another tensor."""
    return rows.view(-1, *[1] * (other.dim() - 1))


class _Teaching(torch.autograd.Function):
    """z; its gradient goes, negated, to what was said of it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, said: Tensor) -> Tensor:
        ctx.dtype = said.dtype
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, -gradients[0].to(ctx.dtype)

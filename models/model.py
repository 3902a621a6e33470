"""What training, probes and analysis ask of a model: a cell, where it starts, what it reads, and the loss of an answer.

`RecursiveModel` is one for puzzles; `GRU`, `LSTM`, `NeuralTuringMachine` and `LoopedTransformer` are for sequences.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator, Stats
from loopgrad.gradients.pytrees import register_result
from loopgrad.models.act import Pondered
from loopgrad.models.cells import State
from loopgrad.models.input_embedding import InputEmbedding
from loopgrad.models.latent_embedding import FrozenEmbedding
from loopgrad.models.losses import CrossEntropy, right_tokens, token_loss


@dataclass(frozen=True)
class Output:
    """What one segment returns.

    Attributes:
        state: The last latent states, with their graph: the carry detaches them.
        logits: (batch, seq_len, vocab_size).
        q_halt: (batch,), float32; logit of "the answer is right, stop".
        q_continue: (batch,), float32; used by HRM's Q-learning only.
        stats: Cost of the rollout.
        pondered: What `ACT` made of it, where that was asked for; its logits are those above.
    """

    state: State
    logits: Tensor
    q_halt: Tensor
    q_continue: Tensor
    stats: Stats
    pondered: Pondered | None = None


register_result(Output, whole=("stats",))


class Scored(NamedTuple):
    """A segment and how good its answer is.

    Attributes:
        output: Of the model.
        loss: Mean over samples of the cross entropy of scored tokens, a scalar with a graph.
        accuracy: (batch,), share of scored tokens that are right.
        solved: (batch,) bool, whether all of them are.
    """

    output: Output
    loss: Tensor
    accuracy: Tensor
    solved: Tensor


class Model(nn.Module, ABC):
    """A cell that is iterated, between an embedding and a readout.

    Attributes:
        cell: The update.
        num_steps: Updates in a segment.
        embedding: Table of the tokens, or a frozen encoder with what is made of its vectors.
        forward_dtype: dtype of activations; None for that of the weights.
        causal: Whether the answer at a position depends on no later token.
        input_per_update: Whether each update reads a token of its own, so that no segment is longer than the sequence.
        one_segment: Whether segments cannot be told to go on: halting must be FixedSegments(1).
        scored_on_the_way: Whether the loss is that of states on the way, and not of the last one alone.
    """

    references: ClassVar[tuple[str, ...]] = ()
    causal: ClassVar[bool] = False
    input_per_update: ClassVar[bool] = False
    one_segment: ClassVar[bool] = False
    scored_on_the_way: bool = False
    cell: nn.Module
    num_steps: int
    embedding: InputEmbedding | FrozenEmbedding
    forward_dtype: torch.dtype | None = None

    @abstractmethod
    def initial_state(self, batch_size: int, seq_len: int | None = None) -> State:
        """Return the states before the first update, a dict of tensors (batch_size, ...)."""

    def known_length(self, seq_len: int | None) -> int:
        """Return a number of tokens: this one, or that which the model was built for.

        Raises:
            ValueError: There is none.
        """
        seq_len = self.embedding.seq_len if seq_len is None else seq_len
        if seq_len is None:
            raise ValueError("seq_len is not known to this model: call initial_state(batch_size, seq_len)")
        return seq_len

    @abstractmethod
    def state_size(self, seq_len: int) -> int:
        """Return how many numbers the state of a sample of `seq_len` tokens holds."""

    @abstractmethod
    def encode(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Any:
        """Map tokens (batch, seq_len) to x, what the updates read: a tensor, or a tree of them."""

    @abstractmethod
    def readout(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Map a state to its logits (batch, tokens, vocab_size), q_halt (batch,) and q_continue (batch,)."""

    @abstractmethod
    def forward(self, state: State | None, inputs: Tensor, puzzle_ids: Tensor | None, estimator: Estimator) -> Output:
        """Run one segment from a state, None for the initial one."""

    def scored(
        self,
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        labels: Tensor,
        estimator: Estimator,
        cross_entropy: CrossEntropy,
        depth: Any = None,
    ) -> Scored:
        """Run one segment and compare its answer with labels, (batch, seq_len), IGNORE (-100) where not scored.

        `depth` is that of `forward`, where the model can be told one.
        """
        output = self(state, inputs, puzzle_ids, estimator, *told(depth))
        return Scored(output, token_loss(output.logits, labels, cross_entropy), *right_tokens(output.logits, labels))


def told(depth: Any) -> tuple[Any, ...]:
    """Return the arguments that tell a model its depth: none for its own, which not every model can change."""
    return () if depth is None else (depth,)


def checked_depth(depth: Tensor, batch: int) -> int:
    """Return the greatest of the depths of the samples of a batch.

    Raises:
        TypeError: They are no ints.
        ValueError: They are of another batch, or one is below 1.
    """
    if depth.shape != (batch,):
        raise ValueError(f"depth has shape {tuple(depth.shape)} and the batch {batch} samples")
    if depth.is_floating_point() or depth.dtype == torch.bool:
        raise TypeError(f"depth holds {depth.dtype}: it must be ints, the cycles of each sample")
    if int(depth.min()) < 1:
        raise ValueError(f"depth holds {depth.tolist()}: each sample needs an int of at least 1, its cycles")
    return int(depth.max())

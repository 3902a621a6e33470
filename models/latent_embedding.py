"""What a recursion reads of a frozen encoder: slots, each projected to the latent size, or one vector of them all."""

from typing import NamedTuple

import torch
from torch import Tensor

from loopgrad.models.frozen import FeatureTable, FrozenEncoder
from loopgrad.models.functional import rms_norm
from loopgrad.models.layers import Embedding, Linear, OneLine


class Slots(NamedTuple):
    """What each update reads.

    Attributes:
        x: (batch, slots, hidden_size), zero where a row is filled up.
        mask: (batch, slots) bool, whether a slot holds anything.
    """

    x: Tensor
    mask: Tensor


class FrozenEmbedding(OneLine):
    """Base of `SlotEmbedding` and `PooledEmbedding`: an encoder, and what a `Model` tells of its embedding.

    Args:
        encoder: The frozen encoder.
        hidden_size: Numbers of what is made of a vector.
        seq_len: Slots of a sample; None for any.
    """

    encoder: FrozenEncoder
    puzzles: Embedding | None = None
    puzzle_tokens = 0

    def __init__(self, encoder: FrozenEncoder, hidden_size: int, seq_len: int | None = None):
        super().__init__()
        self.encoder, self.hidden_size, self.seq_len = encoder, hidden_size, seq_len

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens; None where the encoder takes any."""
        return self.encoder.vocab_size if isinstance(self.encoder, FeatureTable) else None

    def extra_repr(self) -> str:
        """Return the encoder and the size."""
        return f"{self.encoder}, hidden_size={self.hidden_size}, seq_len={self.seq_len}"

    def _read(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the vectors, each scaled to a mean square of 1."""
        if inputs.dim() != 2:
            raise ValueError(f"inputs must be tokens of shape (batch, slots), got shape {tuple(inputs.shape)}")
        return rms_norm(self.encoder(inputs).to(dtype))


class SlotEmbedding(FrozenEmbedding):
    """x = W v / rms(v) + r for a slot with a frozen vector v, r a vector of its role; learnt vectors for answer slots.

    Roles are question and statement. Slots that fill up a row are zero and marked.

    Args:
        encoder: The frozen encoder.
        hidden_size: Numbers of x.
        generator: Source of the initial weights.
        seq_len: Slots of a sample; None for any.
    """

    def __init__(
        self, encoder: FrozenEncoder, hidden_size: int, generator: torch.Generator, seq_len: int | None = None
    ):
        super().__init__(encoder, hidden_size, seq_len)
        self.project = Linear(encoder.size, hidden_size, generator)
        self.learnt = Embedding(encoder.layout.answer_slots + 2, hidden_size, 1.0, generator)

    def forward(self, inputs: Tensor, puzzle_ids: Tensor | None = None, dtype: torch.dtype | None = None) -> Slots:
        """Map tokens (batch, slots) to what updates read; `puzzle_ids` is not used."""
        layout, slots = self.encoder.layout, self.encoder.layout.answer_slots
        x = self.project(self._read(inputs, dtype or self.project.weight.dtype))
        place = (inputs - layout.first_slot).clamp(0, slots) + (inputs >= layout.first_statement)
        mask = inputs != layout.pad
        return Slots((x + self.learnt(place).to(x.dtype)) * mask.unsqueeze(-1), mask)


class PooledEmbedding(FrozenEmbedding):
    """The mean of v / rms(v) over the slots of the question, beside that over statements: (batch, 2 size).

    It has no weights. What is made of it knows which statements there are, and not in which order.

    Args:
        encoder: The frozen encoder.
        seq_len: Slots of a sample.
    """

    def __init__(self, encoder: FrozenEncoder, seq_len: int):
        super().__init__(encoder, 2 * encoder.size, seq_len)

    def forward(self, inputs: Tensor, puzzle_ids: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Map tokens (batch, slots) to the two means, in `dtype` or torch's default; `puzzle_ids` is not used."""
        layout, v = self.encoder.layout, self._read(inputs, dtype or torch.get_default_dtype())
        statement = inputs >= layout.first_statement
        question = (inputs >= layout.first_question) & ~statement
        means = [(v * of.unsqueeze(-1)).sum(1) / of.sum(1, keepdim=True).clamp(min=1) for of in (question, statement)]
        return torch.cat(means, -1)

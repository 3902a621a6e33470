"""Reasoning in a frozen latent space: a small recursion over the slots that a frozen encoder gives, and a readout."""

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator
from loopgrad.gradients.wrappers import unwrapped
from loopgrad.models.cells import State
from loopgrad.models.frozen import FrozenEncoder
from loopgrad.models.latent_cells import at_front
from loopgrad.models.latent_embedding import FrozenEmbedding
from loopgrad.models.model import Model, Output
from loopgrad.models.segment_depth import rolled


class LatentReasoner(Model):
    r"""A cell iterated between what a frozen encoder gives and a readout at the answer slots.

    .. math:: x = \mathrm{embedding}(\mathrm{encoder}(\mathrm{inputs})), \qquad z_0 = 0, \qquad
        z_{t+1} = \mathrm{cell}(z_t, x, t), \qquad \mathrm{logits} = \mathrm{readout}(z_T)

    The encoder is in no graph and has no weights among those of the model: what is trained, averaged, stored and
    counted is the embedding's projection, the cell and the readout. Base of `LatentLoop`, `LatentStack`, `LatentTRM`,
    `LatentMLP` and `LatentLinear`, which differ in the cell alone and so can be compared on the same vectors.

    Args:
        embedding: What each update reads, a `SlotEmbedding` or a `PooledEmbedding` of the encoder.
        cell: The update.
        readout: Maps the last stream at the answer slots, (batch, answer_slots, features), to logits; None where the
            stream holds the logits of all slots itself.
        num_steps: Updates of a segment.
        features: Numbers of a state at a slot.
        streams: Names of the streams of the state; the last one is read.
        forward_dtype: dtype of x and of the states; None for that of the weights.

    Cost:
        A look-up of the vectors, num_steps updates and a readout; the encoder costs nothing here, see `FeatureTable`.
    Not recommended when:
        What is asked cannot be told from the vectors: see what `LatentLinear` reaches, and a trained encoder.
    Reference:
        Dehghani et al. 2019, arXiv 1807.03819; Reimers and Gurevych 2019, arXiv 1908.10084.

    Raises:
        ValueError: num_steps is below 1.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT
        >>> from loopgrad.models import FeatureTable, LatentLoop, SlotLayout
        >>> frozen = FeatureTable(torch.randn(9, 24), SlotLayout(answers=4, questions=3))
        >>> model = LatentLoop(frozen, seq_len=6, hidden_size=32, num_heads=2, num_loops=4)
        >>> inputs = torch.tensor([[5, 6, 9, 10, 4, 4]])  # answer slot, a question, two statements, filled up
        >>> tuple(model(None, inputs, None, CheckpointedBPTT()).logits.shape)
        (1, 6, 4)
    """

    references = ("dehghani2019universal", "reimers2019sentence")
    one_segment = True

    def __init__(
        self,
        embedding: FrozenEmbedding,
        cell: nn.Module,
        readout: nn.Module | None,
        num_steps: int,
        features: int,
        streams: tuple[str, ...] = ("z",),
        forward_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.embedding, self.cell, self.num_steps = embedding, cell, num_steps
        self.answer = readout
        self.features, self.streams, self.forward_dtype = features, streams, forward_dtype

    def extra_repr(self) -> str:
        """Return how much is trained, how much is frozen, and the length of a segment."""
        size = f"{sum(p.numel() for p in self.parameters()):,} parameters"
        return f"{size}, {self.encoder.num_parameters:,} frozen, num_steps={self.num_steps}"

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen encoder."""
        assert isinstance(self.embedding, FrozenEmbedding)
        return self.embedding.encoder

    @property
    def depth(self) -> int:
        """Blocks that one segment applies, one after the other."""
        cell = unwrapped(self.cell)
        return self.num_steps * int(cell.depth) // int(cell.period)  # pyright: ignore[reportArgumentType]

    def initial_state(self, batch_size: int, seq_len: int | None = None) -> State:
        """Return zeros, (batch_size, slots, features) for each stream; seq_len None for that of the model.

        Raises:
            ValueError: seq_len is None and the model was built for no length.
        """
        shape = batch_size, self.known_length(seq_len), self.features
        like = next(self.cell.parameters())
        zeros = like.new_zeros(shape, dtype=self.forward_dtype or like.dtype, requires_grad=False)
        return {name: zeros.clone() for name in self.streams}

    def state_size(self, seq_len: int) -> int:
        """Return how many numbers the state of a sample holds."""
        return seq_len * self.features * len(self.streams)

    def encode(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Map tokens (batch, slots) to what the updates read."""
        return self.embedding(inputs, None, self.forward_dtype or next(self.cell.parameters()).dtype)

    def readout(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Map a state to logits (batch, slots, answers), zero beyond the answer slots, and to zeros twice."""
        z = state[self.streams[-1]]
        if self.answer is not None:
            z = at_front(self.answer(z[:, : self.encoder.layout.answer_slots]), z.shape[1])
        zeros = z.new_zeros(len(z), dtype=torch.float32)
        return z, zeros, zeros

    def forward(
        self,
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        estimator: Estimator,
        depth: int | Tensor | None = None,
    ) -> Output:
        """Run one segment.

        Args:
            state: State to go on from; None for zeros.
            inputs: (batch, slots) tokens, answer slots first; see `SlotLayout`.
            puzzle_ids: Not used.
            estimator: How the gradient of the recursion is obtained.
            depth: Cycles: None for the model's own, an int, or (batch,) ints for each sample its own.

        Raises:
            TypeError: depth is none of these.
            ValueError: depth is below 1, or of another batch.
        """
        state = self.initial_state(*inputs.shape) if state is None else state
        x = self.encode(inputs)
        rollout = rolled(estimator, self.cell, state, x, self.num_steps, depth, len(inputs), inputs.device)
        return Output(rollout.state, *self.readout(rollout.state), stats=rollout.stats)


class OneDepth(LatentReasoner):
    """A reasoner whose updates have weights of their own, so that it has one depth and no other."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: State | None, inputs: Tensor, puzzle_ids: Tensor | None, estimator: Estimator
    ) -> Output:
        """Run all updates; see `LatentReasoner.forward`."""
        return super().forward(state, inputs, puzzle_ids, estimator)

"""Models that read a sequence token by token: one update per token, and an answer after each."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator, Rollout
from loopgrad.models.cells import State
from loopgrad.models.input_embedding import InputEmbedding
from loopgrad.models.layers import Linear
from loopgrad.models.losses import IGNORE, CrossEntropy
from loopgrad.models.model import Model, Output, Scored


class TokenModel(Model):
    """state_t = cell(state_{t-1}, x_t, t), logits_t = W features(state_t) + b, where x_t is the vector of token t.

    Base of `GRU`, `LSTM` and `NeuralTuringMachine`. An update reads its own token alone, so the answer at a position
    depends on no later token. The loss is summed up on the way: no logits are kept, and the backward pass of an
    estimator meets the loss of an update where it meets its state. All states start at fixed values, not trained.

    Args:
        vocab_size: Number of symbols.
        seq_len: Tokens of a sequence. Others are read too; the updates that `num_steps` tells are these.
        hidden_size: Length of the vectors x_t, of variance 1 at first.
        cell: The update.
        features: How many numbers of a state the answer is read from.
        generator: Source of the initial weights.
        num_puzzles: Must be 0: there are no puzzle identities.

    Raises:
        ValueError: A size is below 1, or there are puzzle identities.
    """

    causal = True
    input_per_update = True
    one_segment = True
    scored_on_the_way = True

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        hidden_size: int,
        cell: nn.Module,
        features: int,
        generator: torch.Generator,
        num_puzzles: int = 0,
    ):
        check_sizes(seq_len=seq_len)
        check_no_puzzles(type(self).__name__, num_puzzles)
        super().__init__()
        self.embedding = InputEmbedding(vocab_size, hidden_size, generator, seq_len=seq_len)
        self.cell, self.num_steps = cell, seq_len
        self.lm_head = Linear(features, vocab_size, generator, bias=True)

    @abstractmethod
    def first_values(self) -> Mapping[str, Tensor]:
        """Return the state of a sample before its first token, without the batch."""

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """Return what the answer is read from, (batch, features)."""

    def extra_repr(self) -> str:
        """Return the size."""
        return f"{sum(p.numel() for p in self.parameters()):,} parameters, num_steps={self.num_steps}"

    def initial_state(self, batch_size: int, seq_len: int | None = None) -> State:
        """Return the states before the first token, each (batch_size, ...); `seq_len` is not used."""
        like = self.lm_head.weight
        return {
            name: value.to(like, copy=False).expand(batch_size, *value.shape).clone()
            for name, value in self.first_values().items()
        }

    def state_size(self, seq_len: int) -> int:
        """Return how many numbers the state of a sample holds, however long the sequence."""
        return sum(value.numel() for value in self.first_values().values())

    def encode(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Tensor:
        """Map tokens (batch, seq_len) to the vectors that the updates read, (seq_len, batch, hidden_size)."""
        return self.embedding(inputs, None, self.forward_dtype).movedim(1, 0)

    def readout(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Map the state after a token to the logits there, (batch, 1, vocab_size), and to zeros, (batch,), twice."""
        features = self.features(state)
        zeros = features.new_zeros(len(features), dtype=torch.float32)
        return self.lm_head(features).unsqueeze(1), zeros, zeros

    def forward(self, state: State | None, inputs: Tensor, puzzle_ids: Tensor | None, estimator: Estimator) -> Output:
        """Read the sequence; keeps the logits of all tokens, O(seq_len vocab_size) beside what the estimator keeps.

        Args:
            state: States to go on from; None for the initial ones.
            inputs: (batch, seq_len) tokens.
            puzzle_ids: Not used.
            estimator: How the gradient of the recursion is obtained.
        """
        rollout = self._read(state, inputs, estimator, lambda z, *_: self.readout(z)[0][:, 0], "all")
        return self._output(rollout, rollout.outputs.movedim(0, 1))

    def scored(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,  # as many updates as tokens: there is no depth to be told
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        labels: Tensor,
        estimator: Estimator,
        cross_entropy: CrossEntropy,
    ) -> Scored:
        """Read the sequence and sum the loss up on the way; the logits are those of the last token alone."""
        count = (labels != IGNORE).sum(-1)

        def compared(z: State, given: Any, x: Any, step: int) -> tuple[Tensor, Tensor]:
            logits, label = self.readout(z)[0], labels[:, step : step + 1]
            return cross_entropy(logits, label).sum(-1), (logits.argmax(-1) == label).sum(-1)

        rollout = self._read(state, inputs, estimator, compared, "sum")
        losses, right = rollout.outputs
        with torch.no_grad():
            output = self._output(rollout, self.readout(rollout.state)[0])
        per_token = count.clamp(min=1)
        return Scored(output, (losses / per_token).mean(), right / per_token, right == count)

    def _read(
        self, state: State | None, inputs: Tensor, estimator: Estimator, readout: Callable[..., Any], save: str
    ) -> Rollout:
        state = self.initial_state(len(inputs)) if state is None else state
        x = self.encode(inputs)
        return estimator(self.cell, state, None, len(x), xs=x, readout=readout, save=save)

    def _output(self, rollout: Rollout, logits: Tensor) -> Output:
        zeros = logits.new_zeros(len(logits), dtype=torch.float32)
        return Output(rollout.state, logits, zeros, zeros, rollout.stats)


def check_sizes(**sizes: int) -> None:
    """Raise ValueError if a size is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_no_puzzles(owner: str, num_puzzles: int) -> None:
    """Raise ValueError if a task has identities that a model has no table for."""
    if num_puzzles:
        raise ValueError(
            f"{owner} has no puzzle identities, and the task has {num_puzzles}: use TRM, HRM or FeedForward"
        )

"""The recursive model: encode the puzzle, iterate a cell on latent states for one segment, read out the answer."""

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.wrappers import unwrapped
from loopgrad.models.act import ACT
from loopgrad.models.architecture import Architecture
from loopgrad.models.cells import State
from loopgrad.models.layers import Linear, truncated_normal
from loopgrad.models.model import Model, Output
from loopgrad.models.segment_depth import rolled


class RecursiveModel(Model):
    """x = encode(puzzle); state <- num_steps updates of cell(state, x, t); logits = W z, q = V z at position 0.

    Base of `TRM`, `HRM` and `FeedForward`, which build its parts. Initial states are fixed random vectors, one per
    stream, the same at every position, and are not trained. V starts at zero with bias -5, so that nothing halts early.

    Args:
        parts: Makes x, and tells the sizes.
        cell: The update; state -> state for a dict of streams.
        H_cycles: Cycles in a segment, at least 1.
        streams: Names of the streams, such as ("L", "H") for {"z_L", "z_H"}; the last one holds the answer.
        generator: Source of the initial weights.
        forward_dtype: dtype of x and of the states, weights being cast to it at each use; None for that of the weights.
    """

    def __init__(
        self,
        parts: Architecture,
        cell: nn.Module,
        H_cycles: int,
        streams: tuple[str, ...],
        generator: torch.Generator,
        forward_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if H_cycles < 1:
            raise ValueError(f"H_cycles must be at least 1, got {H_cycles}")
        self.embedding, self.cell = parts.embedding(generator), cell
        self.num_steps, self.streams, self.forward_dtype = H_cycles * period_of(cell), streams, forward_dtype
        self.fixed_length = parts.mixer == "mlp"
        hidden_size = parts.hidden_size
        self.lm_head = Linear(hidden_size, parts.vocab_size, generator)
        self.q_head = Linear(hidden_size, 2, generator, bias=True)
        with torch.no_grad():
            self.q_head.weight.zero_()
            assert self.q_head.bias is not None
            self.q_head.bias.fill_(-5.0)
        for stream in streams:
            self.register_buffer(f"{stream}_init", truncated_normal((hidden_size,), 1.0, generator))

    def extra_repr(self) -> str:
        """Return the size and the length of a segment."""
        size = f"{sum(p.numel() for p in self.parameters()):,} parameters"
        return f"{size}, num_steps={self.num_steps}, forward_dtype={self.forward_dtype}"

    @property
    def depth(self) -> int:
        """Blocks that one segment applies, one after the other."""
        return self.num_steps // period_of(self.cell) * int(unwrapped(self.cell).depth)  # pyright: ignore[reportArgumentType]

    def initial_state(self, batch_size: int, seq_len: int | None = None) -> State:
        """Return the fixed initial states, each (batch_size, puzzle_tokens + seq_len, hidden_size).

        Args:
            batch_size: Number of samples.
            seq_len: Number of tokens; None for the length that the model was built for.

        Raises:
            ValueError: seq_len is None and the model was built for no length.
        """
        seq_len = self.known_length(seq_len)
        positions = self.embedding.puzzle_tokens + seq_len
        state = {}
        for stream in self.streams:
            init = self.get_buffer(f"{stream}_init")
            state[f"z_{stream}"] = init.to(self.forward_dtype or init.dtype).repeat(batch_size, positions, 1)
        return state

    def state_size(self, seq_len: int) -> int:
        """Return how many numbers the state of a sample holds."""
        return (self.embedding.puzzle_tokens + seq_len) * self.embedding.hidden_size * len(self.streams)

    def encode(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Tensor:
        """Map tokens (batch, seq_len) to x, (batch, puzzle_tokens + seq_len, hidden_size)."""
        if self.fixed_length and inputs.shape[-1] != self.embedding.seq_len:
            raise ValueError(
                f"mixer='mlp' has weights for seq_len={self.embedding.seq_len} and {self.embedding.puzzle_tokens} "
                f"puzzle tokens, inputs have {inputs.shape[-1]} tokens: pad them, or use mixer='attention'"
            )
        return self.embedding(inputs, puzzle_ids, self.forward_dtype)

    def readout(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Map the state to logits (batch, seq_len, vocab_size), q_halt (batch,), q_continue (batch,)."""
        z = state[f"z_{self.streams[-1]}"]
        logits = self.lm_head(z)[:, self.embedding.puzzle_tokens :]
        q = self.q_head(z[:, 0]).float()
        return logits, q[:, 0], q[:, 1]

    def forward(
        self,
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        estimator: Estimator,
        depth: int | Tensor | ACT | None = None,
    ) -> Output:
        """Run one segment.

        Args:
            state: Latent states to go on from; None for the initial ones.
            inputs: (batch, seq_len) tokens.
            puzzle_ids: (batch,) ids, None where the model has no puzzle embeddings.
            estimator: How the gradient of the recursion is obtained.
            depth: Cycles of this segment: None for H_cycles, an int, (batch,) ints for each sample its own, or an
                `ACT` rule for an answer that is a mean over those of H_cycles.

        Raises:
            TypeError: depth is none of these.
            ValueError: depth is below 1, or of another batch; the estimator has the gradient of the last state alone,
                and depth is an `ACT` rule.
        """
        if state is None:
            state = self.initial_state(*inputs.shape)
        x, period = self.encode(inputs, puzzle_ids), period_of(self.cell)
        if isinstance(depth, ACT):

            def answer(z: State, *_: object) -> tuple[Tensor, Tensor, Tensor]:
                return self.readout(z)

            rollout = estimator(self.cell, state, x, self.num_steps, readout=answer, save=period)
            logits, q_halt, q_continue = rollout.outputs
            found = depth.answer(logits, q_halt)
            return Output(rollout.state, found.logits, q_halt[-1], q_continue[-1], rollout.stats, found)
        rollout = rolled(estimator, self.cell, state, x, self.num_steps, depth, len(inputs), x.device)
        return Output(rollout.state, *self.readout(rollout.state), stats=rollout.stats)

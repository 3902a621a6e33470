"""A looped language model: causal transformer blocks applied again and again, with a loss of every loop or the last."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from loopgrad.gradients import Estimator, Rollout
from loopgrad.gradients.checks import is_int
from loopgrad.models.architecture import Architecture, Puzzles
from loopgrad.models.cells import LoopCell, State
from loopgrad.models.dtypes import ForwardDtype, dtype_of
from loopgrad.models.layers import Linear
from loopgrad.models.losses import IGNORE, CrossEntropy, right_tokens
from loopgrad.models.model import Model, Output, Scored, checked_depth
from loopgrad.models.reversible_cells import coupled
from loopgrad.models.token_model import check_no_puzzles, check_sizes


class LoopedTransformer(Model):
    r"""A causal transformer whose blocks are applied num_loops times.

    .. math:: z_0 = 0, \qquad z_{t+1} = \mathrm{blocks}(z_t + x), \qquad \mathrm{logits}_t = W z_t

    with x the vectors of the tokens, which every loop sees again, and blocks with a norm after each sum, so that z
    keeps its size. Each position attends to itself and to those before it. Over equal tokens that is an average of
    equal vectors, however many: without a position of its own before them, or learned positions, 1, 11 and 111 have
    one answer, and nothing that asks for their number can be learnt.

    Args:
        vocab_size: Number of symbols.
        seq_len: Tokens of a sequence; None with rotary positions, which take any length.
        hidden_size: Number of features.
        num_layers: Blocks of a loop.
        num_heads: Attention heads.
        expansion: Width of the SwiGLUs, see `swiglu_inner_size`.
        num_loops: Loops, the updates of a segment.
        positions: "rope", "learned", "none", or None for "rope".
        start_token: Whether a learnt vector stands before the tokens, a position more.
        loss: "every_loop" for the mean over loops of the loss of their answers, summed up on the way, so that no logits
            are kept; "last_loop" for that of the last answer, which estimators that know the last state alone take too.
        coupling: "damped", "leapfrog" or "momentum" makes the recursion reversible, which is another model; None for
            the loops as they are.
        coupling_rate: beta, scale or gamma of the coupling, such as "1/4"; None for its default.
        forward_dtype: dtype of activations, or its name; None for that of the weights.
        num_puzzles: Must be 0.
        seed: Seed of the initial weights.

    Cost:
        num_loops num_layers blocks; "every_loop" asks the readout once per loop, and a second time where an estimator
        runs the loop again.
    Not recommended when:
        Sequences are long: attention costs the square of the length in every loop.
    Reference:
        Dehghani et al. 2019, arXiv 1807.03819; Saunshi et al. 2025, arXiv 2502.17416; Geiping et al. 2025, arXiv
        2502.05171.

    Raises:
        ValueError: A size or a choice is not one of the above.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import BPTT
        >>> from loopgrad.models import LoopedTransformer
        >>> model = LoopedTransformer(vocab_size=27, seq_len=16, hidden_size=32, num_heads=2, num_loops=4)
        >>> output = model(None, torch.zeros(2, 16, dtype=torch.int64), None, BPTT())
        >>> tuple(output.logits.shape), model.num_steps
        ((2, 16, 27), 4)
    """

    references = ("dehghani2019universal", "saunshi2025reasoning", "geiping2025scaling")
    causal = True
    one_segment = True

    def __init__(
        self,
        vocab_size: int,
        seq_len: int | None,
        hidden_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        expansion: float = 4,
        num_loops: int = 8,
        positions: str | None = None,
        loss: Literal["every_loop", "last_loop"] = "every_loop",
        coupling: str | None = None,
        coupling_rate: float | str | None = None,
        forward_dtype: ForwardDtype = None,
        num_puzzles: int = 0,
        seed: int = 0,
        start_token: bool = False,
    ):
        check_sizes(num_loops=num_loops)
        check_no_puzzles(type(self).__name__, num_puzzles)
        if loss not in ("every_loop", "last_loop"):
            raise ValueError(f"loss must be 'every_loop' or 'last_loop', got {loss!r}")
        parts = Architecture(
            vocab_size,
            seq_len,
            hidden_size,
            num_heads,
            expansion,
            mixer="attention",
            positions=positions,
            puzzles=Puzzles(0, 0, None),
            causal=True,
        )
        super().__init__()
        forward_dtype = dtype_of(forward_dtype)
        generator = torch.Generator().manual_seed(seed)
        self.embedding = parts.embedding(generator)
        self.cell = coupled(LoopCell(parts.net(num_layers, generator)), coupling, coupling_rate, forward_dtype)
        self.lm_head = Linear(hidden_size, vocab_size, generator)
        self.start = nn.Parameter(torch.randn(hidden_size, generator=generator)) if start_token else None
        self.num_steps, self.forward_dtype, self.scored_on_the_way = num_loops, forward_dtype, loss == "every_loop"

    def extra_repr(self) -> str:
        """Return the size and the number of loops."""
        size = f"{sum(p.numel() for p in self.parameters()):,} parameters"
        return f"{size}, num_steps={self.num_steps}, forward_dtype={self.forward_dtype}"

    def initial_state(self, batch_size: int, seq_len: int | None = None) -> State:
        """Return {"z": zeros}, (batch_size, seq_len, hidden_size), with a start token seq_len + 1 positions.

        Args:
            batch_size: Samples.
            seq_len: Tokens; None for those of the model.

        Raises:
            ValueError: seq_len is None and the model was built for no length.
        """
        seq_len = self.known_length(seq_len)
        like = self.lm_head.weight
        shape = batch_size, seq_len + (self.start is not None), self.embedding.hidden_size
        return {"z": like.new_zeros(shape, dtype=self.forward_dtype or like.dtype, requires_grad=False)}

    def state_size(self, seq_len: int) -> int:
        """Return how many numbers the state of a sample holds."""
        return (seq_len + (self.start is not None)) * self.embedding.hidden_size

    def encode(self, inputs: Tensor, puzzle_ids: Tensor | None = None) -> Tensor:
        """Map tokens (batch, seq_len) to x, (batch, seq_len, hidden_size), behind the start where there is one."""
        x = self.embedding(inputs, None, self.forward_dtype)
        return x if self.start is None else torch.cat((self.start.to(x).expand(len(x), 1, -1), x), dim=1)

    def answers(self, state: State) -> Tensor:
        """Map a state to the logits of the tokens, (batch, seq_len, vocab_size)."""
        return self.lm_head(state["z"] if self.start is None else state["z"][:, 1:])

    def readout(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Map a state to its logits (batch, seq_len, vocab_size), and to zeros, (batch,), twice."""
        logits = self.answers(state)
        zeros = logits.new_zeros(len(logits), dtype=torch.float32)
        return logits, zeros, zeros

    def forward(
        self,
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        estimator: Estimator,
        depth: int | Tensor | None = None,
    ) -> Output:
        """Run all loops and answer after the last.

        Args:
            state: State to go on from; None for the initial one.
            inputs: (batch, seq_len) tokens.
            puzzle_ids: Not used.
            estimator: How the gradient of the recursion is obtained.
            depth: Loops: None for num_loops, an int, or (batch,) ints for each sample its own.

        Raises:
            TypeError: depth is none of these.
            ValueError: depth is below 1, or of another batch.
        """
        rollout = self._looped(state, inputs, estimator, depth)
        return Output(rollout.state, *self.readout(rollout.state), stats=rollout.stats)

    def scored(
        self,
        state: State | None,
        inputs: Tensor,
        puzzle_ids: Tensor | None,
        labels: Tensor,
        estimator: Estimator,
        cross_entropy: CrossEntropy,
        depth: int | Tensor | None = None,
    ) -> Scored:
        """Run all loops; accuracy is that of the last one's answer, whichever loops the loss is of."""
        if not self.scored_on_the_way:
            return super().scored(state, inputs, puzzle_ids, labels, estimator, cross_entropy, depth)
        count = (labels != IGNORE).sum(-1).clamp(min=1)

        def compared(z: State, *given: Any) -> Tensor:
            return cross_entropy(self.answers(z), labels).sum(-1) / count

        rollout = self._looped(state, inputs, estimator, depth, readout=compared, save="sum")
        with torch.no_grad():
            output = Output(rollout.state, *self.readout(rollout.state), stats=rollout.stats)
        loops = self.num_steps if depth is None else depth if isinstance(depth, int) else depth.to(inputs.device)
        loss = (rollout.outputs / loops).mean()
        return Scored(output, loss, *right_tokens(output.logits, labels))

    def _looped(
        self,
        state: State | None,
        inputs: Tensor,
        estimator: Estimator,
        depth: int | Tensor | None,
        readout: Callable[..., Any] | None = None,
        save: str = "last",
    ) -> Rollout:
        state = self.initial_state(*inputs.shape) if state is None else state
        loops, lengths = self.num_steps if depth is None else depth, None
        if isinstance(loops, Tensor):
            loops, lengths = checked_depth(loops, len(inputs)), loops
        elif not is_int(loops, 1):
            raise TypeError(f"depth={depth!r} must be an int of at least 1, ints for each sample, or None")
        x = self.encode(inputs)
        return estimator(self.cell, state, x, loops, readout=readout, save=save, lengths=lengths)

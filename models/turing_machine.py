"""The neural Turing machine: an LSTM beside a memory that it writes to and reads from by what is there and by place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from loopgrad.gradients.host_memory import check_fits
from loopgrad.models.cells import State
from loopgrad.models.layers import Linear
from loopgrad.models.recurrent import drawn
from loopgrad.models.token_model import TokenModel, check_sizes

SHIFTS = (-1, 0, 1)
FIRST_CONTENT = 1e-6  # of every slot: a norm of zero has no direction to compare a key with


class TuringCell(nn.Module):
    """One token: the controller reads it beside what was read last, writes to the memory, and reads from it.

    Args:
        input_size: Length of the vector of a token.
        hidden_size: Size of the controller.
        width: Numbers of a slot of the memory.
        generator: Source of the initial weights.
    """

    def __init__(self, input_size: int, hidden_size: int, width: int, generator: torch.Generator):
        super().__init__()
        self.controller = skip_init(nn.LSTMCell, input_size + width, hidden_size)
        drawn(self.controller, hidden_size**-0.5, generator)
        head = width + 3 + len(SHIFTS)
        self.sizes = [head, head, width, width]
        self.heads = Linear(hidden_size, sum(self.sizes), generator, bias=True)

    def forward(self, state: State, inputs: Tensor, step: int) -> State:
        """Map the state and x_t, (batch, input_size), to the next state."""
        h, c = self.controller(torch.cat((inputs, state["read"]), -1), (state["h"], state["c"]))
        writing, reading, erase, add = self.heads(h).split(self.sizes, -1)
        memory = state["memory"]  # (batch, slots, width)
        write_at = addressed(memory, state["write_at"], writing)
        memory = memory * (1 - write_at[..., None] * erase.sigmoid()[:, None]) + write_at[..., None] * add[:, None]
        read_at = addressed(memory, state["read_at"], reading)
        read = (read_at[..., None] * memory).sum(1)
        return {"h": h, "c": c, "memory": memory, "write_at": write_at, "read_at": read_at, "read": read}


def addressed(memory: Tensor, before: Tensor, said: Tensor) -> Tensor:
    """Return the weights of a head, (batch, slots), from those before and from what the controller said of it.

    Args:
        memory: (batch, slots, width).
        before: (batch, slots), the weights at the token before.
        said: (batch, width + 6): key, strength, gate, sharpness and three shifts, unconstrained.
    """
    key, strength, gate, sharpness, shift = said.split([memory.shape[-1], 1, 1, 1, len(SHIFTS)], -1)
    alike = F.cosine_similarity(memory, key[:, None], dim=-1)
    by_content = torch.softmax(F.softplus(strength) * alike, -1)
    mixed = torch.lerp(before, by_content, gate.sigmoid())
    moved = torch.stack([mixed.roll(places, -1) for places in SHIFTS], -1)  # (batch, slots, shifts)
    weights = (moved @ shift.softmax(-1)[..., None])[..., 0]
    # w^g / sum(w^g), by way of logarithms: powers of small weights are zero, all of them where they are alike
    return torch.softmax((1 + F.softplus(sharpness)) * weights.clamp(min=torch.finfo(weights.dtype).tiny).log(), -1)


class NeuralTuringMachine(TokenModel):
    r"""Neural Turing machine: an LSTM controller with one write head and one read head on a memory M of slots.

    At each token (h, c) <- LSTMCell([x_t, r], (h, c)), and W h gives for each head a key k, strength b, gate g, shifts
    s over {-1, 0, 1} and sharpness p. A head's weights w over the slots become

    .. math::
        w^c_i \propto e^{b \cos(k, M_i)}, \quad w^g = g w^c + (1 - g) w, \quad
        \tilde w_i = \sum_j s_j w^g_{i - j}, \quad w_i \leftarrow \tilde w_i^p / \sum_l \tilde w_l^p

    First the write head: M_i <- M_i (1 - w_i e) + w_i a, with e in (0, 1) and a from W h. Then the read head, on what
    was written: r = sum_i w_i M_i. The answer is read from (h, r). At first all of M is 1e-6 and both heads are at slot
    0. All of it is the state: its memory takes slots x width numbers per sample and update under `BPTT`.

    Args:
        vocab_size: Number of symbols.
        seq_len: Tokens of a sequence; others are read too.
        hidden_size: Size of the controller, and of the vectors of the tokens.
        slots: Rows of M.
        width: Numbers of a row.
        num_puzzles: Must be 0.
        seed: Seed of the initial weights.

    Cost:
        Some sixty small operations per token; O(slots width) numbers kept for each.
    Not recommended when:
        No sequence is to be remembered: it is slower than an LSTM and starts learning later. There is no coupling:
        weights over slots, which sum to one, cannot be added to.
    Reference:
        Graves et al. 2014, arXiv 1410.5401; Collier and Beel 2018, arXiv 1807.08518 (a constant first memory).

    Raises:
        ValueError: A size is below 1, or there are fewer slots than shifts.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import CheckpointedBPTT
        >>> from loopgrad.models import NeuralTuringMachine
        >>> model = NeuralTuringMachine(vocab_size=10, seq_len=21, hidden_size=32, slots=16, width=8)
        >>> output = model(None, torch.zeros(2, 21, dtype=torch.int64), None, CheckpointedBPTT())
        >>> tuple(output.logits.shape), tuple(output.state["memory"].shape)
        ((2, 21, 10), (2, 16, 8))
    """

    references = ("graves2014neural", "collier2018implementing")

    def __init__(
        self,
        vocab_size: int,
        seq_len: int,
        hidden_size: int = 100,
        slots: int = 32,
        width: int = 20,
        num_puzzles: int = 0,
        seed: int = 0,
    ):
        check_sizes(hidden_size=hidden_size, width=width)
        if slots < len(SHIFTS):
            raise ValueError(f"slots={slots} must be at least {len(SHIFTS)}: a head moves by one slot to either side")
        what = f"a Turing machine with hidden_size={hidden_size}, slots={slots}, width={width}"
        check_fits(4 * (4 * hidden_size * (2 * hidden_size + width) + slots * width), what)
        generator = torch.Generator().manual_seed(seed)
        cell = TuringCell(hidden_size, hidden_size, width, generator)
        super().__init__(vocab_size, seq_len, hidden_size, cell, hidden_size + width, generator, num_puzzles)
        self.shape = (slots, width)

    def first_values(self) -> Mapping[str, Tensor]:
        """Return zeros, a memory of 1e-6, and heads at slot 0."""
        slots, width = self.shape
        h, read, at = torch.zeros(self.embedding.hidden_size), torch.zeros(width), torch.zeros(slots)
        at[0] = 1
        memory = torch.full(self.shape, FIRST_CONTENT)
        return {"h": h, "c": h, "memory": memory, "write_at": at, "read_at": at, "read": read}

    def features(self, state: State) -> Tensor:
        """Return the controller's output and what was read."""
        return torch.cat((state["h"], state["read"]), -1)

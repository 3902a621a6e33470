"""Updates of latent states over the slots of a frozen encoder: one net again and again, a stack of them, two streams.

Slots that fill up a row are attended to by none, and stay zero.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from loopgrad.models.blocks import Net
from loopgrad.models.cells import Cycled, State
from loopgrad.models.latent_embedding import Slots


class SlotLoop(nn.Module):
    """z <- net(z + x) over slots, the same net at every update.

    Args:
        net: The net, of blocks with attention.
    """

    period = 1

    def __init__(self, net: Net):
        super().__init__()
        self.net = net

    @property
    def depth(self) -> int:
        """Blocks that one update applies."""
        return len(self.net.blocks)

    def forward(self, state: State, inputs: Slots, step: int) -> State:
        """Apply the net to {"z"}, (batch, slots, hidden_size)."""
        return {"z": _updated(self.net, state["z"], inputs.x, inputs.mask)}


class SlotStack(nn.Module):
    """z <- net_t(z + x) over slots, at each update of a cycle another net: `SlotLoop` with its weights untied.

    Args:
        nets: One per update of a cycle, and there is one cycle.
    """

    def __init__(self, nets: list[Net]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    @property
    def period(self) -> int:
        """Updates in a cycle: as many as there are nets."""
        return len(self.nets)

    @property
    def depth(self) -> int:
        """Blocks that one cycle applies."""
        return sum(len(net.blocks) for net in self.nets if isinstance(net, Net))

    def forward(self, state: State, inputs: Slots, step: int) -> State:
        """Apply net number `step` to {"z"}, (batch, slots, hidden_size)."""
        return {"z": _updated(self.nets[step % self.period], state["z"], inputs.x, inputs.mask)}


class SlotTwoStream(Cycled):
    """TRM's two streams over slots: L_cycles times z_L <- net(z_L + z_H + x), then once z_H <- net(z_H + z_L).

    Args:
        net: The net that both updates share.
        L_cycles: Updates of z_L in a cycle, at least 1.

    Reference:
        Jolicoeur-Martineau 2025, arXiv 2510.04871, figure 3.
    """

    def __init__(self, net: Net, L_cycles: int):
        super().__init__(L_cycles)
        self.net = net

    @property
    def depth(self) -> int:
        """Blocks that one cycle applies."""
        return self.period * len(self.net.blocks)

    def forward(self, state: State, inputs: Slots, step: int) -> State:
        """Apply update number `step` to {"z_L", "z_H"}, each (batch, slots, hidden_size)."""
        z_L, z_H = state["z_L"], state["z_H"]
        if step % self.period < self.L_cycles:
            return {"z_L": _updated(self.net, z_L, z_H + inputs.x, inputs.mask), "z_H": z_H}
        return {"z_L": z_L, "z_H": _updated(self.net, z_H, z_L, inputs.mask)}


class Pooled(nn.Module):
    """z <- net(v), logits of the answer slots from one vector of a sample; where it was before does not matter.

    Args:
        net: Maps (batch, features) to (batch, answer_slots answers).
        answer_slots: Slots at the beginning of a row that have logits; the others are zero.
    """

    period = depth = 1

    def __init__(self, net: nn.Module, answer_slots: int):
        super().__init__()
        self.net, self.answer_slots = net, answer_slots

    def forward(self, state: State, inputs: Tensor, step: int) -> State:
        """Return {"z"}, (batch, slots, answers); inputs is (batch, features)."""
        logits = self.net(inputs).unflatten(-1, (self.answer_slots, -1))
        return {"z": at_front(logits, state["z"].shape[1])}


def at_front(logits: Tensor, slots: int) -> Tensor:
    """Return logits (batch, answer_slots, answers) with zeros behind them, (batch, slots, answers)."""
    return F.pad(logits, (0, 0, 0, slots - logits.shape[1]))


def _updated(net: nn.Module, z: Tensor, injected: Tensor, mask: Tensor) -> Tensor:
    return net(z, injected, mask) * mask.unsqueeze(-1)

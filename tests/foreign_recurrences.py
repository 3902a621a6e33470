"""Seven recurrences in the shape in which public code has them: NTM, DNC, LSTM, automaton, RAFT, spiking, liquid.

Written anew and small; what makes each hard for an estimator is kept, and its docstring says what that is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NTMMemory(nn.Module):
    """The matrix is an attribute, which a write replaces; shifting writes its result row by row."""

    memory: Tensor

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.register_buffer("mem_bias", 0.3 * torch.randn(rows, width))

    def reset(self, batch: int) -> None:
        self.memory = self.mem_bias.clone().repeat(batch, 1, 1)

    def read(self, w: Tensor) -> Tensor:
        return torch.matmul(w.unsqueeze(1), self.memory).squeeze(1)

    def write(self, w: Tensor, erase: Tensor, add: Tensor) -> None:
        w = w.unsqueeze(-1)
        self.memory = self.memory * (1 - w * erase.unsqueeze(1)) + w * add.unsqueeze(1)

    def address(self, raw: Tensor, w_before: Tensor) -> Tensor:
        key, beta, gate, shift, gamma = raw.split([raw.shape[1] - 6, 1, 1, 3, 1], dim=1)
        alike = F.cosine_similarity(self.memory + 1e-16, key.unsqueeze(1) + 1e-16, dim=-1)
        w = F.softmax(F.softplus(beta) * alike, dim=1)
        w, shift = torch.lerp(w_before, w, gate.sigmoid()), F.softmax(shift, dim=1)
        turned = torch.zeros(w.size())
        for b in range(len(w)):
            ring = torch.cat([w[b, -1:], w[b], w[b, :1]])
            turned[b] = F.conv1d(ring.view(1, 1, -1), shift[b].view(1, 1, -1)).view(-1)
        w = turned ** (1 + F.softplus(gamma))
        return w / (w.sum(1, keepdim=True) + 1e-16)


class NTM(nn.Module):
    """An LSTM controller, a read and a write head; the memory is not in the state that it returns."""

    def __init__(self, features: int = 3, rows: int = 5, width: int = 4, hidden: int = 6):
        super().__init__()
        self.memory, self.controller = NTMMemory(rows, width), nn.LSTMCell(features + width, hidden)
        self.reads, self.writes = nn.Linear(hidden, width + 6), nn.Linear(hidden, 3 * width + 6)
        self.h_bias, self.c_bias = (
            nn.Parameter(0.1 * torch.randn(1, hidden)),
            nn.Parameter(0.1 * torch.randn(1, hidden)),
        )
        self.rows, self.width = rows, width

    def create_new_state(self, batch: int) -> Any:
        heads = [torch.zeros(batch, self.rows) for _ in range(2)]
        return [torch.zeros(batch, self.width)], (self.h_bias.repeat(batch, 1), self.c_bias.repeat(batch, 1)), heads

    def forward(self, x: Tensor, before: Any) -> tuple[Tensor, Any]:
        read, controller, (w_read, w_write) = before
        h, c = self.controller(torch.cat([x, *read], dim=1), controller)
        w_read = self.memory.address(self.reads(h), w_read)
        read = self.memory.read(w_read)
        raw, erase, add = self.writes(h).split([self.width + 6, self.width, self.width], dim=1)
        w_write = self.memory.address(raw, w_write)
        self.memory.write(w_write, erase.sigmoid(), add)
        return torch.cat([h, read], dim=1), ([read], (h, c), [w_read, w_write])


class DNC(nn.Module):
    """Usage sorted into an allocation, a link matrix, and a dict of hidden tensors that is filled in place."""

    def __init__(self, features: int = 3, cells: int = 4, width: int = 3):
        super().__init__()
        self.cells, self.width = cells, width
        self.controller, self.interface = nn.RNNCell(features + width, 6), nn.Linear(6, 4 * width + 8)

    def new(self, batch: int) -> dict[str, Tensor]:
        flat = {name: torch.zeros(batch, self.cells) for name in ("usage", "precedence", "read_w", "write_w")}
        square = torch.zeros(batch, self.cells, self.cells)
        more = {"memory": torch.full((batch, self.cells, self.width), 1e-3), "read": torch.zeros(batch, self.width)}
        return {**flat, "links": square, "h": torch.zeros(batch, 6), **more}

    def alike(self, memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
        return F.softmax(F.cosine_similarity(memory, key.unsqueeze(1), dim=-1) * F.softplus(strength), dim=1)

    def forward(self, x: Tensor, hidden: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden["h"] = self.controller(torch.cat([x, hidden["read"]], 1), hidden["h"])
        sizes = [self.width] * 4 + [1, 1, 1, 1, 1, 3]
        raw = self.interface(hidden["h"]).split(sizes, 1)
        read_key, write_key, erase, write, read_b, write_b, free, alloc_g, write_g, modes = raw
        usage = hidden["usage"] + (1 - hidden["usage"]) * hidden["write_w"]
        hidden["usage"] = usage * (1 - free.sigmoid() * hidden["read_w"])
        ordered, places = (1e-5 + (1 - 1e-5) * hidden["usage"]).sort(dim=1)
        before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1]], 1).cumprod(1)
        allocation = ((1 - ordered) * before).gather(1, places.argsort(dim=1))
        content = self.alike(hidden["memory"], write_key, write_b)
        w = hidden["write_w"] = write_g.sigmoid() * torch.lerp(content, allocation, alloc_g.sigmoid())
        keep = 1 - w.unsqueeze(2) * erase.sigmoid().unsqueeze(1)
        hidden["memory"] = hidden["memory"] * keep + w.unsqueeze(2) * write.unsqueeze(1)
        links = (1 - w.unsqueeze(2) - w.unsqueeze(1)) * hidden["links"]
        links = links + w.unsqueeze(2) * hidden["precedence"].unsqueeze(1)
        hidden["links"] = links * (1 - torch.eye(self.cells))
        hidden["precedence"] = (1 - w.sum(1, keepdim=True)) * hidden["precedence"] + w
        ways = modes.softmax(1).unsqueeze(2)  # (batch, 3, 1)
        old = hidden["read_w"].unsqueeze(2)
        back, forth = (hidden["links"].mT @ old).squeeze(2), (hidden["links"] @ old).squeeze(2)
        found = self.alike(hidden["memory"], read_key, read_b)
        hidden["read_w"] = back * ways[:, 0] + found * ways[:, 1] + forth * ways[:, 2]
        hidden["read"] = (hidden["read_w"].unsqueeze(1) @ hidden["memory"]).squeeze(1)
        return hidden["read"], hidden


class LanguageModel(nn.Module):
    """torch's LSTM of two layers with dropout between them: (layers, batch, hidden); the decoder's weight is tied."""

    def __init__(self, tokens: int = 7, size: int = 5):
        super().__init__()
        self.encoder, self.rnn = nn.Embedding(tokens, size), nn.LSTM(size, size, num_layers=2, dropout=0.2)
        self.decoder = nn.Linear(size, tokens)
        self.decoder.weight = self.encoder.weight


class Automaton(nn.Module):
    """Fixed filters in a buffer, an update mask drawn anew at each step, and a mask of who is alive."""

    def __init__(self, channels: int = 5, hidden: int = 8):
        super().__init__()
        slope = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])) / 8
        filters = torch.stack([slope, slope.T]).repeat(channels, 1, 1)
        self.register_buffer("filters", filters.unsqueeze(1))
        self.fc0, self.fc1 = nn.Conv2d(3 * channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def alive(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x[:, 3:4], 3, stride=1, padding=1) > 0.1

    def forward(self, x: Tensor, fire_rate: float = 0.5) -> Tensor:
        before, groups = self.alive(x), x.shape[1]
        seen = torch.cat([x, F.conv2d(x, self.filters, padding=1, groups=groups)], 1)
        change = self.fc1(F.relu(self.fc0(seen)))
        x = x + change * (torch.rand(x[:, :1].size()) <= fire_rate)
        return x * (before & self.alive(x))


class CorrBlock:
    """Holds what an encoder made of two images; called with coordinates, it looks up the correlations around them."""

    def __init__(self, first: Tensor, second: Tensor, radius: int = 1):
        b, c, h, w = first.shape
        corr = torch.einsum("bcij,bckl->bijkl", first, second) / c**0.5
        self.radius, self.pyramid = radius, [corr.reshape(b * h * w, 1, h, w)]
        self.pyramid.append(F.avg_pool2d(self.pyramid[0], 2, stride=2))

    def __call__(self, coords: Tensor) -> Tensor:
        b, _, h, w = coords.shape
        reach = torch.arange(-self.radius, self.radius + 1.0)
        around = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), -1)  # (2 r + 1, 2 r + 1, 2)
        centres, found = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2), []
        for level, corr in enumerate(self.pyramid):
            last = torch.tensor(corr.shape[:-3:-1]) - 1.0
            grid = 2 * (centres / 2**level + around) / last.clamp(min=1) - 1
            found.append(F.grid_sample(corr, grid, align_corners=True).view(b, h, w, -1))
        return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


class RAFT(nn.Module):
    """An encoder with batch statistics, a lookup object made per call, a ConvGRU, coordinates cut at each update."""

    def __init__(self, hidden: int = 4):
        super().__init__()
        self.fnet = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.cnet = nn.Conv2d(3, 2 * hidden, 3, padding=1)
        seen = hidden + hidden + 18 + 2
        self.gates, self.candidate = nn.Conv2d(seen, 2 * hidden, 3, padding=1), nn.Conv2d(seen, hidden, 3, padding=1)
        self.flow_head = nn.Conv2d(hidden, 2, 3, padding=1)

    def update(self, net: Tensor, inp: Tensor, corr: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([inp, corr, flow], 1)
        z, r = self.gates(torch.cat([net, x], 1)).sigmoid().chunk(2, 1)
        net = torch.lerp(net, torch.tanh(self.candidate(torch.cat([r * net, x], 1))), z)
        return net, self.flow_head(net)


class Spike(torch.autograd.Function):
    """A step whose slope in backward is that of a fast sigmoid; it has no rule for forward differentiation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] / (1 + 5 * x.abs()) ** 2


class SpikingNet(nn.Module):
    """Two leaky layers with learned decay, batch statistics at each step, a reset that is not differentiated."""

    def __init__(self, features: int = 4, hidden: int = 6):
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(features, hidden), nn.Linear(hidden, 3), nn.BatchNorm1d(hidden)
        self.beta = nn.Parameter(torch.tensor(0.8))

    def leaky(self, current: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        reset = (mem > 1).to(mem.dtype)
        mem = self.beta.clamp(0, 1) * mem + current - reset
        return Spike.apply(mem - 1), mem

    def forward(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spikes, mem1 = self.leaky(self.norm(self.fc1(x)), mem1)
        spikes, mem2 = self.leaky(self.fc2(spikes), mem2)
        return spikes, mem1, mem2


class LiquidCell(nn.Module):
    """Parameters also kept in a dict, a frozen mask among them; six solver steps; weights clamped through `.data`."""

    def __init__(self, features: int = 3, units: int = 4):
        super().__init__()
        self._params: dict[str, Tensor] = {}
        shapes = {"w": (units, units), "mu": (units, units), "sigma": (units, units), "erev": (units, units)}
        shapes |= {"gleak": (units,), "vleak": (units,), "cm": (units,), "sensory": (features, units)}
        for name, shape in shapes.items():
            self.add(name, torch.rand(shape) + 0.1)
        self.add("mask", (torch.rand(units, units) > 0.3).to(torch.get_default_dtype()), requires_grad=False)

    def add(self, name: str, value: Tensor, requires_grad: bool = True) -> None:
        self.register_parameter(name, nn.Parameter(value, requires_grad=requires_grad))
        self._params[name] = getattr(self, name)

    def apply_weight_constraints(self) -> None:
        for name in ("w", "cm", "gleak"):
            self._params[name].data = torch.relu(self._params[name].data)

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        p, sensed = self._params, x @ self._params["sensory"]
        for _ in range(6):
            active = p["w"] * torch.sigmoid(p["sigma"] * (v.unsqueeze(-1) - p["mu"])) * p["mask"]
            above = 6 * p["cm"] * v + p["gleak"] * p["vleak"] + (active * p["erev"]).sum(1) + sensed
            v = above / (6 * p["cm"] + p["gleak"] + active.sum(1) + 1e-8)
        return v

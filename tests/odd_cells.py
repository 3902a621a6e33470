"""Cells that keep tensors, derive them late, or read them where they should not."""

import torch
from torch import nn
from torch.func import grad

SIZE = 4


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.other = nn.Linear(SIZE, SIZE).double(), nn.Linear(SIZE, SIZE).double()
        self.scale = nn.Parameter(torch.rand(SIZE, dtype=torch.float64))
        self.kept = {}
        self.hidden = [torch.rand(SIZE, dtype=torch.float64).requires_grad_() for _ in range(9)]

    def forward(self, z, x, step):
        return torch.tanh(self.linear(z) + x)


class ListByStep(Base):
    def forward(self, z, x, step):
        z = super().forward(z, x, step)
        return z * self.hidden[4] if step == 4 else z


class LaggedByStep(Base):
    def forward(self, z, x, step):
        self.kept[step], z = z, super().forward(z, x, step)
        return z + 0.5 * self.kept[step - 2] if step >= 2 else z


class SkipFromStart(Base):
    def forward(self, z, x, step):
        if step == 0:
            self.kept["first"] = z
        z = super().forward(z, x, step)
        return z + 0.5 * self.kept["first"] if step == 4 else z


class DerivedLate(Base):
    def forward(self, z, x, step):
        if step == 3:
            self.kept["scale"] = self.scale.exp()
        z = super().forward(z, x, step)
        return z * self.kept["scale"] if step > 3 else z


class KeepsInInputs(Base):
    def forward(self, z, x, step):
        if "keys" not in x:
            x["keys"] = self.other(x["x"])
        return torch.tanh(0.3 * self.linear(z) + x["keys"])


class InnerGradient(Base):
    def forward(self, z, x, step):
        return z - 0.1 * grad(lambda a: (torch.tanh(self.linear(a)) * x).sum())(z)


class WithLoss(Base):
    def forward(self, z, x, step):
        z = super().forward(z, x, step)
        self.extra = z.square().sum()
        return z


class InferenceBuffer(Base):
    def __init__(self):
        super().__init__()
        with torch.inference_mode():
            self.register_buffer("position", torch.ones(SIZE, dtype=torch.float64))

    def forward(self, z, x, step):
        return super().forward(z, x + self.position, step)

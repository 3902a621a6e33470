"""One random rank of the influence matrix, whose mean is the matrix."""

import torch
from torch import Tensor

from loopgrad.gradients.influence import Carried, Immediate


class RankOne(Carried):
    r"""A random s theta^T with mean J: s <- rho_0 dF/dz s + rho_1 nu, theta <- theta / rho_0 + nu^T dF/dp / rho_1.

    nu is random signs, rho_0 = sqrt(|theta| / |dF/dz s|), rho_1 = sqrt(|nu^T dF/dp| / |nu|), each for a row of its own
    (Tallec and Ollivier 2018).

    Args:
        entries: (feature, column) of each entry of the immediate influence, (2, how many).
        state: s, (rows, features).
        trace: theta, (rows, columns).
        generator: Draws nu.
    """

    def __init__(self, entries: Tensor, state: Tensor, trace: Tensor, generator: torch.Generator):
        self.entries, self.state, self.trace, self.generator = entries, state, trace, generator

    @classmethod
    def start(cls, pattern: Tensor, first: Tensor, like: Tensor, generator: torch.Generator) -> "RankOne":
        """Return that of the initial state, whose influence on itself is the identity: see `Influence.start`."""
        trace = like.new_zeros(len(like), pattern.shape[1])
        found = cls(pattern.nonzero().T, torch.zeros_like(like), trace, generator)
        if first.shape[1]:
            found.state[:, first[1]] = found._signs()[:, first[1]]
            trace[:, first[0]] = found.state[:, first[1]]
        return found

    def _signs(self) -> Tensor:
        drawn = torch.empty(self.state.shape, dtype=self.state.dtype).bernoulli_(0.5, generator=self.generator)
        return drawn.mul_(2).sub_(1).to(self.state.device)

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """Push s, and take in the immediate influence of a fresh nu."""
        nu, fresh = self._signs(), torch.zeros_like(self.trace)
        features, columns = self.entries
        part = immediate.entries(features, columns, torch.ones_like(features, dtype=torch.bool))
        fresh.index_add_(1, columns, nu[:, features] * part)
        pushed = torch.einsum("rij,rj->ri", through, self.state)
        old, new = _root(self.trace, pushed), _root(fresh, nu)
        self.state, self.trace = old * pushed + new * nu, self.trace / old + fresh / new

    def read(self, adjoints: Tensor) -> Tensor:
        """Return (adjoint . s) theta."""
        return torch.einsum("rmi,ri,rk->rmk", adjoints, self.state, self.trace)

    @property
    def tensors(self) -> list[Tensor]:
        """The two, s and theta."""
        return [self.state, self.trace]

    def holding(self, tensors: list[Tensor]) -> "RankOne":
        """Return the same with another s and theta."""
        state, trace = tensors
        return RankOne(self.entries, state, trace, self.generator)


def _root(a: Tensor, b: Tensor) -> Tensor:
    """Return sqrt(|a| / |b|) by row, and 1 where there is nothing to scale."""
    ratio = a.norm(dim=1, keepdim=True) / b.norm(dim=1, keepdim=True)
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).sqrt()

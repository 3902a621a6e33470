"""The influence of a weight matrix as one Kronecker product of random factors, whose mean it is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loopgrad.gradients.columns import Columns
from loopgrad.gradients.influence import Carried, Immediate, Influence


@dataclass(frozen=True)
class Weight:
    """A weight matrix (outputs, inputs), and where its immediate influence dF_i / dW_jk = D_ij a_k may be.

    Attributes:
        name: For messages.
        start: Its first column.
        shape: (outputs, inputs).
        pairs: (i, j) where D may be other than zero, (2, pairs).
        features: i of each entry, (pairs * inputs,).
        columns: Its column.
        pattern: Whether the entry may be other than zero.
    """

    name: str
    start: int
    shape: tuple[int, int]
    pairs: Tensor
    features: Tensor
    columns: Tensor
    pattern: Tensor

    @property
    def stop(self) -> int:
        """The column after its last."""
        return self.start + self.shape[0] * self.shape[1]


def weights_of(columns: Columns, pattern: Tensor) -> list[Weight]:
    """Return the weight matrices among columns, given where updates act immediately (features, columns)."""
    found, cell = [], columns.cell
    names = {id(parameter): name for name, parameter in cell.cell.named_parameters()}
    for i, group in enumerate(columns.of_others):
        if group is None or i < cell.num_inputs or group.repeats > 1 or len(group.shape) < 2:
            continue
        outputs, inputs = group.shape[0], group.width // max(group.shape[0], 1)
        if inputs < 2:
            continue
        own = pattern[:, group.start : group.start + group.width].reshape(len(pattern), outputs, inputs)
        pairs = own.any(2).nonzero().T
        within = pairs[1].unsqueeze(1) * inputs + torch.arange(inputs, device=pairs.device)
        features = pairs[0].unsqueeze(1).expand_as(within)
        name = names.get(id(cell.others[i]), f"a tensor of shape {tuple(group.shape)}")
        at = group.start + within.flatten()
        found.append(
            Weight(
                name, group.start, (outputs, inputs), pairs, features.flatten(), at, own[pairs[0], pairs[1]].flatten()
            )
        )
    return found


class Kronecker(Carried):
    r"""For each weight matrix u and A with mean u_k A_ij = J_i,jk; all other columns as they are.

    u <- p_1 u + s p_2 a, A <- dF/dz A / p_1 + s D / p_2, with a random sign s, p_1 = sqrt(|dF/dz A| / |u|) and
    p_2 = sqrt(|D| / |a|), each for a row of its own (Mujika, Meier and Steger 2018, algorithm 1).

    Args:
        weights: The matrices.
        factors: u (rows, inputs) and A (rows, features, outputs) of each, one after the other.
        rest: The influence of everything else.
        generator: Draws s.
        off: How far each matrix was from having one product for its immediate influence; empty before the first update.
    """

    def __init__(
        self,
        weights: list[Weight],
        factors: list[Tensor],
        rest: Influence,
        generator: torch.Generator,
        off: list[Tensor],
    ):
        self.weights, self.factors, self.rest, self.generator, self.off = weights, factors, rest, generator, off

    @classmethod
    def start(cls, weights: list[Weight], rest: Influence, like: Tensor, generator: torch.Generator) -> "Kronecker":
        """Return that of the initial state, on which no weight has an influence; `like` is it, (rows, features)."""
        factors = []
        for weight in weights:
            outputs, inputs = weight.shape
            factors += [like.new_zeros(len(like), inputs), like.new_zeros(*like.shape, outputs)]
        return cls(weights, factors, rest, generator, [like.new_zeros(()) for _ in weights])

    def push(self, through: Tensor, immediate: Immediate) -> None:
        """Push each A, and take in the immediate influence."""
        for number, weight in enumerate(self.weights):
            u, A = self.factors[2 * number : 2 * number + 2]
            part = immediate.entries(weight.features, weight.columns, weight.pattern)
            a, d, off = factored(part.reshape(len(part), -1, weight.shape[1]))
            self.off[number] = torch.maximum(self.off[number], off)
            fresh = torch.zeros_like(A)
            fresh[:, weight.pairs[0], weight.pairs[1]] = d
            pushed, sign = through @ A, self._signs(u)
            old, new = _root(pushed, u), _root(fresh, a)
            self.factors[2 * number] = old * u + sign * new * a
            self.factors[2 * number + 1] = pushed / old.unsqueeze(2) + fresh * (sign / new).unsqueeze(2)
        self.rest.push(through, immediate)

    def _signs(self, like: Tensor) -> Tensor:
        drawn = torch.empty(len(like), 1, dtype=like.dtype).bernoulli_(0.5, generator=self.generator)
        return drawn.mul_(2).sub_(1).to(like.device)

    def read(self, adjoints: Tensor) -> Tensor:
        """Return the products with J."""
        found = self.rest.read(adjoints)
        for number, weight in enumerate(self.weights):
            u, A = self.factors[2 * number : 2 * number + 2]
            product = (adjoints @ A).unsqueeze(3) * u[:, None, None, :]
            found[:, :, weight.start : weight.stop] = product.flatten(2)
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """The factors, and what is carried of the rest."""
        return [*self.factors, *self.rest.tensors]

    def holding(self, tensors: list[Tensor]) -> "Kronecker":
        """Return the same with other values."""
        count = len(self.factors)
        return Kronecker(self.weights, tensors[:count], self.rest.holding(tensors[count:]), self.generator, self.off)

    def check(self, owner: str, bound: float) -> None:
        """Raise RuntimeError if the immediate influence of a weight was no Kronecker product; waits for the device."""
        for weight, off in zip(self.weights, self.off, strict=True):
            if float(off) > bound:
                raise RuntimeError(
                    f"{owner} needs weights that an update multiplies with one vector, so that dF_i/dW_jk = D_ij a_k, "
                    f"and of {weight.name} that is not so (off by {float(off):.1e}, allowed {bound:.1e}): it is used "
                    "more than once in an update, on several tokens or samples, or is no matrix of a product: use "
                    "UORO(), SnAp(1) or CheckpointedBPTT()"
                )


def factored(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a (rows, inputs) and d (rows, pairs) with matrix = d a^T, and how far they are from it.

    Args:
        matrix: (rows, pairs, inputs), of rank one.
    """
    if not matrix.numel():
        return matrix.new_zeros(len(matrix), matrix.shape[2]), matrix.new_zeros(matrix.shape[:2]), matrix.new_zeros(())
    largest = matrix.norm(dim=2).argmax(1)
    a = matrix[torch.arange(len(matrix), device=matrix.device), largest]
    d = torch.einsum("rpk,rk->rp", matrix, a) / a.square().sum(1, keepdim=True)
    d = torch.where(a.square().sum(1, keepdim=True) > 0, d, 0.0)
    off = (matrix - d.unsqueeze(2) * a.unsqueeze(1)).abs().max() / matrix.abs().max()
    return a, d, torch.where(off.isfinite(), off, 0.0)  # 0 / 0; and what overflows is no matter of products


def _root(a: Tensor, b: Tensor) -> Tensor:
    """Return sqrt(|a| / |b|) by row (rows, 1), and 1 where there is nothing to scale."""
    ratio = a.flatten(1).norm(dim=1, keepdim=True) / b.flatten(1).norm(dim=1, keepdim=True)
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0).sqrt()

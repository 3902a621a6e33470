"""Short forms of a tensor: numbers of fewer bits, or a product of two thin matrices; each with what restores it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 8  # numbers of a row: the statistics of a norm and the like stay as they are


class Form(ABC):
    """How the tensors that updates save are kept."""

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has a form that is shorter than itself: rows of at least 8 real numbers, and dense."""
        dense = tensor.is_floating_point() and tensor.layout == torch.strided and tensor.dim() > 1
        return dense and tensor.shape[-1] >= LEAST and tensor.numel() > 0 and self.shorter(tensor)

    @abstractmethod
    def shorter(self, tensor: Tensor) -> bool:
        """Whether the form of a tensor has fewer bytes than the tensor."""

    @abstractmethod
    def packed(self, tensor: Tensor) -> list[Tensor]:
        """Return the short form of a tensor."""

    @abstractmethod
    def restored(self, parts: list[Tensor], like: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a tensor of this shape and dtype made of its short form."""


@dataclass(frozen=True)
class Rounded(Form):
    """Every number rounded to another floating dtype."""

    dtype: torch.dtype

    def shorter(self, tensor: Tensor) -> bool:
        """Whether the dtype has fewer bytes."""
        return tensor.dtype.itemsize > self.dtype.itemsize

    def packed(self, tensor: Tensor) -> list[Tensor]:
        """Round."""
        return [tensor.to(self.dtype)]

    def restored(self, parts: list[Tensor], like: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return the rounded numbers."""
        return parts[0].to(dtype)


class Levels(Form):
    """Every row as int8, in units of a 127th of its greatest magnitude."""

    def shorter(self, tensor: Tensor) -> bool:
        """Whether a byte for a number and a unit for a row are fewer."""
        size = tensor.dtype.itemsize
        return size * tensor.shape[-1] > tensor.shape[-1] + max(size, 4)

    def packed(self, tensor: Tensor) -> list[Tensor]:
        """Return levels and units; a row with a number that is not finite is NaN when it is restored."""
        wide = torch.promote_types(tensor.dtype, torch.float32)  # float64 has rows beyond float32's range
        unit = tensor.abs().amax(dim=-1, keepdim=True).to(wide) / 127
        unit = torch.where(unit.isfinite(), unit, torch.nan)
        levels = (tensor / torch.where(unit == 0, 1, unit)).round()  # a unit below its dtype's least makes them more
        return [levels.nan_to_num(0).clamp(-127, 127).to(torch.int8), unit]

    def restored(self, parts: list[Tensor], like: torch.Size, dtype: torch.dtype) -> Tensor:
        """Multiply."""
        return (parts[0] * parts[1]).to(dtype)


@dataclass(frozen=True)
class Thin(Form):
    """X (rows, features) as Q (Q^T X), where the rank columns of Q span what a few random combinations of X's span.

    Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4 with one iteration of power.
    """

    rank: int

    def shorter(self, tensor: Tensor) -> bool:
        """Whether rank (rows + features) numbers are fewer."""
        features = tensor.shape[-1]
        rows = tensor.numel() // features
        return self.rank < min(rows, features) and self.rank * (rows + features) < tensor.numel()

    def packed(self, tensor: Tensor) -> list[Tensor]:
        """Return Q and Q^T X."""
        matrix = tensor.reshape(-1, tensor.shape[-1])
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))  # half precision has no QR
        generator = torch.Generator(matrix.device).manual_seed(0)  # the same combinations for all
        drawn = torch.randn(
            matrix.shape[1], self.rank, generator=generator, device=matrix.device, dtype=torch.float32
        ).to(wide.dtype)
        spanned = torch.linalg.qr(wide @ (wide.T @ torch.linalg.qr(wide @ drawn).Q)).Q
        return [spanned.to(matrix.dtype), (spanned.T @ wide).to(matrix.dtype)]

    def restored(self, parts: list[Tensor], like: torch.Size, dtype: torch.dtype) -> Tensor:
        """Multiply."""
        return (parts[0] @ parts[1]).view(like)


@dataclass(frozen=True)
class Near(Form):
    """X (rows, features) as a product of the least rank within a share of its own norm, by singular values.

    ||X - U S V^T||_F <= tolerance ||X||_F, and the rounding of the dtype. A matrix that no shorter product is as near
    to, one with a number that is not finite, and one without numbers (on the meta device) stay as they are.
    """

    tolerance: float

    def shorter(self, tensor: Tensor) -> bool:
        """Whether a product of rank one has fewer numbers."""
        return Thin(1).shorter(tensor)

    def packed(self, tensor: Tensor) -> list[Tensor]:
        """Return U S and V^T, or the tensor."""
        matrix = tensor.reshape(-1, tensor.shape[-1])
        if tensor.is_meta or not matrix.isfinite().all():
            return [tensor]
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        left, singular, right = torch.linalg.svd(wide, full_matrices=False)
        squares = singular.double().square()
        left_out = squares.flip(0).cumsum(0).flip(0)  # beyond each rank from 0 on
        rank = int((left_out > self.tolerance**2 * squares.sum()).sum())
        if rank * sum(matrix.shape) >= matrix.numel():
            return [tensor]
        # copies: a slice would keep all rows
        return [(left[:, :rank] * singular[:rank]).to(matrix.dtype), right[:rank].to(matrix.dtype, copy=True)]

    def restored(self, parts: list[Tensor], like: torch.Size, dtype: torch.dtype) -> Tensor:
        """Multiply, where there are two."""
        return parts[0] if len(parts) == 1 else Thin(1).restored(parts, like, dtype)


FORMS: dict[str, Form] = {"bfloat16": Rounded(torch.bfloat16), "int8": Levels()}  # by the names that users give

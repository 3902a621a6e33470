"""Batches of random tokens with labels, as deep supervision takes them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    labels: torch.Tensor
    puzzle_ids: torch.Tensor


def draw(seed, size=4, seq_len=5, vocab=6):
    """Return a batch; puzzles are numbered so that those of different seeds differ."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = (torch.randint(0, vocab, (size, seq_len), generator=generator) for _ in range(2))
    return Batch(inputs, labels, torch.arange(size) + 10 * seed)

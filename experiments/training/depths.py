"""How many cycles the segments of a training step have, where that is drawn at random."""

import torch
from torch import Tensor

from loopgrad.experiments.trainer import Trainer
from loopgrad.experiments.training.seeds import seed_for


def drawn(trainer: Trainer, seed: int, step: int) -> int | Tensor | None:
    """Return the cycles of a training step: (batch,) int64 on the CPU where each sample has its own, None if fixed.

    They follow from the seed of the run and the number of the step, whatever else is drawn, and whichever steps were
    taken before in this process.

    Args:
        trainer: Says what is drawn.
        seed: Seed of the run.
        step: Steps done before.
    """
    if trainer.depths is None:
        return None
    generator = torch.Generator().manual_seed(seed_for("depth", seed) + step)
    count = trainer.batch_size if trainer.depth_per == "sample" else 1
    cycles = [min(trainer.depths.sample(generator), trainer.most_cycles) for _ in range(count)]
    return torch.tensor(cycles) if trainer.depth_per == "sample" else cycles[0]


def mean_of(depth: int | Tensor) -> float:
    """Return the mean number of cycles of the samples."""
    return depth.double().mean().item() if isinstance(depth, Tensor) else float(depth)

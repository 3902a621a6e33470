"""Random numbers of estimators: a generator of their own, a fresh seed at each forward pass, another on each rank."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from loopgrad.gradients import tree
from loopgrad.gradients.checks import is_int

Distribution = Literal["rademacher", "gaussian"]
DISTRIBUTIONS = ("rademacher", "gaussian")
_SPAN = 2**62


def own_generator(seed: int | None) -> torch.Generator:
    """Return a generator that no one else draws from; with seed=None it starts from the system's entropy."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def generator_of(seed: int | None, given: torch.Generator | None) -> torch.Generator:
    """Return the generator of a dataclass: the one it is given by the copy that it replaces, if that has its seed.

    So `dataclasses.replace` shares the generator, with which torch's own hooks copy every dataclass that a module is
    called with, and draws go on in the copy.
    """
    return given if given is not None and seed in (None, given.initial_seed()) else own_generator(seed)


def check_seed(owner: str, seed: object) -> None:
    """Raise unless `seed` is None or an int of at least 0."""
    if seed is not None and not is_int(seed, 0):
        raise ValueError(f"{owner}(seed={seed!r}) must be None or an int of at least 0")


def common_seed(generator: torch.Generator) -> int:
    """Draw a seed, the same on all ranks of torch.distributed whose generators agree."""
    return int(torch.randint(_SPAN, (), generator=generator))


def fresh_seed(generator: torch.Generator) -> int:
    """Draw a seed; ranks of torch.distributed whose generators agree get different ones."""
    drawn = common_seed(generator)
    distributed = torch.distributed
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    return (drawn + rank * 0x9E3779B97F4A7C15) % _SPAN


def generators_apart(values: Any) -> AbstractContextManager[None]:
    """Put the global generators back at the end of a block: of the CPU, and of the devices of a tree of tensors."""
    devices = {tensor.device.index or 0 for tensor in tree.tensors(values) if tensor.device.type == "cuda"}
    return torch.random.fork_rng(sorted(devices))


class Noise:
    """Streams of noise, one per tangent, that the same seed repeats, however the tangents are cut into chunks.

    Args:
        seed: Seed of the first tangent; tangent k has seed + k.
        tangents: Which of the tangents are drawn.
        distribution: Distribution of each number: mean 0, variance 1.
        device: On which to draw.
    """

    def __init__(self, seed: int, tangents: range, distribution: Distribution, device: torch.device):
        self._distribution = distribution
        self._streams = [torch.Generator(device).manual_seed(seed + k) for k in tangents]

    def draw(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the next numbers of all streams, (tangents, *shape)."""
        if not self._streams:
            raise ValueError("Noise has no tangents to draw")
        found = torch.empty((len(self._streams), *shape), dtype=dtype, device=self._streams[0].device)
        for part, stream in zip(found, self._streams, strict=True):
            if self._distribution == "gaussian":
                part.normal_(generator=stream)
            else:
                part.bernoulli_(0.5, generator=stream)
        return found if self._distribution == "gaussian" else found.mul_(2).sub_(1)

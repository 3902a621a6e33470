"""Handwritten digits of scikit-learn, 8 by 8 pixels, and a small encoder, trained on a third of them and frozen."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from loopgrad.experiments.tasks.streams import random_stream

SIZE = 64  # numbers of a vector
STEPS, BATCH_SIZE, RATE = 400, 60, 3e-3
RECIPE = f"two layers, {STEPS} steps of {BATCH_SIZE}, rate {RATE}, version 1"
BLANK = "blank"


class Digits(NamedTuple):
    """The images, and which of them are for what.

    Attributes:
        images: (images, 8, 8) float32 in [0, 1].
        labels: (images,) int64.
        parts: Numbers of the images that the encoder is trained on, of those on boards to train on, and of those on
            boards that are held out: a third of each digit.
    """

    images: np.ndarray
    labels: np.ndarray
    parts: tuple[np.ndarray, np.ndarray, np.ndarray]


@lru_cache(maxsize=1)
def digits() -> Digits:
    """Return the images; their split is always the same.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("images of digits are scikit-learn's: pip install 'loopgrad[vision]'")
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    labels = found.target.astype(np.int64)
    order = random_stream(0, 3).permutation(len(labels))
    own = [order[labels[order] == digit] for digit in range(10)]
    parts = [np.sort(np.concatenate([rows[i::3] for rows in own])) for i in range(3)]
    return Digits((found.images / 16).astype(np.float32), labels, (parts[0], parts[1], parts[2]))


@dataclass(frozen=True)
class DigitEncoder:
    """Vectors of the images: the last layer but one of a net that names the digits of its third of them.

    It is trained at first use, in seconds, from weights and batches of its own seed, and then frozen: the same on a
    machine with the same version of torch.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        return "digits"

    @property
    def num_parameters(self) -> int:
        """Its weights, those that name digits left out."""
        return sum(weight.numel() for weight in _first_weights()[:-2])

    def digest(self) -> str | None:
        """Return a hash of the images, the recipe and the version of torch; None without scikit-learn."""
        if importlib.util.find_spec("sklearn") is None:
            return None
        found = hashlib.sha256(f"{RECIPE} {torch.__version__}".encode())
        found.update(digits().images.tobytes() + digits().labels.tobytes())
        return found.hexdigest()

    def encode(self, texts: Sequence[str], unit: str) -> list[np.ndarray]:
        """Return the vector of each image, named by its number, and of an empty one."""
        data = digits()
        images = [np.zeros((8, 8), np.float32) if text == BLANK else data.images[int(text)] for text in texts]
        with torch.no_grad():
            return [row[None] for row in _vectors(torch.from_numpy(np.stack(images)), trained()).numpy()]


def accuracy() -> float:
    """Return the share of the images that the encoder has not seen whose digit it names."""
    data = digits()
    rows = np.concatenate(data.parts[1:])
    with torch.no_grad():
        named = _logits(torch.from_numpy(data.images[rows]), trained()).argmax(1).numpy()
    return float((named == data.labels[rows]).mean())


@lru_cache(maxsize=1)
@torch.enable_grad()
def trained() -> list[Tensor]:
    """Return the weights of the encoder and of the layer that names digits."""
    data, weights = digits(), [weight.requires_grad_() for weight in _first_weights()]
    images, labels = (torch.from_numpy(it[data.parts[0]]) for it in (data.images, data.labels))
    stream = random_stream(0, 4)
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=0.1)
    for _ in range(STEPS):
        rows = torch.from_numpy(stream.permutation(len(images))[:BATCH_SIZE])
        loss = F.cross_entropy(_logits(images[rows], weights), labels[rows])
        gradients = torch.autograd.grad(loss, weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
    return [weight.detach() for weight in weights]


def _first_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(256, 64), (256,), (SIZE, 256), (SIZE,), (10, SIZE), (10,)]
    return [
        torch.zeros(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * (2 / shape[1]) ** 0.5
        for shape in shapes
    ]


def _vectors(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Map (images, 8, 8) to (images, SIZE)."""
    hidden = F.linear(images.flatten(1), weights[0], weights[1]).relu()
    return F.linear(hidden, weights[2], weights[3]).relu()


def _logits(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return F.linear(_vectors(images, weights), weights[4], weights[5])

"""The encoder that knows nothing: each word a random direction, what a trained encoder is to be compared with."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class RandomWords:
    """Words and signs as random vectors of length 1, drawn from the hash of the word in small letters.

    A sentence is the mean of its words, scaled to length 1, so that their order is lost; tokens are the words, without
    their neighbours.

    Attributes:
        size: Numbers of a vector.
    """

    size: int = 384

    @property
    def name(self) -> str:
        """What it is called."""
        return f"random words of {self.size}"

    @property
    def num_parameters(self) -> int:
        """It has no weights."""
        return 0

    def digest(self) -> str | None:
        """Return a hash of all that decides its vectors."""
        return hashlib.sha256(f"random words 1, {self.size}".encode()).hexdigest()

    def encode(self, texts: Sequence[str], unit: str) -> list[np.ndarray]:
        """Return the vectors of each text, float32 (vectors, size).

        Raises:
            ValueError: A text has no words.
        """
        return [self._encoded(text, unit) for text in texts]

    def _encoded(self, text: str, unit: str) -> np.ndarray:
        words = np.array([self._word(word) for word in _WORD.findall(text.lower())])
        if not len(words):
            raise ValueError(f"a text without words: {text[:60]!r}")
        if unit == "token":
            return words.astype(np.float32)
        mean = words.mean(0, keepdims=True)
        return (mean / np.linalg.norm(mean)).astype(np.float32)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).standard_normal(self.size)
        return vector / np.linalg.norm(vector)

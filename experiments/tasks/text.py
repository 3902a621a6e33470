"""Character text for language models: windows of a text, in which each character is to be told from those before it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of
from loopgrad.experiments.tasks.streams import step_stream
from loopgrad.experiments.tasks.tales import tales
from loopgrad.experiments.tasks.text_files import read_text

_CHUNK = 2**20  # characters that are turned into tokens at once


@dataclass(frozen=True)
class Text(Task):
    """Tell the next character, at every place of a window of text.

    Tokens are the different characters of the text, in their order. The label of a place is the character behind it,
    and the last place of a window has none. Training windows begin anywhere in the first nine tenths; the last tenth,
    cut into windows one after the other, is the test set. The text is made or read at first use.

    Cost:
        A text in memory takes six bytes a character at most, and its making about a second per million.
    Not recommended when:
        The model sees the whole window at once, as TRM, HRM and FeedForward do: the answer stands beside the question.
        You want to compare with published bits per character: their splits and vocabularies are others.

    Attributes:
        length: Characters of a window, at least 2.
        path: A file of UTF-8 text, see `text_files.read_text`; None for `tales.tales`, whose long dependencies are
            known.
        num_chars: Characters of the tales; not with `path`. None: 1,000,000.
        num_test: Windows of the test set; None: all that the last tenth holds, at most 512.
        data_seed: Decides the tales, and with the seed of a run which windows it sees.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: the file is no text, or too short.

    Example:
        >>> from loopgrad.experiments.tasks import Text
        >>> task = Text(length=24, num_chars=2000)
        >>> batch = task.train_batch(seed=0, step=0, batch_size=3)
        >>> (batch.labels[:, :-1] == batch.inputs[:, 1:]).all().item()
        True
    """

    length: int = 256
    path: str | None = None
    num_chars: int | None = None
    num_test: int | None = None
    data_seed: int = 0

    asks_ahead = True  # a label is the input behind it

    def __post_init__(self) -> None:
        self.check_int("length", 2)
        self.check_int("num_chars", 1, optional=True)
        self.check_int("num_test", 1, optional=True)
        self.check_int("data_seed", 0)
        if self.path is not None and self.num_chars is not None:
            raise ValueError("Text(num_chars=...) is for the tales: leave it out with path=..., which is read whole")

    @property
    def spec(self) -> TokenSpec:
        """The characters of the text."""
        return TokenSpec(self._read[0], self.length)

    @property
    def held_out(self) -> str:
        """The part of the text that training never shows."""
        symbols = self.spec.symbols
        return "".join(symbols[token] for token in self._parts[1].tolist())

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return windows that begin at random places of the first nine tenths."""
        rng, shown = step_stream(self.data_seed, seed, step, batch_size), self._parts[0]
        starts = rng.integers(0, len(shown) - self.length + 1, batch_size)
        return _batch(shown[starts[:, None] + np.arange(self.length)])

    def test_set(self) -> Batch:
        """Return the windows of the last tenth, from its beginning on."""
        held_out = self._parts[1]
        count = min(512, len(held_out) // self.length) if self.num_test is None else self.num_test
        return _batch(held_out[: count * self.length].reshape(count, self.length))

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether every next character is told right; the last prediction is not looked at."""
        self.check_tokens(inputs, predictions)
        return (predictions[:, :-1] == inputs[:, 1:]).all(dim=1)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show the window above what is told of it, each character below the one that it follows."""
        rows = ["".join(self.symbols_of(tokens)).translate(_SHOWN) for tokens in (inputs, answer)]
        return f"text {rows[0]}\nnext {rows[1]}"

    @cached_property
    def _read(self) -> tuple[tuple[str, ...], np.ndarray]:
        """The symbols, and the text as their numbers."""
        text = tales(self.num_chars or 1_000_000, self.data_seed) if self.path is None else read_text(self.path)
        symbols = tuple(sorted(set(text)))
        number = np.zeros(ord(symbols[-1]) + 1 if symbols else 1, dtype=np.uint16)
        number[list(map(ord, symbols))] = np.arange(len(symbols))
        chunks = [text[at : at + _CHUNK].encode("utf-32-le") for at in range(0, len(text), _CHUNK)]
        tokens = [number[np.frombuffer(chunk, dtype="<u4")] for chunk in chunks]
        return symbols, np.concatenate([*tokens, number[:0]])

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """What training shows, and what it does not."""
        tokens, windows = self._read[1], self.num_test or 1
        needed = 10 * windows * self.length
        if len(tokens) < needed:
            what = "the tales have" if self.path is None else f"{self.path}: the text has"
            remedy = "raise num_chars or lower length" if self.path is None else "lower length"
            raise ValueError(
                f"{what} {len(tokens)} characters, of which the last tenth is to hold {windows} windows of "
                f"{self.length}: {remedy}" + (", or num_test" if self.num_test else "")
            )
        if self.spec.vocab_size < 2:
            raise ValueError(f"{self.path}: all characters of the text are {''.join(self._read[0])!r}: nothing to tell")
        shown = len(tokens) - len(tokens) // 10
        return tokens[:shown], tokens[shown:]


_SHOWN = str.maketrans({"\n": "\u21b5", "\t": "\u21e5"})


def _batch(windows: np.ndarray) -> Batch:
    labels = np.full(windows.shape, IGNORE, dtype=np.int64)
    labels[:, :-1] = windows[:, 1:]
    return batch_of(windows, labels)

"""Stories with questions as tokens: each stands for a sentence or a word, whose vector a frozen encoder gives."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from loopgrad.experiments.tasks.base import IGNORE, Batch, Task, TokenSpec, batch_of
from loopgrad.experiments.tasks.feature_store import features_of
from loopgrad.experiments.tasks.stories import Story
from loopgrad.experiments.tasks.streams import epoch_rows, step_stream
from loopgrad.experiments.tasks.text_encoder import UNITS, Encoder, FolderEncoder
from loopgrad.experiments.tasks.whitening import whitened
from loopgrad.experiments.tasks.word_vectors import RandomWords
from loopgrad.models.frozen import FeatureTable, SlotLayout

MOST_SLOTS = 10_000


class _Part(NamedTuple):
    inputs: np.ndarray  # (stories, slots)
    labels: np.ndarray
    hops: list[str]


@dataclass(frozen=True)
class StoryTask(Task):
    """Base of `Babi` and `Clutrr`: what they read becomes rows of slots.

    A row holds the answer slots, the question, the statements with the last one first (so that a place says how far
    back a statement lies, Sukhbaatar et al. 2015), and is filled up; see `SlotLayout`. The vectors of the texts are
    made at first use, once, and kept on the disk, see `feature_store.features_of`.

    Attributes:
        path: The folder of the published files.
        unit: What has a slot: each "sentence", or each "token" of the encoder's, in the context of its sentence.
        encoder: None for MiniLM (extra [text]); "random" for random vectors of words, which know nothing; or a folder
            in the layout of Hugging Face.
        features: Folder of the vectors; None for one in the user's cache.
        most_statements: Longer stories are left out of both parts, so that rows are shorter; None: all are taken.
        whiten: Directions of largest variance that are kept of the vectors, each scaled to the same one, as the stories
            to train on tell, see `whitening.whitened`; None: vectors as the encoder gives them.
    """

    path: str | None = None
    unit: str = "sentence"
    encoder: str | None = None
    features: str | None = None
    most_statements: int | None = field(default=None, kw_only=True)
    whiten: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self.check_int("most_statements", 1, optional=True)
        self.check_int("whiten", 1, optional=True)
        if self.unit not in UNITS:
            raise ValueError(f"{type(self).__name__}(unit=...) must be one of {', '.join(UNITS)}, got {self.unit!r}")

    def __getstate__(self) -> dict[str, Any]:
        # what was read and encoded lies in files, which another process reads itself
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @abstractmethod
    def read(self) -> tuple[list[Story], list[Story]]:
        """Return the stories to train on and those held out.

        Raises:
            ValueError: `path` is None, or the files are malformed.
        """

    def folder(self) -> str:
        """Return `path`.

        Raises:
            ValueError: It is None.
        """
        if self.path is None:
            raise ValueError(f"{type(self).__name__} reads published files: give their folder, task.path=FOLDER")
        return self.path

    @property
    def text_encoder(self) -> Encoder:
        """What makes the vectors."""
        return RandomWords() if self.encoder == "random" else FolderEncoder(self.encoder)

    @property
    def layout(self) -> SlotLayout:
        """What the numbers of tokens mean."""
        return self._table.layout

    @property
    def spec(self) -> TokenSpec:
        """The tokens: answers, signs, and the texts."""
        return TokenSpec(self._symbols, self._parts[0].inputs.shape[1])

    def frozen(self) -> FeatureTable:
        """Return the vectors of the texts."""
        return self._table

    def train_batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Return stories of the training files, each once per epoch."""
        step_stream(0, seed, step, batch_size)  # which says what is wrong with them
        part = self._parts[0]
        rows = epoch_rows(len(part.inputs), seed, step, batch_size)
        return batch_of(part.inputs[rows], part.labels[rows])

    def test_set(self) -> Batch:
        """Return the held-out stories, in the order of their file."""
        return batch_of(self._parts[1].inputs, self._parts[1].labels)

    def test_groups(self) -> Mapping[str, torch.Tensor]:
        """Return the rows of the held-out stories by their hops."""
        hops = self._parts[1].hops
        names = sorted(
            set(hops), key=lambda name: [int(it) if it.isdigit() else it for it in re.split("([0-9]+)", name)]
        )
        return {name: torch.tensor([i for i, own in enumerate(hops) if own == name]) for name in names}

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge whether each answer slot holds the answer that the files give to this question about this story."""
        self.check_tokens(inputs, predictions)
        slots, found = self.layout.answer_slots, []
        rows = np.ascontiguousarray(inputs.numpy().astype(np.int32))
        for row, predicted in zip(rows, predictions[:, :slots].tolist(), strict=True):
            answers = self._answers.get(row.tobytes(), ())
            found.append(any(all(w in (IGNORE, p) for w, p in zip(want, predicted, strict=True)) for want in answers))
        return torch.tensor(found, dtype=torch.bool)

    def render(self, inputs: torch.Tensor, answer: torch.Tensor) -> str:
        """Show a story, its question, and the answer."""
        words = self.symbols_of(answer)
        statements, question = self.texts_of(inputs)
        known = self._answers.get(inputs.numpy().astype(np.int32).tobytes(), [[0] * self.layout.answer_slots])
        slots = max(sum(token != IGNORE for token in tokens) for tokens in known)
        asked = [word for word in words[:slots] if word != "?"]
        return "\n".join([*statements, f"{question}  {' '.join(asked)}"])

    def texts_of(self, inputs: torch.Tensor) -> tuple[list[str], str]:
        """Return the statements of a row, in the order in which they are told, and its question."""
        layout, told = self.layout, self._first
        texts = [(token, told[token]) for token in inputs.tolist() if token in told]
        statements = [text for token, text in texts if token >= layout.first_statement]
        return statements[::-1], "".join(text for token, text in texts if token < layout.first_statement)

    @cached_property
    def _read(self) -> tuple[list[Story], list[Story]]:
        most = self.most_statements
        if most is None:
            return self.read()
        train, test = ([story for story in part if len(story.statements) <= most] for part in self.read())
        if not train or not test:
            raise ValueError(
                f"{type(self).__name__}(most_statements={most}) leaves no story to {'try' if train else 'train'} on: "
                "raise it"
            )
        return train, test

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """The different questions and statements, in the order of the files."""
        both = [*self._read[0], *self._read[1]]
        questions = dict.fromkeys(story.question for story in both)
        return list(questions), list(dict.fromkeys(text for story in both for text in story.statements))

    @cached_property
    def _made(self) -> tuple[FeatureTable, list[range]]:
        """The table, and the tokens of each text."""
        (questions, statements), encoder = self._texts, self.text_encoder
        found = features_of([*questions, *statements], self.unit, encoder, self.features)
        both = [*self._read[0], *self._read[1]]
        layout = SlotLayout(
            answers=len({word for story in both for word in story.answer}),
            answer_slots=max(len(story.answer) for story in both),
            questions=int(found.counts[: len(questions)].sum()),
        )
        first = layout.first_question + found.starts
        tokens = [range(a, a + n) for a, n in zip(first.tolist(), found.counts.tolist(), strict=True)]
        rows = found.rows
        if self.whiten is not None:
            fit = {text for story in self._read[0] for text in (story.question, *story.statements)}
            mask = np.repeat([text in fit for text in (*questions, *statements)], found.counts)
            try:
                rows = whitened(rows, mask, self.whiten)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}(whiten={self.whiten}) is {error}: lower it") from error
        return FeatureTable(torch.from_numpy(rows), layout, encoder.num_parameters), tokens

    @property
    def _table(self) -> FeatureTable:
        return self._made[0]

    @cached_property
    def _words(self) -> list[str]:
        return sorted({word for part in self._read for story in part for word in story.answer})

    @cached_property
    def _symbols(self) -> tuple[str, ...]:
        texts = [text for part in self._texts for text in part]
        named = [
            text if len(own) == 1 else f"{text} [{i}]"
            for text, own in zip(texts, self._made[1], strict=True)
            for i in range(len(own))
        ]
        return (*self._words, "-", *(f"answer {i + 1}" for i in range(self.layout.answer_slots)), *named)

    @cached_property
    def _first(self) -> dict[int, str]:
        """The texts by the first of their tokens."""
        texts = [text for part in self._texts for text in part]
        return {own[0]: text for text, own in zip(texts, self._made[1], strict=True)}

    @cached_property
    def _parts(self) -> tuple[_Part, _Part]:
        questions, statements = (dict(zip(texts, own, strict=True)) for texts, own in self._split())
        rows = [[_row(story, questions, statements) for story in part] for part in self._read]
        most = max(len(row) for part in rows for row in part) + self.layout.answer_slots
        if most > MOST_SLOTS:
            raise ValueError(f"{self.path}: a story of {most} slots, and at most {MOST_SLOTS} are read: unit=sentence")
        return self._part(self._read[0], rows[0], most), self._part(self._read[1], rows[1], most)

    def _split(self) -> list[tuple[list[str], list[range]]]:
        count = len(self._texts[0])
        return [(self._texts[0], self._made[1][:count]), (self._texts[1], self._made[1][count:])]

    def _part(self, stories: Sequence[Story], rows: Sequence[list[int]], slots: int) -> _Part:
        layout, number = self.layout, {word: i for i, word in enumerate(self._words)}
        inputs = np.full((len(rows), slots), layout.pad, dtype=np.int32)
        labels = np.full((len(rows), slots), IGNORE, dtype=np.int32)
        inputs[:, : layout.answer_slots] = layout.first_slot + np.arange(layout.answer_slots)
        for i, (story, row) in enumerate(zip(stories, rows, strict=True)):
            inputs[i, layout.answer_slots : layout.answer_slots + len(row)] = row
            labels[i, : len(story.answer)] = [number[word] for word in story.answer]
        return _Part(inputs, labels, [story.hops for story in stories])

    @cached_property
    def _answers(self) -> dict[bytes, list[list[int]]]:
        found: dict[bytes, list[list[int]]] = {}
        for part in self._parts:
            for row, label in zip(part.inputs, part.labels[:, : self.layout.answer_slots].tolist(), strict=True):
                known = found.setdefault(row.tobytes(), [])
                if label not in known:
                    known.append(label)
        return found


def _row(story: Story, questions: Mapping[str, range], statements: Mapping[str, range]) -> list[int]:
    """Return the tokens of a story: of its question, and of its statements with the last one first."""
    return [*questions[story.question], *(token for text in reversed(story.statements) for token in statements[text])]

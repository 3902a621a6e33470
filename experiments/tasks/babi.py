"""bAbI: short stories of rooms, shapes and sizes with a question each, in the words of the published files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loopgrad.experiments.tasks.babi_files import PATHS, babi_file, read_babi
from loopgrad.experiments.tasks.stories import Story
from loopgrad.experiments.tasks.story_task import StoryTask

NUMBERS = (2, 15, 16, 17, 18, 19)
_STEP = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")
_FROM_TO = re.compile(r"How do you go from the (\w+) to the (\w+)\?")
_BACK = {"n": "s", "s": "n", "e": "w", "w": "e"}


@dataclass(frozen=True)
class Babi(StoryTask):
    """Answer questions about stories: task 2, 15, 16, 17, 18 or 19 of bAbI, from its published files.

    What is right is the answer of the file; of task 19 (paths) any moves, as many as there are answer slots, that lead
    from room to room by what the story says and end where they should.

    Cost:
        Ten thousand questions are read in a second or two; the vectors of some hundred sentences are made once.
    Not recommended when:
        Results are compared with published ones of models that train their own vectors of words.
    Reference:
        Weston et al. 2016, arXiv 1502.05698; Sukhbaatar et al. 2015, arXiv 1503.08895.

    Attributes:
        number: The task of bAbI.
        path: The folder of the files, such as en-10k.
        unit: "sentence" or "token", see `StoryTask`.
        encoder: None for MiniLM, "random", or a folder, see `StoryTask`.
        features: Folder of the vectors; None for one in the user's cache.
        most_statements: Longer stories are left out; None: all are taken.
        whiten: Directions that are kept of the vectors, each scaled to the same variance, see `StoryTask`; None: all.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: no path, malformed files, or no encoder.

    Example:
        >>> from loopgrad.experiments.tasks import Babi
        >>> Babi(number=3)
        Traceback (most recent call last):
        ValueError: Babi(number=...) must be one of 2, 15, 16, 17, 18, 19, got 3
    """

    references = ("weston2016towards", "sukhbaatar2015memory")
    number: int = 19

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.number, bool) or self.number not in NUMBERS:
            named = ", ".join(map(str, NUMBERS))
            raise ValueError(f"Babi(number=...) must be one of {named}, got {self.number!r}")

    def read(self) -> tuple[list[Story], list[Story]]:
        """Return the stories of both files."""
        train, test = (babi_file(self.folder(), self.number, part) for part in ("train", "test"))
        found = read_babi(train, self.number), read_babi(test, self.number)
        if self.number == PATHS:
            for path, stories in zip((train, test), found, strict=True):
                for i, story in enumerate(stories):
                    if not walks(story.statements, story.question, story.answer):
                        raise ValueError(f"{path}: question {i + 1} is not answered by a path through its story")
        return found

    def is_solved(self, inputs: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        """Judge by the answer of the file; paths by walking them."""
        if self.number != PATHS:
            return super().is_solved(inputs, predictions)
        self.check_tokens(inputs, predictions)
        words, found = self.spec.symbols, []
        for row, predicted in zip(inputs, predictions[:, : self.layout.answer_slots].tolist(), strict=True):
            found.append(walks(*self.texts_of(row), [words[p] if 0 <= p < len(words) else "" for p in predicted]))
        return torch.tensor(found, dtype=torch.bool)


def walks(statements: Sequence[str], question: str, moves: Sequence[str]) -> bool:
    """Tell whether moves, of n, s, e and w, lead from where to where a question asks, by what statements say."""
    asked = _FROM_TO.fullmatch(question)
    if asked is None:
        return False
    doors: dict[tuple[str, str], str] = {}
    for text in statements:
        if (told := _STEP.fullmatch(text)) is None:
            return False
        there, way, here = told[1], told[2][0], told[3]
        doors[here, way], doors[there, _BACK[way]] = there, here
    room: str | None = asked[1]
    for move in moves:
        room = doors.get((room or "", move))
    return room == asked[2]

"""Family relationships, knights and knaves, and zebra puzzles of reasoning-gym, as stories in a frozen latent space."""

from dataclasses import dataclass
from itertools import islice

from loopgrad.experiments.tasks.generated_stories import KINDS, generated
from loopgrad.experiments.tasks.stories import Story, check_story
from loopgrad.experiments.tasks.story_task import StoryTask

DEFAULTS = {"family_relationships": (2000, 500), "knights_knaves": (2000, 500), "zebra_puzzles": (400, 100)}


@dataclass(frozen=True)
class ReasoningGym(StoryTask):
    """Solve puzzles in words that the package reasoning-gym makes, trained on small ones and tried on larger ones too.

    Held-out puzzles are of as many people (houses in zebra puzzles) as those to train on, and of more, in equal
    numbers, and counted by that number. None of them is among those to train on. Of knights and knaves there is an
    answer slot for each person, "knight" or "knave" whatever the puzzle calls them; all of them must be right.

    Cost:
        Thousands of puzzles are made in seconds, each zebra puzzle in a tenth of one; the vectors of their sentences,
        most of them different, once, in minutes on a CPU.
    Not recommended when:
        Results are compared with published ones of language models, which read the whole text at once.
    Reference:
        Stojanovski et al. 2025, arXiv 2505.24760; Sukhbaatar et al. 2015, arXiv 1503.08895.

    Attributes:
        path: None: nothing is read.
        unit: "sentence" or "token", see `StoryTask`.
        encoder: None for MiniLM, "random", or a folder, see `StoryTask`.
        features: Folder of the vectors; None for one in the user's cache.
        most_statements: Longer stories are left out; None: all are taken.
        whiten: Directions that are kept of the vectors, each scaled to the same variance, see `StoryTask`; None: all.
        name: "family_relationships", "knights_knaves" or "zebra_puzzles".
        least: Fewest people or houses.
        most: Most of those to train on.
        test_most: Most of held-out ones; None for `most`.
        num_train: Puzzles to train on; None for 2000, of zebra puzzles 400.
        num_test: Held-out ones; None for 500 and 100.
        data_seed: Decides the puzzles.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: reasoning-gym is missing (extra [reasoning]), or
            there are not so many puzzles.

    Example:
        >>> from loopgrad.experiments.tasks import ReasoningGym
        >>> ReasoningGym(name="knights_knaves", least=2, most=9)
        Traceback (most recent call last):
        ValueError: ReasoningGym(most=9) must be between least=2 and 8
    """

    references = ("stojanovski2025reasoning", "sukhbaatar2015memory")
    name: str = "family_relationships"
    least: int = 3
    most: int = 5
    test_most: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    data_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            raise ValueError("ReasoningGym(path=...) must be None: its puzzles are made, not read")
        if self.name not in KINDS:
            raise ValueError(f"ReasoningGym(name=...) must be one of {', '.join(KINDS)}, got {self.name!r}")
        low, high = KINDS[self.name].sizes
        self.check_int("least", low, high)
        for name, value, under in (("most", self.most, "least"), ("test_most", self.test_most, "most")):
            self.check_int(name, 1, optional=name == "test_most")
            if value is not None and not getattr(self, under) <= value <= high:
                raise ValueError(
                    f"ReasoningGym({name}={value}) must be between {under}={getattr(self, under)} and {high}"
                )
        self.check_int("num_train", 1, 10**6, optional=True)
        self.check_int("num_test", 1, 10**6, optional=True)
        self.check_int("data_seed", 0, 2**31 - 1)

    def read(self) -> tuple[list[Story], list[Story]]:
        """Return the puzzles to train on and those held out, of each size as many."""
        counts = [own or other for own, other in zip((self.num_train, self.num_test), DEFAULTS[self.name], strict=True)]
        trained = range(self.least, self.most + 1)
        held_out = range(self.least, (self.test_most or self.most) + 1)
        train, test = [], []
        for size in held_out:
            wanted = _share(counts[1], size, held_out)
            more = _share(counts[0], size, trained) if size in trained else 0
            made = list(islice(generated(self.name, size, self.data_seed), wanted + more))
            if len(made) < wanted + more:
                raise ValueError(
                    f"reasoning-gym makes {len(made)} different puzzles of {made[-1].hops if made else size}, and "
                    f"{wanted + more} are asked for: lower num_train or num_test, or raise least"
                )
            if wrong := next((wrong for story in made if (wrong := check_story(story))), ""):
                raise ValueError(f"reasoning-gym gives {wrong}")
            test += made[:wanted]
            train += made[wanted:]
        return train, test


def _share(count: int, size: int, sizes: range) -> int:
    """Return how many of `count` are of a size: as many as of each other, one more of the first ones."""
    each, left = divmod(count, len(sizes))
    return each + (size - sizes.start < left)

"""CLUTRR: how two people of a story are related, through chains of relations longer than those of training."""

from dataclasses import dataclass

from loopgrad.experiments.tasks.clutrr_files import clutrr_file, read_clutrr
from loopgrad.experiments.tasks.stories import Story
from loopgrad.experiments.tasks.story_task import StoryTask


@dataclass(frozen=True)
class Clutrr(StoryTask):
    """Say how two people are related, by a chain of k relations: few of them in training, up to ten held out.

    Cost:
        A few thousand stories are read in a second; vectors of their sentences are made once, in minutes on a CPU.
    Not recommended when:
        Results are compared with published ones that train on files other than `training` says.
    Reference:
        Sinha et al. 2019, arXiv 1908.06177; Sukhbaatar et al. 2015, arXiv 1503.08895.

    Attributes:
        path: The folder of the files NAME_train.csv, NAME_validation.csv and NAME_test.csv.
        name: NAME.
        training: Which of the files is trained on: "train", or "validation", stories of the same k and fewer.
        unit: "sentence" or "token", see `StoryTask`.
        encoder: None for MiniLM, "random", or a folder, see `StoryTask`.
        features: Folder of the vectors; None for one in the user's cache.
        most_statements: Longer stories are left out; None: all are taken.
        whiten: Directions that are kept of the vectors, each scaled to the same variance, see `StoryTask`; None: all.

    Raises:
        ValueError: A hyperparameter is out of range; at first use: no path, malformed files, or no encoder.

    Example:
        >>> from loopgrad.experiments.tasks import Clutrr
        >>> Clutrr(training="test")
        Traceback (most recent call last):
        ValueError: Clutrr(training=...) must be 'train' or 'validation', got 'test'
    """

    references = ("sinha2019clutrr", "sukhbaatar2015memory")
    name: str = "gen_train234_test2to10"
    training: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training not in ("train", "validation"):
            raise ValueError(f"Clutrr(training=...) must be 'train' or 'validation', got {self.training!r}")
        if not self.name or "/" in self.name or "\\" in self.name or "\0" in self.name:
            raise ValueError(f"Clutrr(name=...) must be the beginning of the files' names, got {self.name!r}")

    def read(self) -> tuple[list[Story], list[Story]]:
        """Return the stories of both files."""
        train, test = (clutrr_file(self.folder(), self.name, part) for part in (self.training, "test"))
        return read_clutrr(train), read_clutrr(test)

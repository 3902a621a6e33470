"""How synthetic gradients are trained beside a model: which synthesiser, and the optimiser of its weights."""

from dataclasses import dataclass

import torch

from loopgrad.experiments.trainer.joined import Part
from loopgrad.experiments.trainer.rules import ADAM
from loopgrad.models import Synthesiser
from loopgrad.models.model import Model


@dataclass(frozen=True)
class SyntheticGradients:
    """A `Synthesiser` of the carried state, trained by Adam beside the model; see there.

    Its rate follows the trainer's warm-up and schedule; its weights are neither decayed nor averaged, nor do they count
    when gradients are clipped. Costs in records are those of the estimator, without it; `saved_bytes` of a log has it.

    Args:
        hidden_size: Units of its hidden layer; 0 for a linear map.
        learning_rate: Of its weights.

    Not recommended when:
        All segments of an update fit as checkpoints; see `Synthesiser`.

    Raises:
        ValueError: A value is out of range.

    Reference:
        Jaderberg et al. 2017, arXiv 1608.05343.
    """

    hidden_size: int = 0
    learning_rate: float = 1e-3

    references = Synthesiser.references

    def __post_init__(self) -> None:
        if self.hidden_size < 0:
            raise ValueError(f"hidden_size={self.hidden_size} must be at least 0, which is a linear map")
        if not 0 <= self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate={self.learning_rate} must be a finite number of at least 0")

    def of(self, model: Model, max_segments: int, seed: int) -> Synthesiser:
        """Return the synthesiser of a model, on its device and of its dtype, or of float32 if that is wider.

        Raises:
            ValueError: The model has no states that it could read.
        """
        like = next(model.parameters())
        dtype = torch.promote_types(like.dtype, torch.float32)
        return Synthesiser.of(model, max_segments, self.hidden_size, seed).to(like.device, dtype)

    def part(self, synthesiser: Synthesiser) -> Part:
        """Return its optimiser."""
        return Part(torch.optim.Adam(synthesiser.parameters(), self.learning_rate), ADAM, counted=True)

"""The optimiser of a model: its weights divided among rules."""

from typing import Any

from torch import Tensor, nn

from loopgrad.experiments.trainer.joined import Joined
from loopgrad.experiments.trainer.rules import Keys, SignSGDRule, UpdateRule, Weight
from loopgrad.models.model import Model


def optimizer_of(model: Model, rule: UpdateRule, puzzle_rule: SignSGDRule | None, keys: Keys) -> Joined:
    """Return the optimiser of a model.

    Args:
        model: The model; with a rule for its puzzle vectors the gradient of their table is sparse from now on.
        rule: Of all weights, or of all but the puzzle vectors.
        puzzle_rule: Of the puzzle vectors; None for none of their own.
        keys: What the trainer tells the rule.

    Raises:
        ValueError: There is a rule for puzzle vectors, and there are none.
    """
    inside = {id(parameter) for parameter in model.cell.parameters() if parameter.dim() == 2}
    weights = [Weight(parameter, id(parameter) in inside) for parameter in model.parameters()]
    if puzzle_rule is None:
        return Joined(rule.parts(weights, keys))
    puzzles = model.embedding.puzzles
    if puzzles is None:
        raise ValueError(f"puzzle_optimizer: {type(model).__name__} has no puzzle vectors here: leave it out")
    puzzles.sparse = True
    rest = [weight for weight in weights if weight.tensor is not puzzles.weight]
    return Joined([*rule.parts(rest, keys), puzzle_rule.part(puzzles.weight)])


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient, or the rows of a sparse one, each once."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def whole(tensor: Any) -> Tensor:
    """Return a tensor, or all of one that processes share; each of them must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def own_part(tensor: Any) -> Tensor:
    """Return a tensor, or what this process has of one that processes share."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def total_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together."""
    return whole(nn.utils.get_total_norm([dense(p.grad) for p in parameters if p.grad is not None]))


def clip(parameters: list[nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale gradients in place to a norm of at most `most`; sparse ones are left, of which the sign alone is read."""
    scaled = [p for p in parameters if p.grad is not None and not p.grad.is_sparse]
    nn.utils.clip_grads_with_norm_(scaled, most, norm)


def shared_table(model: Model, average: nn.Module) -> None:
    """Leave the puzzle vectors out of an average of the weights: it gets the table that is trained."""
    assert isinstance(average, Model)
    average.embedding.puzzles = model.embedding.puzzles

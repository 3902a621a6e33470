"""Problems of the suite: a cell with a state and inputs, the loop that is the reference, the loss that is taken."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import (
    Stationary,
)
from loopgrad.models import Coupling


@dataclass(frozen=True)
class Problem:
    """A cell with a state and inputs to start from, and the tensors whose gradient is looked at."""

    cell: nn.Module
    state: Any
    inputs: Any

    def sources(self) -> dict[str, torch.Tensor]:
        inner = self.cell.cell if isinstance(self.cell, Coupling) else self.cell
        found = {f"parameter {name}": p for name, p in inner.named_parameters()}
        for label, leaves in (("inputs", leaves_of(self.inputs)), ("state", leaves_of(self.state))):
            found |= {f"{label} {i}": leaf for i, leaf in enumerate(leaves)}
        closed_over = [t for m in self.cell.modules() if isinstance(m, Stationary) for t in m.closed_over]
        found |= {f"closed over {i}": t for i, t in enumerate(closed_over)}
        return {name: t for name, t in found.items() if t.requires_grad}


def leaves_of(tree: Any) -> list[torch.Tensor]:
    """Tensors of a nesting, found without the library's own flattening."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if hasattr(tree, "__dataclass_fields__"):
        tree = [getattr(tree, name) for name in tree.__dataclass_fields__]
    return [leaf for item in tree for leaf in leaves_of(item)] if isinstance(tree, list | tuple) else []


def loop(problem: Problem, num_steps: int, differentiated: int | None = None) -> Any:
    """The reference recursion: a hand-written loop, detached where the estimate begins."""
    state = problem.state
    for step in range(num_steps):
        if differentiated is not None and step == num_steps - differentiated:
            state = detached(state)
        state = problem.cell(state, problem.inputs, step)
    return state


def detached(tree: Any) -> Any:
    if tree is None:
        return None
    if isinstance(tree, torch.Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {key: detached(value) for key, value in tree.items()}
    if hasattr(tree, "__dataclass_fields__"):
        return type(tree)(**{name: detached(getattr(tree, name)) for name in tree.__dataclass_fields__})
    return type(tree)(detached(item) for item in tree)


def loss_of(state: Any) -> torch.Tensor:
    leaves = leaves_of(state)
    return sum(((leaf - 0.3 * i) ** 2).sum() + leaf.sin().sum() for i, leaf in enumerate(leaves))  # pyright: ignore

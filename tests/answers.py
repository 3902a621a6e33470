"""A readout asked on the way of a recursion: its problems, and the loop by hand that is the reference."""

from collections.abc import Sequence
from typing import Any

import torch
from problems import Problem, leaves_of
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.models import Coupling


class Driven(nn.Module):
    """A cell of the list that is shaken by an input of its own at each update."""

    def __init__(self, cell: nn.Module, alone: bool):
        super().__init__()
        self.cell, self.alone = cell, alone

    @property
    def period(self) -> int:
        return getattr(self.cell, "period", 1)

    def forward(self, state: Any, given: Any, step: int) -> Any:
        inputs, x = (None, given) if self.alone else given
        first, *rest = leaves_of(state)
        leaves, unflatten = tree.flatten(state)
        leaves[[leaf is first for leaf in leaves].index(True)] = first + 0.1 * x.sum()
        return self.cell(unflatten(leaves), inputs, step)


class Readout(nn.Module):
    """A loss per sample and a vector of the state that an update led to, with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, state: Any, inputs: Any, x: Tensor, step: int) -> dict[str, Any]:
        leaves = leaves_of(state)
        loss = sum(torch.cos(self.weight * leaf + x.sum() + step).flatten(1).sum(1) for leaf in leaves)
        return {"loss": loss, "state": leaves[0] * self.weight, "nothing": None, "hits": leaves[0].detach() > 0}


def driven(problem: Problem, couple: Any = None) -> Problem:
    """The problem with an input per update, coupled if a coupling is given."""
    cell = Driven(problem.cell, problem.inputs is None)
    return Problem(cell if couple is None else couple(cell), problem.state, problem.inputs)


def chosen(save: Any, num_steps: int, start: int = 0) -> list[int]:
    """The numbers of the updates whose answers are kept."""
    steps = range(start, start + num_steps)
    if isinstance(save, int):
        return [step for step in steps if (step + 1) % save == 0]
    return {"sum": [*steps], "all": [*steps], "last": [*steps][-1:]}[save] if isinstance(save, str) else list(save)


def by_hand(problem: Problem, xs: Tensor, readout: Any, save: Any, start: int = 0) -> tuple[Any, Any]:
    """The last plain state, and what is kept of the answers, of a loop without any estimator."""
    cell, coupled = problem.cell, isinstance(problem.cell, Coupling)
    state = cell.couple(problem.state) if coupled else problem.state
    kept: list[dict[str, Any]] = []
    for t, x in enumerate(xs.unbind(0)):
        state = cell(state, x if problem.inputs is None else (problem.inputs, x), start + t)
        if start + t in chosen(save, len(xs), start):
            kept.append(readout(cell.read(state) if coupled else state, problem.inputs, x, start + t))
    return cell.read(state) if coupled else state, joined(kept, save)


def joined(kept: Sequence[dict[str, Any]], save: Any) -> dict[str, Any]:
    join = {"sum": lambda parts: sum(part.long() if part.dtype == torch.bool else part for part in parts)}
    join["last"] = lambda parts: parts[0]
    how = join.get(save, torch.stack) if isinstance(save, str) else torch.stack
    return {name: None if kept[0][name] is None else how([each[name] for each in kept]) for name in kept[0]}


def loss_of_answers(outputs: dict[str, Any]) -> Tensor:
    weights = torch.linspace(0.5, 1.5, outputs["loss"].numel()).view_as(outputs["loss"])
    return (weights * outputs["loss"]).sum() + outputs["state"].sin().sum()

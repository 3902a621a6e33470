"""A forward pass without a graph whose first updates are watched, to learn what the cell reads beside its arguments."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd.graph import saved_tensors_hooks

from loopgrad.gradients import tree
from loopgrad.gradients.checks import version_of
from loopgrad.gradients.compiled import is_compiled
from loopgrad.gradients.contract import Stats, check_structure, may_differentiate, period_of
from loopgrad.gradients.functional_cell import FunctionalCell
from loopgrad.gradients.graphs import (
    HiddenTensor,
    alias,
    is_floating,
    next_number,
    reaches,
    refuse_older,
    requires_grad,
    search,
)
from loopgrad.gradients.reading import Kept, Reading, kept
from loopgrad.gradients.recompute import Conditions, run_without_graph
from loopgrad.gradients.rows_going import tried


class Watched:
    """The forward pass of an estimator: the first updates run with a graph that is examined and dropped.

    Watched is the first cycle, and two updates at least. What they read that requires grad, wherever the cell keeps it
    (in a list, a closure, an attribute, made by an encoder or a parametrization), is added to the cell's `others`. A
    tensor that an update makes of its state and a later one reads is state outside the state, and refused.

    Args:
        cell: The cell; `others` grows.
        strict: Whether state outside the state is refused.

    Attributes:
        watching: Whether the latest update was watched.
        keeps: Whether an update has read what an earlier one has derived, of weights or inputs, and kept.
    """

    def __init__(self, cell: FunctionalCell, strict: bool = True):
        self.cell, self.strict, self.watching, self.keeps = cell, strict, False, False
        self._left = max(period_of(cell.cell), 2)
        self._begin = next_number()
        self._entries: list[Tensor] = []
        self._plain: dict[int, tuple[Any, int]] = {}
        self._buffers: set[int] = set()
        # compiled code would be compiled once more, for the mode, and is not seen by it anyway
        self._compiled = is_compiled(cell.cell)
        self._parameters = frozen_parameters(cell.cell)

    def run(self, state: Any, inputs: Any, steps: range) -> Any:
        """Return the state after the updates `steps`, without a graph."""
        watched = steps[: self._left]
        for step in watched:
            before, after = self.update(state, inputs, step)
            check_structure(before, after)
            state = tree.map_tensors(Tensor.detach, after)
            del before, after  # one graph at a time
        if watched:
            torch.clear_autocast_cache()
        return run_without_graph(self.cell.cell, state, inputs, steps[len(watched) :])

    def update(self, state: Any, inputs: Any, step: int) -> tuple[Any, Any]:
        """Return the state as the update was given it, and the state after it; with a graph while watching."""
        cell = self.cell
        self.watching = self._left > 0
        if not self.watching:
            return state, cell.cell(state, tree.own_containers(inputs), step)
        self._left -= 1
        torch.clear_autocast_cache()  # casts of weights made before belong to other graphs
        self._buffers.update(map(id, cell.cell.buffers()))
        leaves, unflatten = tree.flatten(state)
        entries = [alias(leaf, True) for leaf in leaves]
        with torch.enable_grad():  # what the cell makes of its inputs and keeps may be read by all updates
            given = [tensor.view_as(tensor) for tensor in tree.tensors(inputs)]
        queue, since, read = iter(given), next_number(), Reading([*entries, *given])
        before, inputs = unflatten(entries), tree.map_tensors(lambda _: next(queue), inputs)
        # hooks of the caller's are for what is kept until backward; results that are saved would keep themselves alive
        # if they were not detached. torch.func.grad within the cell allows no hooks, where there are none
        hooks = _top_saved_tensors_default_hooks(True) is not None
        saving = saved_tensors_hooks(Tensor.detach, lambda tensor: tensor) if hooks else nullcontext()
        try:
            with torch.enable_grad(), saving, nullcontext() if self._compiled else read:
                after = cell.cell(before, inputs, step)
        except RuntimeError as error:
            if "leaf Variable that requires grad" in str(error) and "in-place" in str(error):
                raise RuntimeError(
                    "the cell changes its state or inputs in place, so its updates cannot be run again: write z + f(z) "
                    "instead of z.add_(f(z)), or use BPTT()"
                ) from error
            raise
        self._entries += [entry for entry in entries if is_floating(entry)]
        self._take_in(list(read.found.values()), tree.flatten(after)[0], [*entries, *given], since)
        if not self._left:
            self._entries = []
        return before, after

    def _take_in(self, read: list[Tensor], outputs: list[Any], given: list[Any], since: int) -> None:
        """Add what an update has read to the cell's other tensors."""
        cell, now = self.cell, next_number()
        known = {id(tensor) for tensor in cell.own}
        for tensor in read:
            if id(tensor) in known:
                continue
            if not tensor.requires_grad:
                self._plain.setdefault(id(tensor), (ref(tensor), version_of(tensor)))
            elif tensor.is_leaf or not since <= tensor.grad_fn._sequence_nr() < now:  # pyright: ignore
                if not tensor.is_leaf and self._begin <= tensor.grad_fn._sequence_nr() < now:  # pyright: ignore
                    self._check_no_state(tensor)
                    self.keeps = True
                cell.others.append(tensor)
        found = search(outputs, since, [t for t in (*cell.own, *given) if requires_grad(t) and not t.is_leaf])
        refuse_older(found)
        known = {id(tensor) for tensor in (*given, *cell.cell.parameters(), *cell.own)}
        cell.others += [leaf for leaf in found.leaves if id(leaf) not in known]

    def _check_no_state(self, tensor: Tensor) -> None:
        if self.strict and reaches(tensor, self._entries, self._begin):
            raise RuntimeError(
                f"the cell keeps a tensor of shape {tuple(tensor.shape)} that one update made of its state and that a "
                "later update reads (a cache in an attribute?), so a gradient through it would be lost: carry it in "
                "the state, detach it if no gradient is to go through it, or use BPTT()"
            )

    def frozen(self) -> "Frozen":
        """Return what no update has written to and backward must find as it is."""
        plain = [noted for key, noted in self._plain.items() if key not in self._buffers]
        known, before = set(map(id, self.cell.others)), self.cell.attributes
        found = kept(self.cell.cell).items()
        fresh = {key: named for key, named in found if key not in known and named[1] not in before}
        graphs = [name for name, tensor in fresh.values() if not tensor.is_leaf]
        if self.strict and graphs:
            warnings.warn(
                f"the cell leaves a tensor that requires grad in its attribute {graphs[0]!r}, and no gradient will go "
                "through it: return it in the state, or detach it before it is kept",
                stacklevel=2,
            )
        self.cell.kept = Kept(fresh)
        return Frozen(self._parameters, plain)


def run_watched(cell: nn.Module, state: Any, inputs: Any, steps: range) -> Any:
    """Return `run_without_graph`, where what the first updates derive of weights or inputs and keep has its graph."""
    if not may_differentiate(cell, state, inputs):
        return run_without_graph(cell, state, inputs, steps)
    return Watched(FunctionalCell(cell, state, inputs), strict=False).run(state, inputs, steps)


def seeing_all(
    cell: FunctionalCell, conditions: Conditions, run: Callable[[], Any], stats: Stats, num_steps: int
) -> Any:
    """Return run(); if it meets a tensor that nobody has passed, watch the first updates for such and run once more."""
    try:
        return run()
    except HiddenTensor:
        stats.cell_evaluations += 1  # the update that met it
        live = dict(cell.cell.named_buffers())
        with torch.no_grad():
            for name, buffer in conditions.buffers.items():  # as far as the attempt has changed them
                if not torch.equal(live[name], buffer):
                    live[name].copy_(buffer)
        conditions.set_generators(conditions.generators)
        watch(cell, conditions, stats, num_steps)
        return run()


def watch(cell: FunctionalCell, conditions: Conditions, stats: Stats, num_steps: int) -> None:
    """Watch the first updates for what the cell reads beside its arguments, and leave everything else as it was."""
    count = min(max(period_of(cell.cell), 2), num_steps)

    def updates(module: nn.Module, inputs: Any) -> None:
        Watched(cell).run(cell.unflatten_state(cell.state), inputs, range(count))

    with tried(), conditions.restored(cell.cell) as buffers:
        cell.call(updates, cell.others, buffers)
    stats.cell_evaluations += count


def frozen_parameters(cell: nn.Module) -> list[tuple[str, Tensor, int]]:
    """Return (name, parameter, version) of those that do not require grad."""
    return [(name, p, version_of(p)) for name, p in cell.named_parameters() if not p.requires_grad]


class Frozen:
    """Tensors that get no gradient and that a second run must find unchanged: it reads them, and not their copies.

    Args:
        parameters: (name, parameter, version) of those that do not require grad.
        plain: (weak reference, version) of other tensors.
    """

    def __init__(self, parameters: Sequence[tuple[str, Tensor, int]], plain: list[tuple[Any, int]]):
        self._parameters = [(name, p, version) for name, p, version in parameters if version_of(p) == version]
        self._plain = [(kept, v) for kept, v in plain if (tensor := kept()) is not None and version_of(tensor) == v]

    def check(self) -> None:
        """Raise if one of them has been written to.

        Raises:
            RuntimeError: Naming the tensor.
        """
        names = [name for name, p, version in self._parameters if version_of(p) != version]
        shapes = [tensor.shape for kept, v in self._plain if (tensor := kept()) is not None and version_of(tensor) != v]
        if names or shapes:
            what = f"parameter {names[0]}" if names else f"tensor of shape {tuple(shapes[0])}, which it reads,"
            raise RuntimeError(
                f"the cell's {what} was changed between the forward and the backward pass, so its updates cannot be "
                "run again: change it after backward, or use BPTT()"
            )

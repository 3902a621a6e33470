"""Running a recursion of which some updates carry the gradient and the others do not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients import tree
from loopgrad.gradients.contract import period_of
from loopgrad.gradients.recompute import GraphFree


def run_scoped(cell: nn.Module, state: Any, inputs: Any, num_steps: int, updates: frozenset[int]) -> Any:
    """Run updates, those in `updates` under autograd; what the others change is detached."""
    for step in range(num_steps):
        if step in updates:
            state = cell(state, tree.own_containers(inputs), step)
            continue
        before = tree.flatten(state)[0]
        with GraphFree(cell):
            after, unflatten = tree.flatten(cell(state, tree.own_containers(inputs), step))
        if len(after) != len(before):
            return unflatten(after)  # another structure, which is for the caller to refuse
        state = unflatten([_constant(*pair) for pair in zip(after, before, strict=True)])
    return state


def _constant(new: Any, old: Any) -> Any:
    return new if new is old or not isinstance(new, Tensor) else new.detach()


def changed_by(cell: nn.Module, state: Any, inputs: Any) -> Sequence[frozenset[str]]:
    """Return for each update of a cycle the names of the leaves that it changes; one cycle is run, without a trace."""
    found, names = [], tree.dotted_names(state)
    devices = sorted({t.device.index or 0 for t in tree.tensors(state) if t.device.type == "cuda"})
    buffers = {name: buffer.clone() for name, buffer in cell.named_buffers()}
    try:
        with torch.random.fork_rng(devices), GraphFree(cell):
            for step in range(period_of(cell)):
                before = tree.flatten(state)[0]
                state = cell(state, tree.own_containers(inputs), step)
                pairs = zip(names, before, tree.flatten(state)[0], strict=True)
                found.append(frozenset(name for name, old, new in pairs if old is not new))
    finally:
        with torch.no_grad():
            for name, buffer in cell.named_buffers():
                buffer.copy_(buffers[name])
    return found

"""A cell as a function of explicit tensors: state, inputs and everything it closes over go in as arguments.

An estimator that is one autograd.Function over the recursion needs this: what is not an argument gets no gradient,
and an update that is run again must read aliases of the parameters, or every parameter's hook fires once per update.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from loopgrad.gradients import tree
from loopgrad.gradients.contract import closed_over, run


class FunctionalCell:
    """The updates start..stop-1 of a cell, with all that they depend on passed as tensors.

    Attributes:
        state: Leaves of the initial state.
        others: Every other tensor the cell reads: tensor leaves of inputs, parameters that require grad, and tensors
            that a `Stationary` closes over.
        num_inputs: How many of them, the first, are inputs.
    """

    def __init__(self, cell: nn.Module, state: Any, inputs: Any):
        self.cell = cell
        self._calling = _Calling(cell)
        self.state, self.unflatten_state = tree.flatten(state)
        self._input_leaves, self._unflatten_inputs = tree.flatten(inputs)
        loose = {id(tensor): tensor for tensor in closed_over(cell)}
        named = [(n, p) for n, p in cell.named_parameters() if p.requires_grad and id(p) not in loose]
        self._names = [f"cell.{name}" for name, _ in named]
        self._closed_over = [t for t in loose.values() if t.requires_grad]
        self.num_inputs = len(tree.tensors(inputs))
        self.others = tree.tensors(inputs) + [p for _, p in named] + self._closed_over

    def leaf_views(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return what an update reads in place of `others`, given leaves: inputs as views, the rest as they are."""
        return [leaf_view(leaf) if i < self.num_inputs else leaf for i, leaf in enumerate(leaves)]

    def run_on(
        self, state: Sequence[Tensor], others: Sequence[Tensor], buffers: dict[str, Tensor], start: int, stop: int
    ) -> list[Tensor]:
        """Run updates with `others` in place of the cell's own tensors."""

        def updates(cell: nn.Module, inputs: Any) -> Any:
            return run(cell, self.unflatten_state(list(state)), inputs, range(start, stop))

        return tree.flatten(self.call(updates, others, buffers))[0]

    def call(self, fn: Callable[[nn.Module, Any], Any], others: Sequence[Tensor], buffers: dict[str, Tensor]) -> Any:
        """Return fn(cell, inputs), run with `others` in place of the cell's own tensors."""
        queue = iter(others)
        inputs = self._unflatten_inputs(
            [next(queue) if isinstance(leaf, Tensor) else leaf for leaf in self._input_leaves]
        )
        swapped = {name: next(queue) for name in self._names}
        swapped.update((f"cell.{name}", buffer) for name, buffer in buffers.items())
        with _Substituted(self._closed_over, list(queue)):
            # strict=False: only what requires grad is swapped, and tied weights follow their first name
            return torch.func.functional_call(self._calling, swapped, (fn, inputs))


def check_nothing_hidden(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> list[Any]:
    """Return the nodes of the graph of `outputs`, those nearest to them first; raise if it reaches a leaf not `known`.

    Such a leaf is a tensor that the cell reads without owning it: its gradient would silently be lost. Nodes that
    Python has seen are freed recursively (torch 2.13), so the nodes of a deep graph must be handed to `free_nodes`.

    Raises:
        RuntimeError: Naming the shape of the tensor and what to do.
    """
    known_ids = {id(tensor) for tensor in known}
    seen = {output.grad_fn for output in outputs if output.grad_fn is not None}
    nodes = list(seen)
    for node in nodes:
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known_ids:
            raise RuntimeError(
                f"the cell uses a tensor of shape {tuple(leaf.shape)} that requires grad and is neither its parameter, "
                "nor in state or inputs, so its gradient would be lost: register it as a parameter of the cell, "
                "pass it in inputs, name it in Stationary(fn, parameters=[...]), or use BPTT()"
            )
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return nodes


def free_nodes(nodes: list[Any]) -> None:
    """Free the nodes of a graph whose outputs are gone, one by one."""
    nodes.reverse()
    while nodes:
        nodes.pop()


def alias(tensor: Tensor, requires_grad: bool) -> Tensor:
    """Return a leaf that shares the memory of `tensor`."""
    return tensor.detach().requires_grad_(requires_grad)


def leaf_view(tensor: Tensor) -> Tensor:
    """Return what an update reads in place of a leaf that is given to autograd.grad.

    A view: modules that count gradients through hooks cannot do so on such a leaf.
    """
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


class _Calling(nn.Module):
    """Calls a function of the cell as a module, so that parameters are swapped once and not per update."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    def forward(self, fn: Callable[[nn.Module, Any], Any], inputs: Any) -> Any:
        return fn(self.cell, inputs)


class _Substituted(TorchFunctionMode):
    """Replaces tensors by others in every torch call: reaches what a plain function closes over."""

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]):
        super().__init__()
        self._new = {id(a): b for a, b in zip(old, new, strict=True)}

    def __enter__(self) -> "_Substituted":
        return super().__enter__() if self._new else self

    def __exit__(self, *exception: Any) -> None:
        if self._new:
            super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def swap(tensor: Tensor) -> Tensor:
            return self._new.get(id(tensor), tensor)

        return func(*tree.map_tensors(swap, args), **tree.map_tensors(swap, kwargs or {}))

"""What a cell reads: the tensors that torch calls are given, and those that it keeps in attributes."""

from collections import deque
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from loopgrad.gradients import tree
from loopgrad.gradients.untouched import Mode

CONTAINERS = (list, tuple, dict, set, deque)
LONG = 1000  # of a container that begins with something else: a vocabulary, not tensors


class Reading(Mode):
    """Notes the tensors that torch calls are given and that neither the caller nor another call has made.

    Args:
        given: What the caller has made.
    """

    def __init__(self, given: list[Any]):
        super().__init__()
        self._made = {id(tensor) for tensor in given}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and note."""
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for tensor in (value,) if isinstance(value, Tensor) else tree.tensors(value):
                if id(tensor) not in self._made and not is_functorch_wrapped_tensor(tensor):
                    self.found.setdefault(id(tensor), tensor)
        result = func(*args, **kwargs)
        self._made.update(map(id, (result,) if isinstance(result, Tensor) else tree.tensors(result)))
        return result


def kept(cell: nn.Module) -> dict[int, tuple[str, Tensor]]:
    """Return the tensors in attributes of a cell that are no parameters and no buffers, with the attribute's name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for module in cell.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[id(value)] = (name, value)
            elif isinstance(value, CONTAINERS) and name not in ("_parameters", "_buffers", "_modules"):
                _collect(name, value, found, depth=4)
    return found


def _collect(name: str, values: Any, found: dict[int, tuple[str, Tensor]], depth: int) -> None:
    items = list(values.values() if isinstance(values, dict) else values)
    if len(items) > LONG and not isinstance(items[0], (Tensor, *CONTAINERS)):
        return
    for value in items:
        if isinstance(value, Tensor):
            found[id(value)] = (name, value)
        elif isinstance(value, CONTAINERS) and depth:
            _collect(name, value, found, depth - 1)


class Kept:
    """Tensors in attributes of a cell, held weakly.

    Args:
        tensors: As `kept` returns them.
    """

    def __init__(self, tensors: dict[int, tuple[str, Tensor]]):
        self._refs = {key: (name, ref(tensor)) for key, (name, tensor) in tensors.items()}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._refs)

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of them."""
        return id(tensor) in self._refs and self._refs[id(tensor)][1]() is tensor

    def check(self, read: dict[int, Tensor]) -> None:
        """Raise if one of them, left there by an update without a graph, was read: its gradient would be lost.

        Raises:
            RuntimeError: Naming the attribute.
        """
        for key, tensor in read.items():
            if tensor in self:
                raise RuntimeError(
                    f"the cell keeps a tensor of shape {tuple(tensor.shape)} in its attribute {self._refs[key][0]!r} "
                    "that one update has made and that another reads, so a gradient through it would be lost: carry it "
                    "in the state, or use BPTT()"
                )

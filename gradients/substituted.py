"""Running a module with other tensors in place of its own, found by identity: nothing is written into the module."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from loopgrad.gradients import tree


class Substituted(TorchFunctionMode):
    """Within the block, torch calls are given `new` tensors wherever they would be given `old` ones.

    Wherever the module keeps a tensor (under two names, in a list, in a closure), it is the same object, so it is met
    in every place, and other threads that run the module see nothing of it. Costs a few microseconds per torch call;
    without any pair of different tensors the mode is not entered at all.

    What a mode does not see: the edges of the graph that `torch.autograd.Function.apply`, compiled and traced code
    record. Where gradients are asked for, the graph must be searched for the old tensors afterwards.

    Args:
        old: Tensors that the module reads.
        new: What it is to read in their place.
    """

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]):
        super().__init__()
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not b]
        self._new = {id(a): b for a, b in pairs}
        self._kept = {id(b): a for a, b in pairs}  # both are held: an id names a tensor for as long as it lives

    def __enter__(self) -> "Substituted":
        """Enter the mode, if there is anything to replace."""
        return super().__enter__() if self._new else self

    def __exit__(self, *exception: Any) -> None:
        """Leave the mode."""
        if self._new:
            super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call with the new tensors."""
        named = {name: self._replaced(value) for name, value in (kwargs or {}).items()}
        result = func(*map(self._replaced, args), **named)
        # what is written to in place is handed back as the tensor that stands for it: the module may keep it
        in_place = "out" in named or getattr(func, "__name__", "").endswith("_")
        return self._kept.get(id(result), result) if in_place else result

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._new.get(id(value), value)
        if isinstance(value, tuple | list | dict):
            return tree.map_tensors(self._replaced, value)
        return value

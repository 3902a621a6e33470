"""Bytes that live tensors hold: follows every storage from the operator that allocates it until it is freed."""

import weakref
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class PeakBytes(TorchDispatchMode):
    """Follows the storages that operators allocate inside the block until they are freed.

    Counts whole storages, gradients and what Python attributes keep alive included. Does not see an operator's
    internal scratch, an allocator's rounding, or what a compiled region allocates inside.

    Attributes:
        live: Bytes alive now.
        peak: Largest value of `live` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.followed(func, args, kwargs or {})

    def followed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what an operator returns, and follow its tensors."""
        if func is not torch.ops.aten.lift_fresh.default:  # its argument was allocated by torch.tensor(...) just now
            for tensor in _tensors((*args, *kwargs.values())):
                self._follow(tensor, existed=True)
        output = self.called(func, args, kwargs)
        for tensor in _tensors((output,)):
            self._follow(tensor, existed=False)
        return output

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an operator."""
        return func(*args, **kwargs)

    def allocated(self, size: int) -> None:
        """Count a storage that has come to life, or another size of one."""
        self.live += size
        self.peak = max(self.peak, self.live)

    def freed(self, size: int) -> None:
        """Count a storage that is gone."""
        self.live -= size

    def _follow(self, tensor: torch.Tensor, existed: bool) -> None:
        for storage in storages(tensor):
            address, size = storage._cdata, storage.nbytes()
            if address not in self._alive:
                self._alive[address] = weakref.ref(storage, partial(self._freed, address))
                if not existed:
                    self._sizes[address] = 0
            # not a storage from before the block; it may have been resized
            if address in self._sizes and size != self._sizes[address]:
                self.freed(self._sizes[address])
                self._sizes[address] = size
                self.allocated(size)

    def _freed(self, address: int, _: Any) -> None:
        del self._alive[address]
        if size := self._sizes.pop(address, 0):
            self.freed(size)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Give the tensors among what an operator takes or returns: single ones, or in lists and tuples."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Return the storages that hold the values of `tensor`: one, or those of the parts of a sparse tensor."""
    if tensor.layout == torch.strided:
        return [tensor.untyped_storage()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    raise TypeError(f"cannot count the bytes of a tensor of layout {tensor.layout}: strided and sparse_coo only")

"""Exact counts of one forward and backward pass: cell calls, bytes saved for backward, peak live bytes, FLOPs.

Each is a context manager around ordinary autograd code and counts what really happens, not what an estimator claims.
"""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from loopgrad.gradients import tree


class CellCalls:
    """Counts calls of a cell, and those of them that a backward pass goes through.

    A call counts when it begins, so a recomputation that stops early counts too. A vjp is one (call, backward pass)
    pair in which a gradient arrived at something the call computed: what the cell hands through unchanged does not
    count, nor does a call under no_grad.

    Attributes:
        evaluations: Calls of the cell, recomputation included.
    """

    def __init__(self, cell: nn.Module):
        self._cell = cell
        self._open: list[set[Any]] = []
        self._passes: set[tuple[int, int]] = set()
        self.evaluations = 0

    @property
    def vjps(self) -> int:
        """Calls that a backward pass went through, once per backward pass."""
        return len(self._passes)

    def __enter__(self) -> "CellCalls":
        self._handles = [
            self._cell.register_forward_pre_hook(self._before, with_kwargs=True),
            self._cell.register_forward_hook(self._after, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, cell: nn.Module, args: Any, kwargs: Any) -> None:
        self.evaluations += 1
        self._open.append({leaf.grad_fn for leaf in tree.tensors((args, kwargs))})

    def _after(self, cell: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = self._open.pop()
        call = self.evaluations
        for node in {leaf.grad_fn for leaf in tree.tensors(output)} - given:
            # a hook on the node, not on the tensor: the tensor's also runs when autograd.grad stops at this tensor
            if node is not None:
                node.register_prehook(partial(self._passed, call))

    def _passed(self, call: int, gradients: tuple[torch.Tensor | None, ...]) -> None:
        if any(gradient is not None for gradient in gradients):
            self._passes.add((call, torch._C._current_graph_task_id()))


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that the graph built inside the block keeps for its backward pass.

    Storages are counted once however many tensors view them; those of `exclude` are not counted, nor are those of
    graphs that are gone when `held` is called. Tensors that an autograd.Function keeps as attributes of `ctx` escape.
    """

    def __init__(self, exclude: Iterable[torch.Tensor] = ()):
        self._excluded = {storage._cdata: storage for tensor in exclude for storage in storages(tensor)}
        self._packed: weakref.WeakSet[_Packed] = weakref.WeakSet()
        super().__init__(self._pack, lambda packed: packed.tensor)

    def held(self) -> int:
        """Return the bytes kept now."""
        # the packed tensors keep their storages alive, so an address stands for one storage
        unique = {s._cdata: s.nbytes() for packed in list(self._packed) for s in storages(packed.tensor)}
        return sum(size for address, size in unique.items() if address not in self._excluded)

    def _pack(self, tensor: torch.Tensor) -> "_Packed":
        packed = _Packed(tensor)
        self._packed.add(packed)
        return packed


class _Packed:
    """A saved tensor; it lives as long as the graph that saved it."""

    def __init__(self, tensor: torch.Tensor):
        # detached: an operator's own result would otherwise hold the graph that holds this
        self.tensor = tensor.detach()


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
        kwargs = kwargs or {}
        if func is not torch.ops.aten.lift_fresh.default:  # its argument was allocated by torch.tensor(...) just now
            for tensor in tree.tensors((args, kwargs)):
                self._follow(tensor, existed=True)
        output = func(*args, **kwargs)
        for tensor in tree.tensors(output):
            self._follow(tensor, existed=False)
        return output

    def _follow(self, tensor: torch.Tensor, existed: bool) -> None:
        for storage in storages(tensor):
            address, size = storage._cdata, storage.nbytes()
            if address not in self._alive:
                self._alive[address] = weakref.ref(storage, partial(self._freed, address))
                if not existed:
                    self._sizes[address] = 0
            if address in self._sizes:  # not a storage from before the block; it may have been resized
                self.live += size - self._sizes[address]
                self._sizes[address] = size
        self.peak = max(self.peak, self.live)

    def _freed(self, address: int, _: Any) -> None:
        del self._alive[address]
        self.live -= self._sizes.pop(address, 0)


class _NoModules:
    """Stands in for FlopCounterMode's module tracker, whose hooks fail on leaves given to autograd.grad."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: Any) -> None:
        return None


def flop_counter() -> FlopCounterMode:
    """Return a quiet FlopCounterMode that also knows the attention kernel of the CPU and takes any estimator.

    Counts matrix products, convolutions and attention, 2 FLOPs per multiply-add; elementwise work counts nothing.
    """
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    mode = FlopCounterMode(display=False, custom_mapping=attention)
    mode.mod_tracker = _NoModules()  # pyright: ignore[reportAttributeAccessIssue]
    return mode


def storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Return the storages that hold the values of `tensor`: one, or those of the parts of a sparse tensor."""
    if tensor.layout == torch.strided:
        return [tensor.untyped_storage()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    raise TypeError(f"cannot count the bytes of a tensor of layout {tensor.layout}: strided and sparse_coo only")


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)

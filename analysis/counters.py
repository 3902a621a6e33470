"""Exact counts of one forward and backward pass: cell calls, bytes saved for backward, peak live bytes, FLOPs.

Each is a context manager around ordinary autograd code and counts what really happens, not what an estimator claims.
"""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from loopgrad.gradients import tree
from loopgrad.gradients.live_bytes import PeakBytes, storages

__all__ = ["CellCalls", "PeakBytes", "SavedBytes", "flop_counter", "storages"]


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
        self._handles = [self._cell.register_forward_pre_hook(self._before, with_kwargs=True)]
        self._handles += [self._cell.register_forward_hook(self._after, with_kwargs=True)]
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


class _NoModules(nullcontext):
    """Stands in for FlopCounterMode's module tracker, whose hooks fail on leaves given to autograd.grad."""

    parents = frozenset({"Global"})


def flop_counter() -> FlopCounterMode:
    """Return a quiet FlopCounterMode that also knows the attention kernel of the CPU and takes any estimator.

    Counts matrix products, convolutions and attention, 2 FLOPs per multiply-add; elementwise work counts nothing.
    """
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    mode = FlopCounterMode(display=False, custom_mapping=attention)
    mode.mod_tracker = _NoModules()  # pyright: ignore[reportAttributeAccessIssue]
    return mode

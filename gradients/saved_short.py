"""Tensors that the graph of an update saves, kept in a short form until backward."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks
from torch.autograd.graph import saved_tensors_hooks

from loopgrad.gradients.checks import version_of
from loopgrad.gradients.compression import Form

Place = tuple[Any, ...]
# what hands on the numbers of a weight as they are: casts, copies and views
HANDS_ON = ("ToCopy", "Clone", "Alias", "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand")
HANDS_ON += ("Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Squeeze", "Unsqueeze")


@dataclass
class Short:
    """What stands for a saved tensor: its parts, and what restores it from them.

    Attributes:
        parts: As the hooks of the caller have packed them.
        shape: Of the tensor.
        dtype: Of the tensor.
        form: None for the tensor itself, the only part.
    """

    parts: list[Any]
    shape: torch.Size
    dtype: torch.dtype
    form: Form | None


class SavedShort:
    """Keeps what updates save in a short form; weights, inputs, and what was there before, as they are.

    The hooks that the caller has set, such as `save_on_cpu`, are given the short forms.

    Args:
        form: The form.
        known: Tensors that are there anyway.
    """

    def __init__(self, form: Form, known: list[Tensor]):
        self._form = form
        # held while updates run, so that nothing else comes to stand where one of them was
        self._known = {storage_of(tensor): tensor for tensor in known if tensor.layout == torch.strided}
        around = _top_saved_tensors_default_hooks(True)
        self._pack, self._unpack = around or (lambda tensor: tensor, lambda packed: packed)
        self._done: dict[Place, tuple[Tensor, Short]] = {}

    def update(self, state: list[Tensor]) -> saved_tensors_hooks:
        """Return a block for one update: what it saves more than once, or the one before has saved, is kept once."""
        handed_on = {storage_of(leaf) for leaf in state if leaf.layout == torch.strided}
        self._done = {place: entry for place, entry in self._done.items() if place[0] in handed_on}
        return saved_tensors_hooks(self._shortened, self._restored)

    def end(self) -> None:
        """Let go of what was held while updates ran; the graph has the short forms alone."""
        self._done, self._known = {}, {}

    def _shortened(self, tensor: Tensor) -> Short:
        own = tensor.detach()  # a result that saves itself would else keep itself alive
        if not self._form.fits(tensor) or storage_of(tensor) in self._known or _of_leaf(tensor):
            return Short([self._pack(own)], tensor.shape, tensor.dtype, None)
        place = place_of(own)
        if place not in self._done:  # the tensor is held, so that nothing else comes to stand there
            with torch.no_grad():
                parts = [self._pack(part) for part in self._form.packed(own)]
            self._done[place] = own, Short(parts, own.shape, own.dtype, self._form)
        return self._done[place][1]

    def _restored(self, short: Short) -> Tensor:
        parts = [self._unpack(part) for part in short.parts]
        if short.form is None:
            return parts[0]
        with torch.no_grad():
            return short.form.restored(parts, short.shape, short.dtype)


def storage_of(tensor: Tensor) -> int:
    """Return what stands for the storage of a tensor as long as it lives."""
    return tensor.untyped_storage()._cdata


def place_of(tensor: Tensor) -> Place:
    """Return what stands for the numbers of a tensor as long as its storage lives."""
    return storage_of(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), version_of(tensor)


def _of_leaf(tensor: Tensor) -> bool:
    """Whether a tensor is a leaf, or its cast, its transpose, or a part of it."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__ != "AccumulateGrad":
        if type(node).__name__.partition("Backward")[0] not in HANDS_ON:
            return False
        node = node.next_functions[0][0]
    return True

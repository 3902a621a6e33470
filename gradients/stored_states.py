"""How a recursion stores its states between forward and backward: as they are, in a short form, in host memory."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loopgrad.gradients import host_memory, tree
from loopgrad.gradients.compression import Form
from loopgrad.gradients.saved_short import Place, Short, place_of, storage_of


class StoredStates:
    """Stores states, and fetches them.

    Args:
        form: The short form of leaves that have one; None to store all as they are.
        offload: Whether to store them in host memory.
        known: Tensors that are there anyway, z_0 among them; they have no short form.
    """

    def __init__(self, form: Form | None, offload: bool, known: Iterable[Any] = ()):
        self.form, self.offload = form, offload
        dense = (tensor for tensor in known if isinstance(tensor, Tensor) and tensor.layout == torch.strided)
        self._known = set(map(storage_of, dense)) if form is not None else set()
        self._done: dict[Place, tuple[Tensor, Short]] = {}

    def store(self, leaves: Sequence[Any]) -> list[Any]:
        """Return leaves to store in the place of those of a state; what the one before has too is stored once."""
        found, done = [], {}
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not self._has_form(leaf):
                found.append(host_memory.store(leaf) if self.offload and isinstance(leaf, Tensor) else leaf)
                continue
            place = place_of(leaf)  # the tensor is held, so that nothing else comes to stand there
            done[place] = done.get(place) or self._done.get(place) or (leaf, self._short(leaf))
            found.append(done[place][1])
        self._done = done
        return found

    def end(self) -> None:
        """Let go of the state that was stored last."""
        self._done = {}

    def _has_form(self, leaf: Tensor) -> bool:
        return self.form is not None and self.form.fits(leaf) and storage_of(leaf) not in self._known

    def _short(self, leaf: Tensor) -> Short:
        assert self.form is not None
        with torch.no_grad():
            parts = self.form.packed(leaf.detach())
        return Short(
            [host_memory.store(part) if self.offload else part for part in parts], leaf.shape, leaf.dtype, self.form
        )


def fetched(leaves: Sequence[Any], devices: Sequence[torch.device | None]) -> list[Any]:
    """Return the leaves of a state that was stored, on the devices where they were."""
    return [leaf if device is None else _fetched(leaf, device) for leaf, device in zip(leaves, devices, strict=True)]


def _fetched(leaf: Any, device: torch.device) -> Tensor:
    if not isinstance(leaf, Short):
        return host_memory.fetch(leaf, device)
    assert leaf.form is not None
    with torch.no_grad():
        return leaf.form.restored([host_memory.fetch(part, device) for part in leaf.parts], leaf.shape, leaf.dtype)


def apart(leaves: Sequence[Any]) -> tuple[list[Tensor], list[Any]]:
    """Return the tensors that stored leaves consist of, and the leaves without them; see `together`."""
    rest = [replace(leaf, parts=len(leaf.parts) * [Tensor]) if isinstance(leaf, Short) else leaf for leaf in leaves]
    parts = [part for leaf in leaves for part in (leaf.parts if isinstance(leaf, Short) else [leaf])]
    return tree.apart(parts)[0], tree.apart(rest)[1]


def together(tensors: Iterable[Tensor], rest: Sequence[Any]) -> list[Any]:
    """Return the leaves that `apart` has taken apart; takes of the tensors as many as they consist of."""
    queue = iter(tensors)
    return [
        replace(leaf, parts=[next(queue) for _ in leaf.parts])
        if isinstance(leaf, Short)
        else (next(queue) if leaf is Tensor else leaf)
        for leaf in rest
    ]

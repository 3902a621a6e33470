"""Running a module on copies of its tensors, in another dtype too, and without advancing random number generators.

A gradient or a residual is judged by its value in a wider dtype; the module under study is left as it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loopgrad.gradients import tree

Held = Sequence[tuple[nn.Module, Mapping[str, torch.Tensor | None]]]


def cast(values: Any, dtype: torch.dtype) -> Any:
    """Return the tree `values` with its floating tensors in `dtype`; integer, bool and other leaves as they are.

    Args:
        values: Any tree of tensors: a batch, a carry, a state.
        dtype: A real floating dtype; complex tensors take the complex dtype of that width.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import cast
        >>> cast({"z": torch.ones(2), "token": torch.tensor([3])}, torch.float64)
        {'z': tensor([1., 1.], dtype=torch.float64), 'token': tensor([3])}
    """

    def of(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return tree.map_tensors(of, values)


@contextmanager
def evaluated_in(module: nn.Module, dtype: torch.dtype) -> Iterator[dict[str, nn.Parameter]]:
    """Let `module` compute with copies of its parameters and buffers in `dtype`, inside the `with` block.

    The copies stand in the places of the originals, so closures over the module see them as well; tied parameters
    stay tied. Originals are neither written nor moved (optimisers, hooks and DDP do not notice), and buffers that the
    module updates while it runs (batch statistics) are discarded. Tensors that the module holds without registering
    them keep their dtype.

    Cost:
        One copy of the parameters and buffers.
    Not recommended when:
        Another thread uses the module at the same time.

    Args:
        module: The module to evaluate.
        dtype: Floating dtype of the copies; they are exact when it is wider than the module's own.

    Yields:
        The copied parameters, by the names of `module.named_parameters()`; `requires_grad` as in the originals.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import evaluated_in
        >>> linear = torch.nn.Linear(2, 2)
        >>> with evaluated_in(linear, torch.float64):
        ...     print(linear(torch.ones(1, 2, dtype=torch.float64)).dtype)
        torch.float64
        >>> linear.weight.dtype
        torch.float32
    """
    originals = dict(module.named_parameters())
    held = [(owner, {**owner._parameters, **owner._buffers}) for owner in module.modules()]
    with stand_ins(held, lambda tensor: _copy(tensor, dtype)) as copies:
        yield {name: copies[id(tensor)] for name, tensor in originals.items()}  # pyright: ignore[reportReturnType]


@contextmanager
def stand_ins(held: Held, copy: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """Let one copy of each tensor stand in all its places inside the block; yield copies by the id of the original."""
    places = [(owner, name, tensor) for owner, own in held for name, tensor in own.items() if tensor is not None]
    copies: dict[int, torch.Tensor] = {}
    try:
        for owner, name, tensor in places:
            if id(tensor) not in copies:
                copies[id(tensor)] = copy(tensor)
            setattr(owner, name, copies[id(tensor)])  # setattr: recurrent modules keep a second list in step with it
        yield copies
    finally:
        for owner, name, tensor in places:
            setattr(owner, name, tensor)


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let the modules read and write copies of their buffers inside the block, so that the originals do not move.

    Not recommended when:
        Another thread uses the modules at the same time.
    """
    held = [(owner, owner._buffers) for module in modules for owner in module.modules()]
    with stand_ins(held, lambda buffer: buffer.detach().clone()):
        yield


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the states of the default generators (CPU, and CUDA where it is in use) on leaving the block."""
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(devices, device_type="cuda"):
        yield


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    copy = cast(tensor.detach(), dtype).clone()
    return nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy

"""Running a module on copies of its tensors, in another dtype too, and without advancing random number generators.

A gradient or a residual is judged by its value in a wider dtype; the module under study is left as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loopgrad.analysis.evaluation import Generators
from loopgrad.gradients import tree
from loopgrad.gradients.contract import closed_over
from loopgrad.gradients.substituted import Substituted
from loopgrad.gradients.untouched import Untouched


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


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Return the parameters and buffers of a module, and what its `Stationary` cells close over, each of them once."""
    every = (*module.parameters(), *module.buffers(), *closed_over(module))
    return list({id(tensor): tensor for tensor in every}.values())


@contextmanager
def evaluated_in(module: nn.Module, dtype: torch.dtype) -> Iterator[dict[str, nn.Parameter]]:
    """Let `module` compute with copies of its parameters and buffers in `dtype`, inside the `with` block.

    Torch calls of this thread are given the copies in place of the originals, so closures over the module or its
    tensors see them as well; tied parameters stay tied. The module is not written to (other threads, optimisers, hooks
    and DDP do not notice), and what it writes into its buffers while it runs (batch statistics) is discarded. Other
    tensors that it holds without registering them keep their dtype.

    Cost:
        One copy of the parameters and buffers, and some microseconds per torch call.
    Not recommended when:
        Gradients of the copies are wanted of an autograd.Function, such as an estimator other than
        `BPTT`, or of compiled code: their graphs are of the originals.

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
    named, old = dict(module.named_parameters()), tensors_of(module)
    with torch.inference_mode(False):
        copies = {id(tensor): _copy(tensor, dtype) for tensor in old}
    found = {name: copies[id(tensor)] for name, tensor in named.items()}
    with _left_alone(module), Substituted(old, list(copies.values())):
        yield found  # pyright: ignore[reportReturnType]


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Let the modules read and write copies of their buffers inside the block, so that the originals do not move."""
    old = list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())
    with _left_alone(*modules), Substituted(old, [buffer.detach().clone() for buffer in old]):
        yield


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the states of the default generators (CPU, and CUDA where it is in use) on leaving the block."""
    generators = Generators()
    try:
        yield
    finally:
        generators.put_back()


@contextmanager
def _left_alone(*modules: nn.Module) -> Iterator[None]:
    """Put back what the modules themselves write (flags, buffers that they replace), and torch's state."""
    noted = [Untouched(module) for module in modules]
    try:
        yield
    finally:
        for it in noted:
            it.put_back()


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    copy = cast(tensor.detach(), dtype).clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)

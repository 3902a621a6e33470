"""The gradient of a module's parameters as a loss gives it, and the exact one: the same in float64."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from loopgrad.analysis.evaluation import leaving_modules_alone, leaving_torch_alone, pulled_back
from loopgrad.analysis.precision import evaluated_in, preserved_rng
from loopgrad.gradients.graphs import free_nodes, search

Gradients = Mapping[str, torch.Tensor | None]


@leaving_torch_alone
def gradients_of(loss: Callable[[nn.Module], torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return d loss(module) / d parameter for every parameter that requires grad; None where there is none.

    The `.grad` of the parameters is neither read nor written, and the random number generators are put back, so that
    two calls (or a call and `reference`) see the same dropout masks.

    Args:
        loss: Called with the module, returns the scalar to differentiate. Buffers that the forward pass updates are
            updated.
        module: Whose named parameters are differentiated.

    Raises:
        ValueError: The loss is not a scalar that requires grad, or no parameter of the module does.
    """
    with preserved_rng():
        return drawn_gradients(loss, module)


def drawn_gradients(loss: Callable[[nn.Module], torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor | None]:
    """As `gradients_of`, but the random number generators move on, so that the next call is another draw."""
    wanted = trainable(module)
    with _with_graph():
        value = _scalar(loss(module))
        found = pulled_back(value, torch.ones_like(value), list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the named parameters that require grad; raise ValueError if none does."""
    wanted = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not wanted:
        raise ValueError("module has no parameter that requires grad: there is no gradient to compute")
    return wanted


@leaving_modules_alone
def reference_gradients(loss: Callable[[nn.Module], torch.Tensor], module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the gradient of loss(module) with the module's parameters and buffers in float64.

    For the exact gradient, `loss` runs `BPTT()` on the batch and carry in question, cast to float64 (`cast`). The
    module computes with float64 copies (see `evaluated_in`) and is left as it was; the random number generators too,
    so that dropout draws the masks that the next call in the module's own dtype draws.

    Cost:
        The loss and its backward pass in float64, two to a hundred times slower than float32 (GPUs: the latter).
    Not recommended when:
        The module casts to a narrow dtype inside its forward pass; this is then refused.

    Args:
        loss: Called with the module, returns the scalar to differentiate, in float64.
        module: Whose named parameters are differentiated.

    Returns:
        Parameter name -> float64 gradient, or None where the loss does not depend on the parameter.

    Raises:
        TypeError: The loss is not float64, so something in it was computed in another dtype.
        ValueError: As `gradients_of`; or only an autograd.Function or compiled code reads a parameter.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import compare_gradients, gradients_of, reference_gradients
        >>> _ = torch.manual_seed(0)
        >>> linear = torch.nn.Linear(3, 1)
        >>> loss = lambda module: module(torch.ones(2, 3, dtype=module.weight.dtype)).square().sum()
        >>> compare_gradients(gradients_of(loss, linear), reference_gradients(loss, linear)).relative_error < 1e-5
        True
    """
    originals = trainable(module)
    with evaluated_in(module, torch.float64) as copies, preserved_rng(), _with_graph():
        value = _scalar(loss(module))
        if value.dtype != torch.float64:
            raise TypeError(
                f"loss returned {value.dtype} although the module is in float64: cast the batch and the carry with "
                "cast(values, torch.float64), and let the module not cast to a narrower dtype by itself"
            )
        graph = search([value])
        reached = {id(leaf) for leaf in graph.leaves}
        strays = [f"parameter {name!r}" for name, parameter in originals.items() if id(parameter) in reached]
        wanted = [copies[name] for name in originals]
        found = [] if strays else pulled_back(value, torch.ones_like(value), wanted)
    del value
    free_nodes(graph.nodes)
    if strays:
        raise ValueError(
            f"loss reaches {strays[0]} through an autograd.Function or compiled code, so its gradient was not in "
            "float64: run the eager module in loss, or call module.double() on a copy of your own and gradients_of on "
            "that"
        )
    return dict(zip(originals, found, strict=True))


@contextmanager
def _with_graph() -> Iterator[None]:
    """Keep a graph, under inference mode too."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _scalar(value: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"loss must return a scalar tensor that requires grad, got {what}: reduce it, keep its graph")
    return value.reshape(())

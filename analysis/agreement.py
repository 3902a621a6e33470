"""How far a gradient is from the exact one: cosine, relative error and norm ratio, over all and per parameter group.

The exact one is backpropagation through time in float64, on the same batch and the same carry.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from loopgrad.analysis.exact_gradients import Gradients, gradients_of, reference_gradients
from loopgrad.analysis.summaries import screen
from loopgrad.gradients import BPTT, Estimator

_NOTHING = torch.zeros(4, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Agreement:
    """How a gradient g compares with a reference g*, both seen as one long vector.

    Attributes:
        cosine: <g, g*> / (||g|| ||g*||), in [-1, 1]; nan where either is zero (or not finite).
        relative_error: ||g - g*|| / ||g*||; 0 where both are zero, inf where only g* is.
        norm_ratio: ||g|| / ||g*||; nan where both are zero, inf where only g* is.
        groups: The same for each group of parameters, by name; empty within a group.
    """

    cosine: float
    relative_error: float
    norm_ratio: float
    groups: dict[str, "Agreement"] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say how near the gradient is, over all parameters and by group."""
        found = {"all": self, **self.groups}
        rows = [[n, *(f"{v:.3g}" for v in (a.cosine, a.relative_error, a.norm_ratio))] for n, a in found.items()]
        return screen("Agreement of gradients", ["parameters", "cosine", "relative error", "norm ratio"], rows)


def compare_gradients(
    gradient: Gradients, reference: Gradients, groups: Callable[[str], str] | None = None
) -> Agreement:
    """Compare a gradient with a reference, over all parameters and per group.

    Sums are taken in float64 on the CPU whatever the dtypes and devices. A `None` counts as a zero gradient: a
    parameter that an estimator does not reach is wrong by its whole reference.

    Cost:
        One pass over both gradients.
    Not recommended when:
        The gradient is one draw of a random estimator; its bias and variance need many draws.

    Args:
        gradient: g, parameter name -> tensor or None.
        reference: g*, with the same names and shapes.
        groups: Name of a parameter -> name of its group. Default: what stands before the first dot.

    Returns:
        The agreement, global and per group, groups in the order of first appearance in `reference`.

    Raises:
        ValueError: The names or the shapes of the two differ, or there is nothing to compare.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import compare_gradients
        >>> result = compare_gradients({"head.w": torch.tensor([2.0, 0.0])}, {"head.w": torch.tensor([1.0, 0.0])})
        >>> result.cosine, result.relative_error, result.norm_ratio
        (1.0, 1.0, 2.0)
        >>> list(result.groups)
        ['head']
    """
    check_names(gradient, reference)
    sums = {name: _sums(name, gradient[name], reference[name]) for name in reference}

    def agreement(names: Iterable[str], parts: dict[str, Agreement]) -> Agreement:
        size_squared, scale_squared, product, error_squared = sum((sums[n] for n in names), _NOTHING).tolist()
        # roots before products: the squares of two small norms may multiply to zero
        size, scale, error = math.sqrt(size_squared), math.sqrt(scale_squared), math.sqrt(error_squared)
        cosine = product / size / scale if size > 0 and scale > 0 else math.nan
        cosine = max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else math.nan
        return Agreement(cosine, 0.0 if error == 0 else quotient(error, scale), quotient(size, scale), parts)

    return agreement(reference, {group: agreement(names, {}) for group, names in members(reference, groups).items()})


def compare_with_bptt(
    estimators: Mapping[str, Estimator],
    loss: Callable[[nn.Module, Estimator], torch.Tensor],
    module: nn.Module,
    groups: Callable[[str], str] | None = None,
) -> dict[str, Agreement]:
    """Compare the gradient of each estimator, in the module's own dtype, with float64 BPTT.

    Cost:
        One forward and backward pass per estimator, and one in float64.
    Not recommended when:
        An estimator is random; this takes a single draw.

    Args:
        estimators: Name -> estimator.
        loss: loss(module, estimator) -> scalar. It casts the batch and the carry to the dtype of the module's
            parameters, which is float64 when the reference is taken.
        module: Whose named parameters are differentiated.
        groups: As in `compare_gradients`.

    Returns:
        Name of the estimator -> its agreement with the reference.
    """
    exact = reference_gradients(lambda float64_module: loss(float64_module, BPTT()), module)
    result = {}
    for name, estimator in estimators.items():
        gradient = gradients_of(lambda own, estimator=estimator: loss(own, estimator), module)
        result[name] = compare_gradients(gradient, exact, groups)
    return result


def _sums(name: str, gradient: torch.Tensor | None, reference: torch.Tensor | None) -> torch.Tensor:
    """Return the sums over entries of g g, g* g*, g g* and (g - g*)(g - g*)."""
    if gradient is None and reference is None:
        return _NOTHING
    if gradient is not None and reference is not None and gradient.shape != reference.shape:
        raise ValueError(
            f"the gradients of {name!r} differ in shape: {tuple(gradient.shape)} and {tuple(reference.shape)} in "
            "the reference; both must be of the same module"
        )
    present = float64_vector(gradient) if gradient is not None else float64_vector(reference)
    g = present if gradient is not None else torch.zeros_like(present)
    exact = float64_vector(reference) if reference is not None else torch.zeros_like(present)
    difference = g - exact
    return torch.stack([g @ g, exact @ exact, g @ exact, difference @ difference])


def float64_vector(tensor: torch.Tensor | None) -> torch.Tensor:
    """Return the entries as a float64 vector on the CPU; a complex entry as its two parts."""
    assert tensor is not None
    dense = tensor.detach().to_dense().cpu()
    if dense.is_complex():
        dense = torch.view_as_real(dense.resolve_conj())
    return dense.to(torch.float64).reshape(-1)


def members(names: Iterable[str], groups: Callable[[str], str] | None) -> dict[str, list[str]]:
    """Return the names of each group, which without groups is what stands before the first dot of a name."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(groups(name) if groups else name.partition(".")[0], []).append(name)
    return found


def quotient(size: float, scale: float) -> float:
    """Divide by a size; over a size of zero, inf, and nan if both are zero."""
    if scale == 0:
        return math.inf if size > 0 else math.nan
    return size / scale


def check_names(gradient: Gradients, reference: Gradients) -> None:
    """Raise ValueError if the two do not name the same parameters."""
    if not reference and not gradient:
        raise ValueError("gradient and reference are empty: there is nothing to compare")
    missing, extra = sorted(reference.keys() - gradient.keys()), sorted(gradient.keys() - reference.keys())
    if missing or extra:
        raise ValueError(
            f"gradient and reference must name the same parameters: gradient lacks {missing[:5]} and the reference "
            f"lacks {extra[:5]}; give None for a parameter without a gradient"
        )

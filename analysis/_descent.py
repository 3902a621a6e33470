"""Does a step against a gradient lower the loss, and by as much as the exact gradient says?

An estimate whose angle to the exact gradient is below 90 degrees promises a fall; the measured one also has curvature.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from loopgrad.analysis.agreement import check_names, float64_vector
from loopgrad.analysis.evaluation import leaving_modules_alone
from loopgrad.analysis.exact_gradients import Gradients, reference_gradients
from loopgrad.analysis.precision import evaluated_in, preserved_buffers, preserved_rng
from loopgrad.analysis.summaries import screen


@dataclass(frozen=True)
class DescentStep:
    """A step theta - eta g.

    Attributes:
        size: eta.
        predicted: -eta <g, g*>, the change of the loss to first order.
        measured: L(theta - eta g) - L(theta).
        down: Whether the loss fell.
    """

    size: float
    predicted: float
    measured: float
    down: bool


@dataclass(frozen=True)
class Descent:
    """What steps against a gradient g do to the loss.

    Attributes:
        loss: L(theta).
        product: <g, g*>; positive if g is a descent direction.
        steps: One for each eta.
    """

    loss: float
    product: float
    steps: tuple[DescentStep, ...]

    def __repr__(self) -> str:
        """Say what each step was to do, and did."""
        rows = [[f"{s.size:.3g}", f"{s.predicted:.3g}", f"{s.measured:.3g}"] for s in self.steps]
        title = f"Descent from a loss of {self.loss:.4g}, <g, g*> = {self.product:.3g}"
        return screen(title, ["step size", "change predicted", "measured"], rows)


@leaving_modules_alone
def descent(
    gradient: Gradients,
    loss: Callable[[nn.Module], torch.Tensor],
    module: nn.Module,
    steps: Sequence[float] = (1e-3, 1e-2, 1e-1),
) -> Descent:
    """Step against a gradient, and compare what the loss does with what the exact gradient predicts.

    All is computed in float64 with copies of the parameters and buffers; the module is left as it was, and every loss
    sees the same random numbers. The difference of predicted and measured shrinks as eta^2.

    Cost:
        A forward and backward pass, and a forward pass per step and one more, in float64.
    Not recommended when:
        An optimiser will rescale the gradient: its step is not theta - eta g, so hand over the step
        that it takes as `gradient`, with steps=(1,).

    Args:
        gradient: g, parameter name -> tensor or None, such as from `gradients_of`.
        loss: Called with the module, returns the scalar L with the exact gradient, so that it runs `BPTT()`; in
            float64 where the module is (as in `reference`).
        module: Whose named parameters step.
        steps: Each eta, above zero, in units of parameter over gradient.

    Returns:
        The inner product with the exact gradient, and the steps.

    Raises:
        ValueError: steps is empty or not above zero; gradient names other parameters, or has other shapes.
        TypeError: As `reference`.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import descent
        >>> linear = torch.nn.Linear(1, 1, bias=False).requires_grad_()
        >>> _ = torch.nn.init.constant_(linear.weight, 1.0)
        >>> found = descent({"weight": torch.tensor([[2.0]])}, lambda own: own.weight.square().sum(), linear, [0.25])
        >>> found.product, found.steps[0]  # from 1 to 1/2
        (4.0, DescentStep(size=0.25, predicted=-1.0, measured=-0.75, down=True))
    """
    sizes = [float(eta) for eta in steps]
    if not sizes or not all(0 < eta < math.inf for eta in sizes):
        raise ValueError(f"steps must be one or more finite step sizes above zero, got {tuple(steps)}")
    exact = reference_gradients(loss, module)
    check_names(gradient, exact)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    for name, value in gradient.items():
        if value is not None and value.shape != shapes[name]:
            raise ValueError(
                f"gradient[{name!r}] has shape {tuple(value.shape)} and its parameter {tuple(shapes[name])}: "
                "both must be of the same module"
            )
    pairs = [(gradient[name], exact[name]) for name in exact]
    known = [(float64_vector(g), float64_vector(e)) for g, e in pairs if g is not None and e is not None]
    product = math.fsum(torch.dot(g, e).item() for g, e in known)
    start = _loss_after(gradient, loss, module, 0.0)
    found = []
    for eta in sizes:
        change = _loss_after(gradient, loss, module, eta) - start
        found.append(DescentStep(eta, -eta * product, change, change < 0))
    return Descent(start, product, tuple(found))


def _loss_after(gradient: Gradients, loss: Callable[[nn.Module], torch.Tensor], module: nn.Module, eta: float) -> float:
    """Return L(theta - eta g); each call starts from copies of its own."""
    with preserved_buffers(module), evaluated_in(module, torch.float64) as copies, preserved_rng(), torch.no_grad():
        for name, value in gradient.items():
            if value is not None and eta:
                copies[name].sub_(eta * value.to_dense().to(copies[name]))
        return float(loss(module))

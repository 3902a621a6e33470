"""Cells that wrap any cell and can be run backwards, in three ways: damped copies, leapfrog, momentum.

A coupled recursion is another dynamical system than the cell's own; each class says what the two share.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.gradients.checks import is_number
from loopgrad.models.coupled_state import times, total
from loopgrad.models.coupling_base import Arithmetic, Coupling, Per
from loopgrad.models.grid_arithmetic import Ratio, fraction_below_one

# bits of a float that repeated division may use up before the reconstruction is worthless
SPARE_BITS = {"float64": 48, "float32": 20}


class Damped(Coupling):
    r"""Two copies of the state, each pulled toward the cell's image of the other (RevDEQ's update, bit-exact).

    .. math:: z_{t+1} = (1 - \beta) \, z_{t-1} + \beta f(z_t), \qquad z_{-1} = z_0

    A fixed point of f is one of this recursion.
    f is one cycle of the cell (all `period` updates), unchanged inside: a post-norm TRM cycle keeps its norms.

    Args:
        cell: Any cell.
        beta: Strength of the pull, in (0, 1): a Fraction or "4/5"; a float whose denominator is at most 1024.
        arithmetic: "exact": multiples of 2^-32 below 2^20 in absolute value, the digits lost by (1 - beta) kept, about
            log2(1 / (1 - beta)) bits per element and update. "float64" or "float32": undone up to rounding,
            which grows by 1 / (1 - beta) at each update of a copy.
        per: "cycle", or "update" to take single updates of the cell as f; then a fixed point of every update is one of
            this recursion, and leaves that an update hands through stay as they are.
        dtype: Dtype in which the cell sees coupled leaves; None for that in which each was given, or, if they are all
            float64, that of the cell's parameters.
        uncoupled: Names of leaves or branches that take the value the cell returns, such as "state['count']" or
            "state[1]"; see `Coupling`. Each is saved once per update that changes it.

    Cost:
        One evaluation of f and a few elementwise operations per update; the state is two float64 copies and, if
        exact, two words of digits. A device without float64 has the exact grid in int64 (`Coupled`).
    Not recommended when:
        The trained weights are to be those of the plain recursion: the dynamics differ away from
        fixed points.
    Reference:
        McCallum et al. 2025, arXiv 2509.12917; Maclaurin et al. 2015, arXiv 1502.03492.

    Raises:
        ValueError: beta, arithmetic or per is not one of the above.
        TypeError: cell is not a module; at the first call, "float64" on a device that has none.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ReversibleBPTT, Stationary
        >>> from loopgrad.models import Damped
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Damped(Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear), beta="1/4")
        >>> rollout = ReversibleBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=64)
        >>> rollout.state.sum().backward()  # verified: the first state was met again, bit for bit
    """

    references = ("mccallum2025reversible", "maclaurin2015gradient")
    rate_name = "beta"
    damped_copies = 2

    def __init__(
        self,
        cell: nn.Module,
        beta: Fraction | str | float = Fraction(1, 2),
        arithmetic: Arithmetic = "exact",
        per: Per = "cycle",
        dtype: torch.dtype | None = None,
        uncoupled: str | Sequence[str] = (),
    ):
        super().__init__(cell, arithmetic, per, dtype, uncoupled)
        self.beta = fraction_below_one("Damped", "beta", beta)
        self.factor, self.share = float(self.beta), float(1 - self.beta)
        if self.exact:
            self.ratio = Ratio.of(1 - self.beta)
        else:  # each copy is divided by 1 - beta at every other update that is undone
            self.safe_length = int(2 * SPARE_BITS[arithmetic] / -math.log2(1 - self.beta))


class Leapfrog(Coupling):
    r"""The leapfrog recursion.

    .. math:: z_{t+1} = z_{t-1} + h f(z_t), \qquad z_{-1} = z_0

    f is one update of the cell; a leaf that an update hands through stays as it is, so that TRM's two streams each keep
    a pair of their own. Nothing is ever forgotten: it needs no digits and its memory does not grow.

    Args:
        cell: Any cell; a residual branch that normalises what it reads suits best.
        scale: h. The state grows by at most h |f| per update: take about 1 / num_steps for long recursions.
        arithmetic: "exact": multiples of 2^-32 below 2^20 in absolute value. "float64" or "float32": undone up to
            rounding, whose effect on the gradient grows with the square of num_steps in float32.
        per: "update", or "cycle" to take a whole cycle of the cell as f.
        dtype: Dtype in which the cell sees coupled leaves; None for that in which each was given, or, if they are all
            float64, that of the cell's parameters.
        uncoupled: Names of leaves or branches that take the value the cell returns, such as "state['count']" or
            "state[1]"; see `Coupling`. Each is saved once per update that changes it.

    Cost:
        One evaluation of f and a few elementwise operations per update; the state is two float64 copies. A device
        without float64 has the exact grid in int64 (`Coupled`).
    Not recommended when:
        The recursion should settle: only a root of f is a fixed point, not one of the cell.
    Reference:
        Chang et al. 2018, arXiv 1709.03698.

    Raises:
        ValueError: scale is zero or not finite; arithmetic or per is not one of the above.
        TypeError: cell is not a module, or scale not a number; at the first call, "float64" on a device that has none.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ReversibleBPTT, Stationary
        >>> from loopgrad.models import Leapfrog
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Leapfrog(Stationary(lambda z, x: torch.tanh(linear(z) + x), parameters=linear), scale=1 / 64)
        >>> rollout = ReversibleBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=64)
        >>> rollout.state.sum().backward()
    """

    references = ("chang2018reversible",)
    rate_name = "scale"

    def __init__(
        self,
        cell: nn.Module,
        scale: float = 1.0,
        arithmetic: Arithmetic = "exact",
        per: Per = "update",
        dtype: torch.dtype | None = None,
        uncoupled: str | Sequence[str] = (),
    ):
        super().__init__(cell, arithmetic, per, dtype, uncoupled)
        if not is_number(scale):
            raise TypeError(f"Leapfrog(scale={scale!r}) must be a number, the h of z_{{t+1}} = z_{{t-1}} + h f(z_t)")
        if scale == 0 or not math.isfinite(scale):
            raise ValueError(f"Leapfrog(scale={scale!r}) must be finite and not zero: at 0 nothing is iterated")
        self.scale = self.factor = float(scale)
        self.share = 1.0


class Momentum(Coupling):
    r"""A velocity beside the state.

    .. math:: v_{t+1} = \gamma v_t + (1 - \gamma) f(z_t), \qquad z_{t+1} = z_t + v_{t+1}, \qquad v_0 = 0

    f is one update of the cell; a leaf that an update hands through keeps its place and its velocity.

    Args:
        cell: Any cell, taken as a residual branch.
        gamma: Share of the velocity that is kept, in (0, 1): a Fraction or "7/8"; a float whose denominator is at most
            1024.
        arithmetic: "exact": multiples of 2^-32 below 2^20 in absolute value, the digits lost by gamma kept, about
            log2(1 / gamma) bits per element and update. "float64" or "float32": undone up to rounding, which grows by
            1 / gamma per update.
        per: "update", or "cycle" to take a whole cycle of the cell as f.
        dtype: Dtype in which the cell sees coupled leaves; None for that in which each was given, or, if they are all
            float64, that of the cell's parameters.
        uncoupled: Names of leaves or branches that take the value the cell returns, such as "state['count']" or
            "state[1]"; see `Coupling`. Each is saved once per update that changes it.

    Cost:
        One evaluation of f and a few elementwise operations per update; the state is two float64 copies and, if
        exact, a word of digits. A device without float64 has the exact grid in int64 (`Coupled`).
    Not recommended when:
        The image f does not vanish where the recursion should settle: z grows by about f per update.
    Reference:
        Sander et al. 2021, arXiv 2102.07870.

    Raises:
        ValueError: gamma, arithmetic or per is not one of the above.
        TypeError: cell is not a module; at the first call, "float64" on a device that has none.

    Example:
        >>> import torch
        >>> from loopgrad.gradients import ReversibleBPTT, Stationary
        >>> from loopgrad.models import Momentum
        >>> linear = torch.nn.Linear(3, 3)
        >>> cell = Momentum(Stationary(lambda z, x: torch.tanh(linear(z) + x) - z, parameters=linear), gamma="7/8")
        >>> rollout = ReversibleBPTT()(cell, torch.zeros(2, 3), torch.ones(2, 3), num_steps=64)
        >>> rollout.state.sum().backward()
    """

    references = ("sander2021momentum",)
    rate_name = "gamma"
    damped_copies = 1

    def __init__(
        self,
        cell: nn.Module,
        gamma: Fraction | str | float = Fraction(7, 8),
        arithmetic: Arithmetic = "exact",
        per: Per = "update",
        dtype: torch.dtype | None = None,
        uncoupled: str | Sequence[str] = (),
    ):
        super().__init__(cell, arithmetic, per, dtype, uncoupled)
        self.gamma = fraction_below_one("Momentum", "gamma", gamma)
        self.factor, self.share = float(1 - self.gamma), float(self.gamma)
        if self.exact:
            self.ratio = Ratio.of(self.gamma)
        else:  # the velocity is divided by gamma at each update that is undone
            self.safe_length = int(SPARE_BITS[arithmetic] / -math.log2(self.gamma))

    def _companion(self, leaf: Tensor) -> Any:
        return self._stored(torch.zeros_like(leaf).detach())

    def _read_by(self, current: Any, other: Any) -> Any:
        return current - other

    def _next(self, current: Any, other: Any, lost: list[Tensor], image: Tensor) -> tuple:
        kept, digits = self._damp(other, lost)
        velocity = self._plus(kept, image)
        return current + velocity, velocity, digits

    def _before(self, current: Any, other: Any, lost: list[Tensor], image: Tensor) -> tuple:
        return self._undamp(self._minus(other, image), lost)

    def _pulled(self, current: Tensor | None, other: Tensor | None) -> tuple[Tensor | None, ...]:
        velocity = total(other, current)
        return velocity, current, times(velocity, self.share)


COUPLINGS = {"damped": Damped, "leapfrog": Leapfrog, "momentum": Momentum}


def coupled(
    cell: nn.Module, coupling: str | None, rate: float | str | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Return the cell wrapped in the coupling of a name, or as it is for None.

    Args:
        cell: Any cell.
        coupling: "damped", "leapfrog", "momentum" or None.
        rate: beta of "damped", scale of "leapfrog", gamma of "momentum"; None for the default of each.
        dtype: Dtype in which the cell sees the state.

    Raises:
        ValueError: The name is unknown, or a rate is given without one.
    """
    if coupling is None:
        if rate is not None:
            raise ValueError(
                f"coupling_rate={rate!r} has no effect without coupling='damped', 'leapfrog' or 'momentum'"
            )
        return cell
    if coupling not in COUPLINGS:
        names = ", ".join(map(repr, COUPLINGS))
        raise ValueError(f"coupling must be {names} or None, got {coupling!r}")
    if rate is None:
        return COUPLINGS[coupling](cell, dtype=dtype)
    if coupling == "leapfrog":
        try:
            rate = float(Fraction(rate))
        except ValueError:
            raise ValueError(f"coupling_rate={rate!r} must be a number, the scale of coupling='leapfrog'") from None
    return COUPLINGS[coupling](cell, rate, dtype=dtype)

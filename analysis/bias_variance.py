"""Bias and variance of a random gradient estimator, from many draws, with an error that makes "unbiased" testable.

One draw of a random estimator says little: its cosine with the exact gradient is noise of one sample.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from loopgrad.analysis.agreement import compare_gradients, float64_vector, members, quotient
from loopgrad.analysis.evaluation import leaving_modules_alone
from loopgrad.analysis.exact_gradients import Gradients, drawn_gradients, reference_gradients, trainable
from loopgrad.analysis.moments import Moments
from loopgrad.analysis.precision import preserved_buffers, preserved_rng
from loopgrad.analysis.summaries import screen
from loopgrad.gradients import BPTT, Estimator
from loopgrad.gradients.checks import is_int

Loss = Callable[[nn.Module, Estimator], Tensor]


@dataclass(frozen=True)
class BiasVariance:
    """What K draws of a gradient say about its distribution, of mean m and covariance S, beside the exact gradient g*.

    Attributes:
        draws: K.
        reference_squared: ||g*||^2.
        product: <mean, g*>.
        bias_squared: ||mean - g*||^2 - tr(S)/K, an unbiased estimate of ||m - g*||^2, so that it may fall below 0.
        bias_error: Its standard error, sqrt(4 b^T S b / K + 2 tr(S^2) / (K (K - 1))) with b = m - g*, estimated; too
            large, by a factor of 1.3 to 2, where the bias is too small to be seen.
        z: bias_squared over the error that it has under no bias, sqrt(2 tr(S^2) / (K (K - 1))); nan if the variance
            is 0.
        p: Chance of so large a z under no bias: of a chi-square of `dimensions` degrees of freedom; nan as z.
        variance: tr(S), of one draw.
        dimensions: tr(S)^2 / tr(S^2), in how many directions the noise is spread, at least 1; nan as z.
        mse: E ||g - g*||^2 of one draw, bias_squared + variance.
        cosine: Mean of the cosine of one draw with g*; nan where either was zero.
        cosine_deviation: Standard deviation of that cosine over draws.
        groups: The same for each group of parameters, by name; empty within a group.
    """

    draws: int
    reference_squared: float
    product: float
    bias_squared: float
    bias_error: float
    z: float
    p: float
    variance: float
    dimensions: float
    mse: float
    cosine: float
    cosine_deviation: float
    groups: dict[str, "BiasVariance"] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Say how far and how noisy the draws are, over all parameters and by group."""
        header = ["parameters", "cosine", "relative bias", "z", "p", "snr", "draws for cosine 0.9"]
        rows = []
        for name, it in {"all": self, **self.groups}.items():
            numbers = (it.relative_bias, it.z, it.p, it.snr, it.draws_for(0.9))
            rows.append([name, f"{it.cosine:.3g} +- {it.cosine_deviation:.2g}", *(f"{value:.3g}" for value in numbers)])
        return screen(f"BiasVariance of {self.draws} draws", header, rows)

    @property
    def snr(self) -> float:
        """Signal to noise, ||g*||^2 / tr(S); inf without noise, nan if g* is zero as well."""
        return quotient(self.reference_squared, self.variance)

    @property
    def relative_mse(self) -> float:
        """E ||g - g*||^2 / ||g*||^2 of one draw."""
        return quotient(self.mse, self.reference_squared)

    @property
    def relative_bias(self) -> float:
        """||m - g*|| / ||g*||; 0 where the estimate of the square is below 0."""
        return quotient(math.sqrt(max(0.0, self.bias_squared)), math.sqrt(self.reference_squared))

    def draws_for(self, cosine: float = 0.9) -> float:
        """Return how many draws to average for that cosine with g*, at least 1; inf if the bias keeps it from that.

        From cos^2 = <m, g*>^2 / (||g*||^2 (||m||^2 + tr(S) / n)), solved for n.

        Raises:
            ValueError: cosine is not in (0, 1).
        """
        if not 0 < cosine < 1:
            raise ValueError(f"cosine must be between 0 and 1, got {cosine}")
        if self.product <= 0 or self.reference_squared == 0:
            return math.inf
        along = self.product**2 / self.reference_squared
        size = self.bias_squared + 2 * self.product - self.reference_squared  # ||m||^2
        room = along - cosine**2 * size
        return max(1.0, cosine**2 * self.variance / room) if room > 0 else math.inf


@leaving_modules_alone
def bias_and_variance(
    estimator: Estimator | Callable[[int], Estimator],
    loss: Loss,
    module: nn.Module,
    draws: int = 256,
    reference: Gradients | None = None,
    groups: Callable[[str], str] | None = None,
) -> BiasVariance:
    """Draw the gradient of an estimator many times, and compare its mean and its noise with the exact gradient.

    The objective is fixed: a loss that itself draws random numbers, as active dropout does, is refused. Between draws
    the global generators run on, and so does a generator of the estimator's own; they are put back (the global ones)
    at the end, so that a second call repeats the draws of an estimator that uses them. An estimator with a fixed seed
    would give one draw K times: hand over `lambda draw: MyEstimator(seed=draw)`.

    Small z and large p mean that K draws show no bias, not that there is none: `bias_error` says how large a bias would
    have stayed unseen. An estimator without noise has variance exactly 0 and z of nan, and its bias is all its error.

    Cost:
        K forward and backward passes, and one in float64; a dozen passes over the gradient per draw on the CPU, and a
        dozen float64 vectors of the parameters' size, whatever K.
    Not recommended when:
        The estimator is deterministic: `compare_gradients` says the same from one draw. With fewer
        than about 32 draws for a cosine, 256 for a bias.

    Args:
        estimator: A random estimator, or a function of the number of the draw that returns one.
        loss: loss(module, estimator) -> scalar, as in `compare_with_bptt`.
        module: Whose named parameters are differentiated; left as it was.
        draws: K, at least 4.
        reference: g*, parameter name -> tensor or None. Default: float64 `BPTT`.
        groups: Groups of parameters, as in `compare_gradients`.

    Returns:
        The spread, over all parameters and per group.

    Raises:
        ValueError: draws is below 4; the loss draws random numbers under `BPTT`; reference names other parameters.
        TypeError: estimator is neither an estimator nor a function that returns one.

    Reference:
        Hoeffding 1948, Annals of Mathematical Statistics 19: bias_squared is the U-statistic of <g_i - g*, g_j - g*>,
        which gives its error.

    Example:
        >>> import torch
        >>> from loopgrad.analysis import bias_and_variance
        >>> from loopgrad.gradients import BPTT
        >>> w = torch.nn.Linear(2, 1).double()
        >>> loss = lambda module, estimator: module(torch.ones(1, 2).double()).sum()
        >>> found = bias_and_variance(BPTT(), loss, w, draws=4)
        >>> found.variance, found.bias_squared, found.draws_for(0.9)
        (0.0, 0.0, 1.0)
    """
    if not is_int(draws, 4):
        raise ValueError(f"draws must be an int of at least 4, two pairs, got {draws!r}")
    if not isinstance(estimator, Estimator) and not callable(estimator):
        raise TypeError(f"estimator must be an Estimator or a function of the draw, got {type(estimator).__name__}")
    _check_fixed(loss, module)
    if reference is None:
        with preserved_buffers(module):
            reference = reference_gradients(lambda own: loss(own, BPTT()), module)
    layout = _Layout(trainable(module), reference, groups)
    moments = Moments(layout.join(reference), layout.sizes)
    with preserved_rng():
        for draw in range(draws):
            one = estimator if isinstance(estimator, Estimator) else estimator(draw)
            if not isinstance(one, Estimator):
                raise TypeError(f"estimator({draw}) must return an Estimator, got {type(one).__name__}")
            with preserved_buffers(module):
                moments.add(layout.join(drawn_gradients(lambda own, one=one: loss(own, one), module)))
    *parts, whole = moments.summary()
    groups_found = {name: BiasVariance(**part) for name, part in zip(layout.names, parts, strict=True)}
    return BiasVariance(**whole, groups=groups_found)


@leaving_modules_alone
def minibatch_variance(losses: Iterable[Callable[[nn.Module], Tensor]], module: nn.Module) -> float:
    """Return tr(S) of the exact gradient over mini-batches: the noise that training has anyway.

    An estimator whose variance is far below it gains nothing from more draws.

    Cost:
        A forward and backward pass in float64 per mini-batch; a few float64 vectors of the parameters' size.

    Args:
        losses: For each of two or more random mini-batches of one size, loss(module) -> scalar in float64, with `BPTT`.
        module: Whose named parameters are differentiated.

    Raises:
        ValueError: There are fewer than two losses.
    """
    parameters = trainable(module)
    layout = _Layout(parameters, dict.fromkeys(parameters), None)
    moments = Moments(torch.zeros(sum(layout.sizes), dtype=torch.float64), layout.sizes)
    for loss in losses:
        with preserved_buffers(module):
            moments.add(layout.join(reference_gradients(loss, module)))
    if moments.count < 2:
        raise ValueError(f"losses must hold two mini-batches at least to have a variance, got {moments.count}")
    return float(moments.squares[-1]) / (moments.count - 1)


class _Layout:
    """The way from gradients by name to one vector, in which each group of parameters is a stretch."""

    def __init__(self, parameters: Gradients, reference: Gradients, groups: Callable[[str], str] | None):
        compare_gradients(parameters, reference)  # that names and shapes are those of the module
        stretches = members(parameters, groups)
        lengths = {name: float64_vector(parameter).numel() for name, parameter in parameters.items()}
        self.names = list(stretches)
        self.sizes = [sum(lengths[name] for name in names) for names in stretches.values()]
        self._lengths = {name: lengths[name] for names in stretches.values() for name in names}

    def join(self, gradients: Gradients) -> Tensor:
        parts = ((gradients[name], length) for name, length in self._lengths.items())
        return torch.cat([torch.zeros(n, dtype=torch.float64) if g is None else float64_vector(g) for g, n in parts])


def _check_fixed(loss: Loss, module: nn.Module) -> None:
    with preserved_rng(), preserved_buffers(module), torch.no_grad():
        before = _generators()
        loss(module, BPTT())
        if not all(map(torch.equal, before, _generators())):
            raise ValueError(
                "loss draws random numbers under BPTT, such as dropout's, so it is another objective at every draw: "
                "call module.eval(), or draw in the loss from a generator of its own with a fixed seed"
            )


def _generators() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]

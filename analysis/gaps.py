"""How far gradients are from BPTT, by group of samples, beside the residual and the spectral radius at those samples.

A residual that goes to zero validates the implicit gradient and not the one-step gradient, which needs a small Jacobian
as well; and a gap over a whole batch hides that solved and unsolved samples differ. So the three stand side by side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loopgrad.analysis.agreement import Agreement, compare_gradients, float64_vector, members
from loopgrad.analysis.evaluation import leaving_modules_alone
from loopgrad.analysis.exact_gradients import Gradients, gradients_of, reference_gradients
from loopgrad.analysis.gradient_points import evenly, residual_and_radius, rows_of, taken_at
from loopgrad.analysis.latent import Streams
from loopgrad.analysis.precision import preserved_buffers
from loopgrad.analysis.summaries import BAND, Array, band_of, quantiles, screen
from loopgrad.gradients import BPTT, Estimator
from loopgrad.gradients.batch_first import state_first
from loopgrad.gradients.checks import is_int
from loopgrad.gradients.invertible import is_invertible


@dataclass(frozen=True)
class GradientGap:
    """One estimator's gradient g of the loss of one group of samples, beside float64 BPTT g* of the same loss.

    Attributes:
        estimator: Its name.
        samples: Name of the group of samples.
        count: Samples of the group.
        at: Updates before the point z_at where the gradient is taken, see `taken_at`; one cycle before the end where
            the cell has no input for a cycle from there on, as one that reads an input per update.
        cosine: <g, g*> / (||g|| ||g*||).
        relative_error: ||g - g*|| / ||g*||.
        norm_ratio: ||g|| / ||g*||.
        best_scale: a* = <g, g*> / ||g||^2, the factor that brings g nearest to g*; nan where g is zero.
        sign_agreement: Share of the entries with g* not zero in which g has the sign of g*; nan if there are none.
        parameters: Agreement within each group of parameters, by name.
        signs: Sign agreement within each group of parameters.
        residual: ||F(z) - z|| of the joint cycle map F at z_at, relative as in `Trace.joint_relative`, evaluated in
            float64, one per sample of the group.
        radius: Spectral radius of dF/dz at z_at, one per sample of the group; nan where not asked for, inf where z_at
            or its image is not finite.
    """

    estimator: str
    samples: str
    count: int
    at: int
    cosine: float
    relative_error: float
    norm_ratio: float
    best_scale: float
    sign_agreement: float
    parameters: dict[str, Agreement]
    signs: dict[str, float]
    residual: Array
    radius: Array

    def __repr__(self) -> str:
        """Say how near the gradient is, over all parameters and by group, beside residual and radius."""
        title = f"GradientGap of {self.estimator} on {self.samples} ({self.count} samples), taken at z_{self.at}\n"
        title += f"residual {band_of(self.residual)}, spectral radius {band_of(self.radius)}; median [5 %, 95 %]"
        keys = ("cosine", "relative_error", "norm_ratio", "best_scale", "sign_agreement")
        numbers = [(row["parameters"], *(row[key] for key in keys)) for row in self.table(BAND)]
        rows = [[name, *("-" if value is None else f"{value:.3g}" for value in values)] for name, *values in numbers]
        return screen(title, ["parameters", *(key.replace("_", " ") for key in keys)], rows)

    def table(self, levels: Sequence[float] = BAND) -> list[dict[str, Any]]:
        """Return rows ready for JSON or a data frame: all parameters first, then each group of parameters.

        Args:
            levels: Levels of the quantiles of residual and radius over samples, in columns such as "residual_q50".

        Returns:
            One dict per row, the same columns in each; None where a number is not finite or was not asked for.
        """
        known = self.radius[~np.isnan(self.radius)]
        beside = {}
        for name, values in (("residual", self.residual), ("radius", known)):
            pairs = zip(levels, quantiles(values, levels), strict=True)
            beside |= {f"{name}_q{100 * q:g}": value for q, value in pairs}
        place = {key: getattr(self, key) for key in ("estimator", "samples", "count", "at")}
        rows: list[tuple[str, Any, float]] = [("all", self, self.sign_agreement)]
        rows += [(name, part, self.signs[name]) for name, part in self.parameters.items()]
        table = []
        for name, part, signs in rows:
            numbers = {key: getattr(part, key) for key in ("cosine", "relative_error", "norm_ratio")}
            numbers |= {"best_scale": best_scale(part), "sign_agreement": signs}
            finite = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            table.append({**place, "parameters": name, **finite, **beside, "radius_count": int(known.size)})
        return table


@leaving_modules_alone
def gradient_gaps(
    estimators: Mapping[str, Estimator],
    loss: Callable[[nn.Module, Estimator, Tensor], Tensor],
    module: nn.Module,
    cell: nn.Module,
    state: Any,
    inputs: Any,
    num_steps: int,
    *,
    samples: Mapping[str, Any] | None = None,
    groups: Callable[[str], str] | None = None,
    radius_samples: int = 8,
    batch_dim: Any = 0,
    latent: Any = None,
) -> list[GradientGap]:
    """Compare the gradient of each estimator with float64 BPTT for each group of samples, beside residual and radius.

    The loss of a group is a loss of its samples alone, with a gradient and a reference of its own. For a gap per sample
    give one group per sample: samples={str(i): [i] for i in range(batch)}. The module, its gradients and buffers and
    the random number generators are left as they were.

    Cost:
        One forward and backward pass per estimator and group, and one in float64 per group; for each point z_at, that
        is once for all estimators but the truncated, twice the updates of the whole batch; and for each of its samples
        with a radius as many vector-Jacobian products of a cycle as the state has features, up to 96, or tens to
        hundreds above.
    Not recommended when:
        An estimator is random; this takes a single draw, see `bias_and_variance`. When the cell mixes
        samples: residual and radius are then those of the whole batch, the gradients those of the group alone.

    Args:
        estimators: Name -> estimator.
        loss: loss(module, estimator, rows) -> scalar loss of the samples `rows`, an int64 index tensor on the device
            of the state. It casts the batch and the carry to the dtype of the module's parameters.
        module: Whose named parameters are differentiated.
        cell: The module's cell, called as cell(state, inputs, step).
        state: z_0 of the whole batch, a tree of tensors (batch, ...).
        inputs: What the cell reads, of the whole batch.
        num_steps: Number of updates T that the loss runs.
        samples: Name of a group -> mask (batch,) of bools, or indices. Default: "all" samples. Groups may overlap.
        groups: Groups of parameters, as in `compare_gradients`.
        radius_samples: Samples per group whose spectral radius is computed, evenly chosen in the order of the batch.
        batch_dim: Where the batch is in `state` and `inputs`, as estimators are told; `loss` tells its estimator
            itself.
        latent: Names of the leaves that are the latent state, as in `record`.

    Returns:
        One gap per group of samples and estimator, groups outermost.

    Raises:
        ValueError: A group is empty, has another length than the batch, or repeats or exceeds it; radius_samples is
            negative, or above zero for a coupled cell; no estimators; and as `record` and `reference`.
        TypeError: A group is neither bools nor indices; and as `record` and `reference`.

    Reference:
        Bai et al. 2019, arXiv 1909.01377 (the fixed-point premise); Fung et al. 2022, arXiv 2103.12803 (the one-step
        gradient).

    Example:
        >>> import torch
        >>> from loopgrad.analysis import gradient_gaps
        >>> from loopgrad.gradients import Stationary, TruncatedBPTT
        >>> w, x = torch.nn.Linear(1, 1).double(), torch.ones(1, 1).double()
        >>> cell = Stationary(lambda z, x: 0.5 * z + w(x), parameters=w)
        >>> loss = lambda module, estimator, rows: estimator(cell, 0 * x[rows], x[rows], 20).state.sum()
        >>> round(gradient_gaps({"": TruncatedBPTT(1)}, loss, w, cell, 0 * x, x, 20)[0].norm_ratio, 3)  # residual 1e-6
        0.5
    """
    if not estimators:
        raise ValueError("estimators is empty: give a name -> estimator")
    if not is_int(radius_samples, 0):
        raise ValueError(f"radius_samples must be an int of at least 0, got {radius_samples!r}")
    if radius_samples and is_invertible(cell):
        raise ValueError(
            "radius_samples must be 0 for a coupled cell, whose map of two copies has other eigenvalues: "
            "give cell=the cell inside, or radius_samples=0"
        )
    leaf = Streams.checked(state, latent).leaves(state_first(state, batch_dim))[0]
    rows = rows_of(samples, leaf.shape[0], leaf.device)
    chosen = {name: evenly(index, radius_samples) for name, index in rows.items()}
    wanted = torch.cat(list(chosen.values())).unique()
    where = {name: taken_at(estimator, cell, num_steps) for name, estimator in estimators.items()}
    begun = (cell, state, inputs, num_steps)
    points = {at: residual_and_radius(*begun, at, wanted, batch_dim, latent) for at in set(where.values())}
    found = []
    for group, index in rows.items():
        with preserved_buffers(module, cell):
            exact = reference_gradients(lambda own, index=index: loss(own, BPTT(), index), module)
        here = index.cpu().numpy()
        for name, estimator in estimators.items():
            with preserved_buffers(module, cell):
                gradient = gradients_of(lambda own, e=estimator, index=index: loss(own, e, index), module)
            whole = compare_gradients(gradient, exact, groups)
            residual, radius, at = points[where[name]]
            asked = np.isin(here, chosen[group].cpu().numpy())
            gap = GradientGap(
                estimator=name,
                samples=group,
                count=here.size,
                at=at,
                cosine=whole.cosine,
                relative_error=whole.relative_error,
                norm_ratio=whole.norm_ratio,
                best_scale=best_scale(whole),
                sign_agreement=sign_agreement(gradient, exact),
                parameters=whole.groups,
                signs={part: sign_agreement(gradient, exact, names) for part, names in members(exact, groups).items()},
                residual=residual[here],
                radius=np.where(asked, radius[here], math.nan),
            )
            found.append(gap)
    return found


def best_scale(agreement: Agreement) -> float:
    """Return a* = <g, g*> / ||g||^2, which is the cosine over the norm ratio; nan where g is zero."""
    return agreement.cosine / agreement.norm_ratio if agreement.norm_ratio > 0 else math.nan


def sign_agreement(gradient: Gradients, reference: Gradients, names: Sequence[str] | None = None) -> float:
    """Return the share of the entries with g* not zero in which g has the sign of g*; nan if every entry of g* is zero.

    A None counts as zero, and a zero of g has not the sign. Looked at are the parameters `names`, by default all.
    """
    same = total = 0
    for name in reference if names is None else names:
        g, exact = gradient[name], reference[name]
        if exact is None:
            continue
        sign = float64_vector(exact).sign()
        total += int((sign != 0).sum())
        same += 0 if g is None else int(((float64_vector(g).sign() == sign) & (sign != 0)).sum())
    return same / total if total else math.nan

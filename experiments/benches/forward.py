"""How good forward gradients are, and for whom: cosine and error over tangents, parameters, updates and samples.

Beside each of them stands what the exact gradient costs at the same memory, and what it needs at the same arithmetic.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar

from loopgrad.analysis import compare_gradients, plots
from loopgrad.experiments.benches.contract import Bench
from loopgrad.experiments.benches.forward_points import Measured, Problem, Setting, schedules, within_flops, within_peak
from loopgrad.experiments.benches.forward_words import words
from loopgrad.experiments.benches.ledger import NOTHING_KEPT, Ledger, Part
from loopgrad.gradients import BPTT, CheckpointedBPTT, Estimator, ForwardGradient, TruncatedBPTT

COLUMNS = ("K", "gradient", "cosine", "sd", "law", "rel. MSE", "C", "K*", "peak KiB", "forwards")
COLUMNS += ("same peak: forwards", "same FLOPs: KiB")
EXACT, IN_TURN = ("BPTT", "checkpoints"), ", in turn"
SWEEPS = {"K": "tangents K", "P": "parameters P", "T": "updates T", "batch": "samples in a batch"}


@dataclass(frozen=True)
class Forward(Bench):
    """Forward gradients beside BPTT, truncation and checkpoints, on random cells z <- rms_norm(z + W2 silu(W1(z + x))).

    For whom: perturbing the state finds the direction of the gradient where a state is small and many samples agree;
    its error is then below that of truncation. It has no memory or arithmetic to offer: it takes more FLOPs than
    BPTT from one tangent on, and at its own peak checkpoints give the exact gradient for fewer. Perturbing weights
    serves some hundred parameters at most, or, as zeroth order, a recursion without autograd; only that, with few
    tangents, gets below the least memory of an exact gradient. Where memory is short, truncation is better by far.
    Panchal et al. 2025, arXiv 2506.21833, found checkpointed backpropagation up to 31.1 % more accurate, 34.8 % faster
    to converge and 3.8 times less in compute than forward-mode and zeroth-order gradients at comparable memory.

    Rows: "state" and "weights" are `ForwardGradient` by what it perturbs; with "window" the last updates are exact;
    "in turn" gives the same numbers with chunk_size=1, for less memory; "zeroth order" is mode="central" on weights.
    "checkpoints, least" stores z_0 alone, by the binomial schedule.

    Columns:
        cosine, sd: Mean and standard deviation over cells and draws of the cosine with the gradient by float64 BPTT;
            the estimates are in float32.
        law: sqrt(K / (P + K)), of the root mean square, when weights are perturbed; the mean is 0.8 times that at K=1.
        rel. MSE, C: E ||estimate - g||^2 / ||g||^2, and K times it: P - 1 when weights are perturbed.
        K*: C over the rel. MSE of truncation to the window: the tangents from which on the error is below that.
        peak KiB, forwards: Peak bytes, and FLOPs over those of a forward pass, of a forward and backward pass: exact.
        same peak: forwards: Of the exact gradient of fewest FLOPs with at most this row's peak; nan if none has, and
            "checkpoints, least" is the smallest then.
        same FLOPs: KiB: Peak of the exact gradient of least memory with at most this row's FLOPs; nan if none has.
    What has no tangents has K = 0 and nan where a column does not apply.

    Args:
        tangents: K of a sweep; all sweeps meet in the point of num_tangents, size, num_steps and batch_size.
        features: Features of the state of a sweep; P = 4 features^2, so that parameters and state grow together.
        lengths: Updates T of a sweep.
        batches: Samples of a sweep.
        num_tangents: K of the other sweeps.
        size: Features of the others.
        num_steps: Updates of the others.
        batch_size: Samples of the others.
        window: Last updates differentiated exactly, of "state, window"; the first of the truncations.
        wider: Window of the other truncation.
        shared: One weight of the loss for all samples, so that their gradients agree; False draws one for each.
        cells: Random cells.
        draws: Draws of each estimator on each cell.
        seed: Seed of all random numbers.

    Raises:
        ValueError: A size is too small.
    """

    tangents: tuple[int, ...] = (1, 4, 8, 16, 64)
    features: tuple[int, ...] = (5, 16, 50, 160)
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64)
    batches: tuple[int, ...] = (32, 256, 2048)
    num_tangents: int = 8
    size: int = 16
    num_steps: int = 16
    batch_size: int = 32
    window: int = 1
    wider: int = 4
    shared: bool = True
    cells: int = 4
    draws: int = 16
    seed: int = 0

    may_be_empty: ClassVar = frozenset({"tangents", "features", "lengths", "batches"})
    least: ClassVar = {"size": 2, "features": 2}

    def __post_init__(self) -> None:
        above = self.window + 1
        super().__post_init__()
        for name in ("wider", "num_steps", "lengths"):
            value = getattr(self, name)
            if min([value] if isinstance(value, int) else value, default=above) < above:
                raise ValueError(f"{name}={value} must be at least {above}, above window")

    def rows(self, ledger: Ledger = NOTHING_KEPT) -> list[dict[str, Any]]:
        """Return one row per point and gradient."""
        base = Setting(self.batch_size, self.size, self.num_steps, self.shared)
        others = [Setting(self.batch_size, n, self.num_steps, self.shared) for n in self.features]
        others += [Setting(self.batch_size, self.size, n, self.shared) for n in self.lengths]
        others += [Setting(n, self.size, self.num_steps, self.shared) for n in self.batches]
        places = [(base, sorted({*self.tangents, self.num_tangents}))]
        places += [(it, [self.num_tangents]) for it in dict.fromkeys(others) if it != base]
        parts = [
            Part(str(setting), partial(self._at, setting, k), 5 + len(k) * len(self._ways())) for setting, k in places
        ]
        return list(ledger.each(parts))

    def figures(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Draw the cosines of all but the exact gradients."""
        base = {"K": self.num_tangents, "P": 4 * self.size**2, "T": self.num_steps, "batch": self.batch_size}
        points = []
        for key, label in SWEEPS.items():
            mine = [r for r in rows if all(r[name] in (base[name], 0) for name in base if name != key)]
            for r in mine:
                if not r["gradient"].startswith(EXACT) and not r["gradient"].endswith(IN_TURN):
                    # what has no tangents is the same at every number of them
                    for value in [r[key]] if r[key] else sorted({other[key] for other in mine} - {0}):
                        points.append(plots.Estimate(r["gradient"], label, value, r["cosine"], r["law"]))
        plots.save(plots.forward_cosines(points), folder / "forward-figure")

    def text(self, rows: list[dict[str, Any]]) -> str:
        """Say for whom this is."""
        return words(rows, self._windowed)

    def _at(self, setting: Setting, tangents: list[int]) -> list[dict[str, Any]]:
        problems = [Problem(setting, self.seed + i) for i in range(self.cells)]
        one, exact = problems[0], schedules(problems[0])
        fixed: dict[str, Estimator] = {f"truncated, {k}": TruncatedBPTT(k) for k in (self.window, self.wider)}
        fixed |= {"BPTT": BPTT(), "checkpoints, sqrt": CheckpointedBPTT()}
        fixed["checkpoints, least"] = CheckpointedBPTT("binomial", num_snapshots=0)
        without = [
            {"K": 0, "gradient": name, **_quality(problems, [estimator] * self.cells, 1), **_costs(one, estimator)}
            for name, estimator in fixed.items()
        ]
        bias = without[0]["rel. MSE"]
        found = []
        for k in tangents:
            for name, options in self._ways().items():
                estimators = [ForwardGradient(k, seed=self.seed + i, **options) for i in range(self.cells)]
                row = {"K": k, "gradient": name, **_quality(problems, estimators, self.draws)}
                if options["perturb"] == "weights":
                    row["law"] = math.sqrt(k / (setting.parameters + k))
                row["C"] = k * row["rel. MSE"]
                row["K*"] = row["C"] / bias if bias else math.nan
                found.append(row | _costs(one, estimators[0], exact))
                if k > 1 and name == self._windowed:  # chunks change no number
                    in_turn = ForwardGradient(k, seed=self.seed, chunk_size=1, **options)
                    found.append(row | {"gradient": name + IN_TURN} | _costs(one, in_turn, exact))
        place = {"T": setting.num_steps, "batch": setting.batch_size, "P": setting.parameters}
        return [place | dict.fromkeys(COLUMNS, math.nan) | row for row in found + without]

    @property
    def _windowed(self) -> str:
        return f"state, window {self.window}"

    def _ways(self) -> dict[str, dict[str, Any]]:
        weights = {"perturb": "weights", "window": 0}
        return {
            "state": {"perturb": "state", "window": 0},
            self._windowed: {"perturb": "state", "window": self.window},
            "weights": weights,
            "zeroth order": weights | {"mode": "central"},
        }


def _quality(problems: Sequence[Problem], estimators: Sequence[Estimator], draws: int) -> dict[str, float]:
    """Return mean and deviation of the cosine and the mean relative squared error, over cells and draws."""
    found = []
    for problem, estimator in zip(problems, estimators, strict=True):
        for _ in range(draws):
            found.append(compare_gradients(problem.gradient(estimator), problem.exact))
    cosines = [it.cosine for it in found]
    return {"cosine": fmean(cosines), "sd": pstdev(cosines), "rel. MSE": fmean(it.relative_error**2 for it in found)}


def _costs(problem: Problem, estimator: Estimator, exact: Sequence[Measured] = ()) -> dict[str, float]:
    """Return what a gradient costs and, given exact ones, what these cost at the same peak and the same FLOPs."""
    cost = problem.cost(estimator)
    found = {"peak KiB": cost.peak_bytes / 1024, "forwards": problem.forwards(cost)}
    if exact and (same := within_peak(problem, exact, cost.peak_bytes)):
        found["same peak: forwards"] = problem.forwards(same[1])
    if exact and (same := within_flops(exact, cost.flops)):
        found["same FLOPs: KiB"] = same[1].peak_bytes / 1024
    return found

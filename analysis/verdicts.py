"""The words of a verdict: labels, the thresholds they rest on, and one stream's verdicts with their numbers."""

from dataclasses import dataclass, replace

from loopgrad.analysis.positions import PositionVerdicts
from loopgrad.analysis.summaries import Array, band_of, screen

LABELS = (
    "converged",
    "converging",
    "drift",
    "cycle",
    "orbit",
    "quasiperiodic",
    "chaotic",
    "diverging",
    "stalled",
    "too short",
)
# rounding of one update relative to the state, as measured on blocks of attention and SwiGLU: some eps of the dtype
FLOORS = {"bfloat16": 7.8e-3, "float16": 9.8e-4, "float32": 4.8e-7, "float64": 8.9e-16}


@dataclass(frozen=True)
class Thresholds:
    """What the labels rest on; heuristics, so look at `sweep_thresholds` too.

    Attributes:
        rtol: Relative residual per cycle that counts as having arrived.
        min_cycles: Least number of cycles in the tail, the last half of the run.
        errors: Standard errors of the slope of log residual that make it a trend (they ignore autocorrelation).
        fit: Least R^2 of a trend.
        recurrence: Distance to an earlier state, over the typical step, that counts as the same state.
        straight: Net displacement over path length from which motion is straight.
        exponent: Size of a Lyapunov exponent, in nats per cycle, that is taken as different from zero.
        turning: Net displacement over path length below which steps turn back on themselves.
    """

    rtol: float = 1e-3
    min_cycles: int = 8
    errors: float = 5.0
    fit: float = 0.8
    recurrence: float = 0.02
    straight: float = 0.9
    exponent: float = 0.02
    turning: float = 0.2

    def scaled(self, factor: float) -> "Thresholds":
        """Return thresholds with rtol, recurrence and exponent multiplied."""
        scaled = {name: getattr(self, name) * factor for name in ("rtol", "recurrence", "exponent")}
        return replace(self, **scaled)


@dataclass(frozen=True)
class Verdicts:
    """One stream's labels with the numbers behind them, arrays over the samples (B,).

    Attributes:
        stream: Its name, or "joint" for all together.
        label: One of LABELS.
        residual: Relative residual per cycle, median over the last quarter; of the re-evaluated map if that is larger.
        rate: Factor per cycle by which the residual changes, from the tail; nan where it is zero or not finite.
        exponent: alpha of residual ~ cycle^alpha, from the tail.
        distance: Estimated distance that is left, relative: residual / (1 - rate), or with a spectral radius in place
            of the rate, and with the floor in place of a residual below it that was not re-evaluated; nan where that
            rate is 1 or more.
        period: Period of a cycle, in cycles of the cell; 0 for other labels.
        straightness: Net displacement over path length, over the lags of the trace.
        lyapunov: The exponent that was given, nan if none was.
        radius: The spectral radius that was given, nan if none was.
        floor: Relative residual that rounding leaves, from the dtype.
        at_floor: Whether the residual is within the floor.
        cycles: Number of cycles that were judged.
        thresholds: Those used.
        row: Row of the batch that each sample was, int (B,); None where it was not recorded per position.
        position: Position that each sample was in its row, int (B,); None likewise.
    """

    stream: str
    label: Array
    residual: Array
    rate: Array
    exponent: Array
    distance: Array
    period: Array
    straightness: Array
    lyapunov: Array
    radius: Array
    floor: float
    at_floor: Array
    cycles: int
    thresholds: Thresholds
    row: Array | None = None
    position: Array | None = None

    def __repr__(self) -> str:
        """Say how many samples have each label, and their residuals."""
        what = "samples" if self.position is None else "positions"
        title = f"Verdicts of {self.stream}: {self.cycles} cycles, {self.label.size} {what}, floor {self.floor:.2g}"
        rows = []
        for label, count in self.counts().items():
            chosen = self.label == label
            name = f"cycle of {band_of(self.period[chosen])}" if label == "cycle" else label
            numbers = (band_of(self.residual[chosen]), band_of(self.rate[chosen]))
            rows.append([name, str(count), f"{100 * count / self.label.size:.1f}", *numbers])
        return screen(f"{title}; median [5 %, 95 %]", ["label", what, "%", "residual", "rate per cycle"], rows)

    def counts(self, where: Array | None = None) -> dict[str, int]:
        """Return the number of samples per label, those of a boolean mask if one is given."""
        chosen = self.label if where is None else self.label[where]
        return {label: int((chosen == label).sum()) for label in LABELS if (chosen == label).any()}

    def by_position(self) -> PositionVerdicts:
        """Return the labels as a map (samples, positions), with the share of each and where positions disagree.

        Raises:
            ValueError: Whole samples were judged.
        """
        if self.row is None or self.position is None:
            raise ValueError("these verdicts are of whole samples: record(..., per='position') has some per position")
        positions = int(self.position.max(initial=-1)) + 1
        table = self.label.reshape(-1, max(1, positions))
        return PositionVerdicts.of(self.stream, table, self.row.reshape(table.shape)[:, 0], LABELS)

"""What a rollout cost, in plain numbers."""

from dataclasses import dataclass, field

import torch

from loopgrad.gradients.wide import widened


@dataclass
class Stats:
    """What one forward and one backward pass of a rollout cost, in plain numbers.

    Where the cost of backward is not known beforehand, backward adds to these numbers when it runs.

    Attributes:
        cell_evaluations: Calls of the cell, recomputation included.
        vjps: Updates that a backward pass goes through (vector-Jacobian products of one update).
        stopped: Which samples have stopped, (batch,) bool on the device, of estimators that differentiate no more than
            the end of the recursion; None of others, and where no gradient was asked for. The updates that are
            differentiated left all floating leaves of the sample's state as they were, to the last bit. A sample that a
            halting cell hands through, as torch.where(halted, z, f(z)) does, is such a one, and has no gradient in the
            parameters, however much of it BPTT would find in earlier updates. So is a sample at a fixed point of its
            arithmetic, which has its gradient as ever: nothing that is computed anyway tells the two apart. Only
            `ImplicitGradient` takes products with the Jacobian, and counts the former alone, after backward.
        residual: Of estimators that take the last state for a fixed point and ask no further, `PhantomGradient` and
            `TorchDEQ`: how far the cycles that are differentiated have moved it, |f(z) - z| / |f(z)|, the largest, per
            sample. None of others, and where no gradient was asked for.
        steps: Of a call with `until`: how many updates each sample had; None of others.
    """

    cell_evaluations: int
    vjps: int
    stopped: torch.Tensor | None = field(default=None, compare=False, repr=False, kw_only=True)
    residual: torch.Tensor | None = field(default=None, compare=False, repr=False, kw_only=True)
    steps: tuple[int, ...] | None = field(default=None, compare=False, repr=False, kw_only=True)

    def numbers(self) -> dict[str, float]:
        """Return what else is worth a line in a log once backward has run; one transfer from the device.

        Most estimators have nothing to say: "stopped" is the share of samples that have stopped, if there are any,
        "residual" the largest one, "steps" the mean number of updates where data have decided it.
        """
        noted = [("stopped", self.stopped, torch.mean), ("residual", self.residual, torch.amax)]
        known = [(name, of(widened(value))) for name, value, of in noted if value is not None and value.numel()]
        found = torch.stack([value for _, value in known]).tolist() if known else []
        pairs = zip((name for name, _ in known), found, strict=True)
        numbers = {name: value for name, value in pairs if name != "stopped" or value}
        return numbers | ({"steps": sum(self.steps) / len(self.steps)} if self.steps else {})

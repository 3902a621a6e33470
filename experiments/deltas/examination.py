"""How trained weights are examined, and what they are examined on: frozen weights with held-out samples."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from loopgrad.analysis.positions import PER, Places
from loopgrad.experiments.deltas.weights import Weights
from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.tasks.base import Batch, Task
from loopgrad.experiments.trainer import Trainer, device_of
from loopgrad.gradients import tree
from loopgrad.gradients.invertible import is_invertible, undoing
from loopgrad.gradients.recompute import run_without_graph
from loopgrad.models.cells import State
from loopgrad.models.model import Model

MOST_UPDATES = 100_000
"""Updates down to the training depth of a model whose recursion is followed."""


@dataclass(frozen=True)
class Examination:
    """How trained weights are examined.

    Args:
        samples: Held-out samples.
        segments: Segments from the initial state that count as the training depth; None for as many as training ran.
        extrapolate: The recursion is followed to so many times the training depth as well.
        lags: Cycles back that states are compared, so the longest period that is seen.
        rtol: Relative residual of a cycle that counts as having arrived.
        per: "position" for verdicts of every position beside those of whole samples, for a second run of the recursion;
            "sample" or None for the latter alone.
        spectrum_samples: Samples, solved and unsolved alike, whose leading eigenvalues are found; 0 for none.
        exponent_samples: Samples that do not settle whose Lyapunov exponent is found; 0 for none.
        exponent_cycles: Cycles over which it is averaged.
        gradient_samples: Samples, solved and unsolved alike, whose gradients are compared with BPTT; 0 for none.
        radius_samples: How many of those get a spectral radius where each gradient is taken.
        search_samples: Samples near whose end a fixed point is searched, and which are started anew; 0 for none.
        device: "auto" for CUDA where there is one, else a torch device.
        num_threads: Threads of a CPU run.
        seed: Seed of random starts.

    Raises:
        ValueError: A value is out of range.
    """

    samples: int = 256
    segments: int | None = None
    extrapolate: int = 4
    lags: int = 16
    rtol: float = 1e-3
    per: Literal["sample", "position"] | None = None
    spectrum_samples: int = 8
    exponent_samples: int = 8
    exponent_cycles: int = 32
    gradient_samples: int = 48
    radius_samples: int = 4
    search_samples: int = 4
    device: str = "auto"
    num_threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 1, "segments": 1, "extrapolate": 1, "lags": 2, "exponent_cycles": 10, "num_threads": 1}
        for name, value in vars(self).items():
            if isinstance(value, int) and value < least.get(name, 0):
                raise ValueError(f"{name}={value} must be at least {least.get(name, 0)}")
        if not 0 < self.rtol < 1:
            raise ValueError(f"rtol={self.rtol} must be between 0 and 1")
        if self.per not in (None, *PER):
            raise ValueError(f"per={self.per!r} must be 'sample', 'position' or None")


def at(rows: slice | Tensor, values: Any) -> Any:
    """Return some rows of a tree of tensors whose first dimension is the batch."""
    return tree.map_tensors(lambda tensor: tensor[rows], values)


@dataclass(frozen=True)
class Subject:
    """Frozen weights with the samples on which they are examined, all on one device."""

    weights: Weights
    task: Task
    trainer: Trainer
    model: Model
    batch: Batch
    state: State
    x: Any

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.batch.inputs.device

    @property
    def cell(self) -> nn.Module:
        """The recursion."""
        return self.model.cell

    @property
    def plain(self) -> bool:
        """Whether its state is that of the map; a coupled cell carries more, and has another Jacobian."""
        return not is_invertible(self.cell)

    def read(self, state: Any) -> State:
        """Return a state as a model reads it: without what a coupled cell carries beside."""
        coupled = undoing(self.cell)
        return state if coupled is None else coupled.read(state)

    def run(self, state: State, num_steps: int) -> State:
        """Return the state after some updates; a coupled cell begins anew with each segment, as in training."""
        length = num_steps if self.plain else self.model.num_steps
        with self.trainer.precision(self.device):
            for begin in range(0, num_steps, max(1, length)):
                steps = range(min(length, num_steps - begin))
                state = self.read(run_without_graph(self.cell, state, self.x, steps))
        return state

    def solved(self, state: State, rows: slice | Tensor = slice(None)) -> np.ndarray:
        """Return whether the answers read off a state of some samples are right, a bool each."""
        own = {name: z.to(self.state[name].dtype) for name, z in state.items()}
        with torch.no_grad(), self.trainer.precision(self.device):
            predicted = self.model.readout(own)[0].argmax(-1)
        return self.task.is_solved(self.batch.inputs[rows].cpu(), predicted.cpu()).numpy()


def meet(weights: Weights, settings: Examination) -> Subject:
    """Load weights and samples.

    Raises:
        ConfigError: The weights do not fit the model or the task.
    """
    task, trainer = weights.make_task(), weights.make_trainer()
    device = device_of(settings.device)
    model = weights.load(task).to(device)
    if model.input_per_update:
        raise ConfigError(
            f"{weights.path}: each update of {type(model).__name__} reads another token, so there is no recursion that "
            "could settle: analyse takes models whose updates read the same x"
        )
    segments = settings.segments or trainer.halting.max_segments
    if segments * model.num_steps > MOST_UPDATES:  # a file may tell any number of cycles
        raise ConfigError(
            f"{weights.path}: {segments} segments of {model.num_steps} updates are more than {MOST_UPDATES}: "
            "give analysis.segments=, or model="
        )
    batch = weights.samples(task)[: settings.samples].to(device)
    try:
        with torch.no_grad():
            x = model.encode(batch.inputs, batch.puzzle_ids)
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{weights.path}: the model cannot read this task: {error}") from error
    state = model.initial_state(*batch.inputs.shape)
    try:
        Places.of(settings.per or "sample", list(state), list(state.values()), [0] * len(state), None)
    except ValueError as error:
        raise ConfigError(f"analysis.per={settings.per}: {error}") from error
    return Subject(weights, task, trainer, model, batch, state, x)

"""Loss scaling for float16, whose least number is 6e-8: a step whose gradient overflows is skipped."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from loopgrad.experiments.trainer.building import dense, whole
from loopgrad.experiments.trainer.joined import Joined
from loopgrad.models.model import Model

LEAST_SCALE = 2.0**-24
"""Where a gradient overflows at this scale it is not finite at any."""


def scaler_of(model: Model, autocast: str, device: torch.device) -> torch.amp.GradScaler | None:
    """Return the scaler of a loss whose gradient goes through float16; None where it does not."""
    halved = autocast == "fp16" or model.forward_dtype == torch.float16
    return torch.amp.GradScaler(device.type) if halved else None


def overflowed(scaler: torch.amp.GradScaler | None, parameters: list[nn.Parameter]) -> bool:
    """Return whether a gradient is not finite and a smaller scale may mend it."""
    if scaler is None or scaler.get_scale() < LEAST_SCALE:
        return False
    return any(not whole(dense(p.grad).isfinite().all()) for p in parameters if p.grad is not None)


def scaled_step(scaler: torch.amp.GradScaler, optimizer: Joined) -> bool:
    """Do a step with gradients that are unscaled already, unless one has overflowed; return whether it was done."""
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def put_scale(scaler: torch.amp.GradScaler, stored: dict[str, Any]) -> None:
    """Put the scale and the count of a checkpoint into a scaler; its other numbers stay."""
    told = {name: stored[name] for name in ("scale", "_growth_tracker")}
    scaler.load_state_dict({**scaler.state_dict(), **told})


def check_scale(stored: dict[str, Any]) -> None:
    """Raise ValueError if the scale or the count of a checkpoint is none."""
    if not (0 < stored["scale"] < math.inf and stored["_growth_tracker"] >= 0):
        raise ValueError(f"scaler has scale {stored['scale']} after {stored['_growth_tracker']} steps")


def scaled(scaler: torch.amp.GradScaler | None, loss: Tensor) -> Tensor:
    """Return a loss times the scale."""
    return loss if scaler is None else scaler.scale(loss)

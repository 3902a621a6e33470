"""Compiling in place: names of parameters stay, and with them weights and checkpoints."""

from torch import nn

from loopgrad.gradients.compiled import for_updates
from loopgrad.models.blocks import Net
from loopgrad.models.coupling_base import Coupling
from loopgrad.models.model import Model


def compile_in_place(model: Model, what: str) -> None:
    """Let torch.compile (inductor) compile parts of a model, each at its first call; see `to_compile`."""
    for module in to_compile(model, what):
        module.compile(**for_updates())


def to_compile(model: Model, what: str) -> list[nn.Module]:
    """Return the parts of a model that are compiled.

    Args:
        model: The model.
        what: "net", each net of blocks in the cell, which a recursion calls again and again with the same shapes;
            "cell", and of a coupling the cell that it wraps; "model", from tokens to logits; "none".

    Raises:
        ValueError: There is no net in the cell.
    """
    nets = [module for module in model.cell.modules() if isinstance(module, Net)]
    if what == "net" and not nets:
        raise ValueError(f"compile=net: the cell of {type(model).__name__} calls no net of blocks: use cell, or none")
    cell = model.cell.cell if isinstance(model.cell, Coupling) else model.cell
    return {"none": [], "net": nets, "cell": [cell], "model": [model]}[what]

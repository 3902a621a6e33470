"""Weights, their average and the moments of the optimiser in shards: each process holds a part of every tensor.

`fully_shard` (FSDP2) of torch acts around a step's forward pass, whatever that calls on the model, and around the cell,
whose weights are so gathered once for a recursion and once more for its backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from loopgrad.experiments.errors import ConfigError
from loopgrad.experiments.processes import Ranks, lost_ranks
from loopgrad.experiments.trainer import Joined, Trainer
from loopgrad.models.model import Model

Found = TypeVar("Found")


class Unit(nn.Module):
    """What is sharded as one: a model with all that a step calls on it, in one forward pass."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        """Return what the work gives, the weights that are not the cell's at hand."""
        return work()


def check(trainer: Trainer, ranks: Ranks) -> None:
    """Check that there are processes to share weights.

    Raises:
        ConfigError: There is one alone.
    """
    if trainer.shard != "none" and ranks.size == 1:
        raise ConfigError(
            f"trainer.shard={trainer.shard}: one process has nobody to share weights with: start several by torchrun, "
            "or set it to none, which goes on from the same checkpoints"
        )


def sharded(model: Model, trainer: Trainer, ranks: Ranks) -> Unit:
    """Let processes share the weights of a model in place; return what its training steps are to be called by.

    The Jacobian penalty takes a gradient within the forward pass, at whose end the hooks of a cell of its own would
    give the weights back: with it all weights are one unit.
    """
    unit = Unit(model)
    _shard([unit] if trainer.jacobian_weight else [model.cell, unit], trainer, ranks)
    return unit


def shard_average(model: Model, trainer: Trainer, ranks: Ranks) -> None:
    """Let processes share an average of the weights, which is gathered to be evaluated: see `gathered`."""
    _shard([model], trainer, ranks, reshard_after_forward=False)


def _shard(modules: list[nn.Module], trainer: Trainer, ranks: Ranks, **options: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with lost_ranks():
        mesh = init_device_mesh(trainer.torch_device().type, (ranks.size,))
    for module in modules:
        fully_shard(module, mesh=mesh, **options)


def shard_moments(optimizer: Joined, state: dict[int, dict[str, Any]]) -> None:
    """Put what an optimiser of the whole weights has kept into one of their shards."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, parameter: Any) -> Any:
        if not (isinstance(value, Tensor) and isinstance(parameter, DTensor) and value.shape == parameter.shape):
            return value  # the number of steps
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)

    kept = {
        number: {name: part(value, parameters[number]) for name, value in values.items()}
        for number, values in state.items()
    }
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})


def exchange(unit: Unit | None, last: bool) -> None:
    """Say whether the next backward pass is the last of a step, after which gradients are averaged over processes."""
    if unit is not None:
        unit.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
        unit.set_is_last_backward(last)  # pyright: ignore[reportCallIssue]


def called(unit: Unit | None, work: Callable[[], Found]) -> Found:
    """Return what the forward pass of a step gives, called by way of what is sharded."""
    return work() if unit is None else unit(work)


def on_first(content: Any, ranks: Ranks) -> Any:
    """Return nested dicts and lists with shared tensors whole, on the CPU; the first process alone keeps them."""
    if isinstance(content, dict):
        return {key: on_first(value, ranks) for key, value in content.items()}
    if isinstance(content, list):
        return [on_first(value, ranks) for value in content]
    if not hasattr(content, "full_tensor"):
        return content
    with lost_ranks():
        found = content.full_tensor()
    return found.cpu() if ranks.first else found.to("meta")


@contextmanager
def gathered(model: Model) -> Iterator[None]:
    """Hold all weights of a model on each process in the block, which may call it as often as it likes."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        yield
        return
    with lost_ranks():
        model.unshard()
    yield
    model.reshard()

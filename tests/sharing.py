"""Ways in which two processes share a model, and the gradient that each finds, whole."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from shared_models import Model, batch, loss_of, rows
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from two_processes import outcome

BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def parallel(**options) -> Callable[[Model], nn.Module]:
    return lambda model: DistributedDataParallel(model, **options)


def parallel_cell(**options) -> Callable[[Model], nn.Module]:
    def wrap(model: Model) -> nn.Module:
        model.cell = DistributedDataParallel(model.cell, **options)
        return model

    return wrap


def sharded(*places: str, **options) -> Callable[[Model], nn.Module]:
    def wrap(model: Model) -> nn.Module:
        for place in places:
            found = {"blocks": model.inner.blocks, "inner": [model.inner], "cell": [model.cell], "model": [model]}[
                place
            ]
            for module in found:
                fully_shard(module, **options)
        return model

    return wrap


def tensor_parallel(model: Model) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for block in model.inner.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


WAYS: dict[str, Callable[[Model], nn.Module]] = {
    "ddp": parallel(),
    "ddp static": parallel(static_graph=True),
    "ddp no_sync": parallel(),
    "ddp find_unused": parallel(find_unused_parameters=True),
    "ddp cell": parallel_cell(),
    "ddp cell static": parallel_cell(static_graph=True),
    "ddp cell find_unused": parallel_cell(find_unused_parameters=True),
    "fsdp model": sharded("model"),
    "fsdp model reshard": sharded("model", reshard_after_forward=True),
    "fsdp cell": sharded("cell"),
    "fsdp cell+model": sharded("cell", "model"),
    "fsdp cell+model kept": sharded("cell", "model", reshard_after_forward=False),
    "fsdp blocks": sharded("blocks"),
    "fsdp blocks+cell+model": sharded("blocks", "cell", "model"),
    "fsdp blocks+cell+model reshard": sharded("blocks", "cell", "model", reshard_after_forward=True),
    "bf16 model": sharded("model", mp_policy=BF16),
    "bf16 cell+model": sharded("cell", "model", mp_policy=BF16),
    "bf16 blocks+inner+model": sharded("blocks", "inner", "model", mp_policy=BF16),
    "tensor": tensor_parallel,
}


class Collectives(TorchDispatchMode):
    """Counts the collectives of torch.distributed inside the block, by name."""

    def __init__(self):
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "c10d" in func.namespace:
            name = func._opname.strip("_").removesuffix("_base")
            self.found[name] = self.found.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def gradients(way: str, name: str) -> tuple[list[torch.Tensor | None], dict[str, int]]:
    """The whole gradient at the second call (of both for no_sync), and the collectives of that call."""
    dtype = torch.float32 if way.startswith("bf16") else torch.float64
    returned = way == "ddp static" or name == "bptt"  # the rollout itself, for wrappers to look into
    model = WAYS[way](Model(name, dtype, returned))
    rank = distributed.get_rank()
    x = batch() if way == "tensor" else rows(rank, dtype)
    apart = way == "ddp no_sync"
    for call in range(2):
        if not apart:
            model.zero_grad()
        quiet = model.no_sync() if apart and call == 0 else nullcontext()
        with quiet, Collectives() as collectives:
            out = model(x)
            (loss_of(out) if returned else out).backward()
    by_hand = way.startswith(("ddp cell", "fsdp")) and not way.endswith(("model", "reshard", "kept"))
    return [_whole(parameter, by_hand) for parameter in model.parameters()], collectives.found


def _whole(parameter: nn.Parameter, by_hand: bool) -> torch.Tensor | None:
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        return gradient.full_tensor()
    if gradient is not None and by_hand:  # of what is outside of what is shared
        distributed.all_reduce(gradient)
        gradient /= 2
    return gradient


def all_gradients(rank: int, pairs: list[tuple[str, str]]) -> list:
    """What each pair of a way and an estimator gives; the text of the refusal where it is refused."""
    return [outcome(lambda pair=pair: gradients(*pair)) for pair in pairs]

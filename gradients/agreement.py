"""One random choice for all processes that run the updates of one cell together, where each has drawn its own."""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from loopgrad.gradients.around import sharded


def agree(generator: torch.Generator, cell: nn.Module) -> None:
    """Set a generator of the CPU to where that of the first of the processes stands which run `cell` together.

    They share its weights (tensor parallelism, fully_shard) or wait for each other at its updates (SyncBatchNorm), so
    that choices of how often they do must be the same. One broadcast of a few kilobytes for each dimension of the mesh,
    and on an accelerator one wait for it; nothing in one process.

    Args:
        generator: Drawn from next, as often by all.
        cell: The cell, as it is during a recursion.
    """
    if groups := list(_groups(cell, with_data=True)):
        generator.set_state(_of_the_first(generator.get_state(), groups))


def agreed_seed(seed: int, cell: nn.Module) -> int:
    """Return the seed of the first of the processes that compute the same samples, by tensor parallelism."""
    groups = list(_groups(cell, with_data=False))
    return int(_of_the_first(torch.tensor(seed, dtype=torch.int64), groups)) if groups else seed


def is_split(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is one of torch.distributed.tensor, of which this process has a part."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


def _of_the_first(value: torch.Tensor, groups: list[tuple[Any, str]]) -> torch.Tensor:
    for group, device in groups:
        there = value.to(device)
        torch.distributed.broadcast(there, group=group, group_src=0)
        value = there.cpu()
    return value


def _groups(cell: nn.Module, with_data: bool) -> Iterator[tuple[Any, str]]:
    distributed, modules = torch.distributed, list(cell.modules())
    if torch.compiler.is_compiling() or not distributed.is_available() or not distributed.is_initialized():
        return
    split: list[Any] = [p for p in cell.parameters() if is_split(p)]
    if with_data:
        groups = [group for _, state in sharded(modules) for group in state._fsdp_param_groups]
        split += [parameter.sharded_param for group in groups for parameter in group.fsdp_params]
    meshes = dict.fromkeys(parameter.device_mesh for parameter in split)
    found = dict.fromkeys((mesh.get_group(dim), mesh.device_type) for mesh in meshes for dim in range(mesh.ndim))
    yield from found
    for module in modules if with_data else ():
        if isinstance(module, nn.SyncBatchNorm):
            parameter = next(module.parameters(), None)
            yield module.process_group or distributed.group.WORLD, "cpu" if parameter is None else parameter.device.type

"""Whether weights are those of a model, told from names and shapes before anything of the model's size is made.

A configuration in a file may claim any size. The outline of a model, all its tensors without their numbers, is compared
with the tensors of the file, so that no more is made than the file itself holds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from loopgrad.experiments.conf.annotations import shown
from loopgrad.experiments.tasks.base import Task
from loopgrad.models.model import Model

TABLES = ("embedding.puzzles.weight", "puzzle_emb.weights")  # ours, and the official code's behind its prefixes
LAYERS = ("num_layers", "H_layers", "L_layers", "depth")


class _WithoutNumbers(TorchFunctionMode):
    """Makes tensors on the meta device where a device is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@contextmanager
def without_numbers() -> Iterator[None]:
    """A block in which models of this package are made as outlines: they take no memory, whatever their size."""
    with torch.device("meta"), _WithoutNumbers():
        yield


def check_outline(tensors: Mapping[str, Tensor], make: Callable[[], Model], node: Mapping[str, Any]) -> None:
    """Compare the tensors of a file with the outline of the model that `make` makes.

    Args:
        tensors: Of the file.
        make: Makes the model.
        node: Its configuration, whose layers must not outnumber the tensors: each would take its time.

    Raises:
        ValueError: A name is missing or unknown, or a shape is another.
    """
    for key in LAYERS:
        if isinstance(count := node.get(key), int) and count > len(tensors):
            raise ValueError(f"it tells {key}={shown(count)} and holds {len(tensors)} tensors")
    with without_numbers():
        wanted = make().state_dict()
    if missing := [name for name in wanted if name not in tensors]:
        raise ValueError(f"it has no {missing[0]}")
    if unknown := [name for name in tensors if name not in wanted]:
        raise ValueError(f"it has {shown(unknown[0])}, which the model has no place for")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            has, needs = tuple(tensors[name].shape), tuple(tensor.shape)
            raise ValueError(f"its {name} has shape {has}, that of the model is {needs}")


def check_identities(tensors: Mapping[str, Tensor], task: Task) -> None:
    """Compare the table of puzzle identities, where there is one, with the identities of the task.

    A table of the official code is kept for tasks that have none, too, and then its first row serves all.

    Raises:
        ValueError: They are not as many, so that samples would be read under the identities of others.
    """
    count = task.spec.num_puzzles
    for name, tensor in tensors.items():
        if count and name.endswith(TABLES) and tensor.dim() == 2 and len(tensor) != count:
            raise ValueError(
                f"it knows {len(tensor)} puzzle identities, and the task has {count}: name the data that it was "
                "trained on, by task=arc1 or arc2, task.num_augmentations=, task.max_size=, task.max_tasks="
            )

"""Cells that read tensors as other people's do: under two names, in containers, derived, closed over, cached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from loopgrad.gradients import Stationary

SIZE = 4


@dataclass
class Reading:
    """A cell on a state (3, 4) with inputs (3, 4), the leaves its gradient must reach, and the context to run it in."""

    cell: nn.Module
    leaves: list[Tensor]
    context: Any = nullcontext


class _Cell(nn.Module):
    """An update that contracts, through whatever `image` is."""

    def __init__(self, image: Callable[[Tensor], Tensor], *modules: nn.Module):
        super().__init__()
        self.image, self.held = image, nn.ModuleList(modules)

    def forward(self, state: Tensor, inputs: Tensor, step: int) -> Tensor:
        return torch.tanh(0.4 * self.image(state) + inputs)


def _linear() -> nn.Linear:
    return nn.Linear(SIZE, SIZE, dtype=torch.float64)


def _weights() -> Tensor:
    return torch.randn(SIZE, SIZE, dtype=torch.float64) / 2


def _two_names() -> Reading:
    cell = _Cell(lambda z: cell.second(torch.tanh(cell.first(z))))
    cell.first = cell.second = _linear()
    return Reading(cell, list(cell.parameters()))


def _dictionary_of_names() -> Reading:
    block = nn.Sequential(_linear(), nn.Tanh())
    cell = _Cell(
        lambda z: sum(layer(z) for layer in blocks.values()), blocks := nn.ModuleDict({"a": block, "b": block})
    )
    return Reading(cell, list(cell.parameters()))


def _shared_statistics() -> Reading:
    block = nn.Sequential(_linear(), nn.BatchNorm1d(SIZE, dtype=torch.float64))
    cell = _Cell(lambda z: block(block(z)), block, nn.ModuleList([block]))
    return Reading(cell, list(cell.parameters()))


def _tuple_of_parameters() -> Reading:
    layer = _linear()
    kept = (layer.weight, {"bias": layer.bias})
    return Reading(_Cell(lambda z: z @ kept[0].T * kept[1]["bias"] + layer(z), layer), list(layer.parameters()))


def _unregistered_layer() -> Reading:
    layer = _linear()
    return Reading(_Cell(lambda z: layer(z)), list(layer.parameters()))


def _stationary_that_names_nothing() -> Reading:
    layer, gain = _linear(), torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    return Reading(Stationary(lambda z, x: torch.tanh(0.4 * layer(z) * gain + x)), [*layer.parameters(), gain])


def _derived_before() -> Reading:
    raw, scale = _weights().requires_grad_(), torch.ones(SIZE, 1, dtype=torch.float64, requires_grad=True)
    cell = _Cell(lambda z: z @ cell.weight.T)
    cell.weight = scale * raw / raw.norm(dim=1, keepdim=True)
    return Reading(cell, [raw, scale])


def _derived_and_its_source() -> Reading:
    raw = nn.Parameter(_weights())
    cell = _Cell(lambda z: z @ cell.weight + z @ cell.raw)
    cell.raw, cell.weight = raw, torch.linalg.matrix_exp(raw - raw.T)
    return Reading(cell, [raw])


def _derived_at_the_first_update() -> Reading:
    raw = nn.Parameter(_weights())

    def image(z: Tensor) -> Tensor:
        if not hasattr(cell, "weight"):
            cell.weight = raw.softmax(dim=1)
        return z @ cell.weight

    cell = _Cell(image)
    cell.raw = raw
    return Reading(cell, [raw])


def _features_of_the_first_update() -> Reading:
    encoder = _linear()

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.layer = encoder, _linear()

        def forward(self, state: Tensor, inputs: Tensor, step: int) -> Tensor:
            if step == 0:
                self.features = torch.tanh(self.encoder(inputs))
            return torch.tanh(0.4 * self.layer(state) + self.features)

    cell = Cell()
    return Reading(cell, list(cell.parameters()))


def _features_in_an_object() -> Reading:
    class Lookup:
        def __init__(self, features: Tensor):
            self.pyramid = [features, features.mean(1, keepdim=True)]

        def __call__(self, z: Tensor) -> Tensor:
            return z * self.pyramid[0] + self.pyramid[1]

    encoder = _linear()
    lookup = Lookup(torch.tanh(encoder(torch.randn(3, SIZE, dtype=torch.float64))))
    layer = _linear()
    return Reading(_Cell(lambda z: layer(z) + lookup(z), layer), [*encoder.parameters(), *layer.parameters()])


def _views_of_one_weight() -> Reading:
    packed = nn.Parameter(torch.randn(2, SIZE, SIZE, dtype=torch.float64) / 2)
    up, down = packed.unbind()
    cell = _Cell(lambda z: torch.tanh(z @ up) @ down)
    cell.packed = packed
    return Reading(cell, [packed])


def _plain_weights_of_a_replica() -> Reading:
    layer, replica = _linear(), _linear()
    for name, parameter in layer.named_parameters():  # as nn.DataParallel makes them
        del replica._parameters[name]
        setattr(replica, name, parameter * 1.0)
    return Reading(_Cell(lambda z: replica(z), replica), list(layer.parameters()))


class _Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).T


@contextmanager
def _cached() -> Iterator[None]:
    with parametrize.cached():
        yield


def _cached_symmetric() -> Reading:
    layer = _linear()
    parametrize.register_parametrization(layer, "weight", _Symmetric())
    return Reading(_Cell(layer, layer), list(layer.parameters()), _cached)


def _cached_weight_norm() -> Reading:
    layer = parametrizations.weight_norm(_linear())
    return Reading(_Cell(lambda z: layer(layer(z)), layer), list(layer.parameters()), _cached)


READINGS: dict[str, Callable[[], Reading]] = {
    "two_names": _two_names,
    "dictionary_of_names": _dictionary_of_names,
    "shared_statistics": _shared_statistics,
    "tuple_of_parameters": _tuple_of_parameters,
    "unregistered_layer": _unregistered_layer,
    "stationary_that_names_nothing": _stationary_that_names_nothing,
    "derived_before": _derived_before,
    "derived_and_its_source": _derived_and_its_source,
    "derived_at_the_first_update": _derived_at_the_first_update,
    "features_of_the_first_update": _features_of_the_first_update,
    "features_in_an_object": _features_in_an_object,
    "views_of_one_weight": _views_of_one_weight,
    "plain_weights_of_a_replica": _plain_weights_of_a_replica,
    "cached_symmetric": _cached_symmetric,
    "cached_weight_norm": _cached_weight_norm,
}

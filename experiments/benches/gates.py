"""Update gates of a GRU that begin open to the past, so that some features forget at once and some hardly at all."""

from typing import Any

import torch
from torch import Tensor


def open_gates(gru: Any, times: Tensor) -> None:
    """Start the biases of the update gate where each feature forgets within a time of its own.

    Args:
        gru: A GRUCell of torch.
        times: (features,) logarithms of the updates.
    """
    gate = slice(gru.hidden_size, 2 * gru.hidden_size)
    with torch.no_grad():
        gru.bias_hh[gate] = 0
        gru.bias_ih[gate] = times


def chrono(hidden_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Return logarithms of times that are uniform from 1 to length - 1: "chrono" initialisation.

    C. Tallec and Y. Ollivier, 2018, arXiv 1804.11188.
    """
    return torch.empty(hidden_size).uniform_(1, max(2, length - 1), generator=generator).log()

"""Tests run on one thread: their tensors are small, and spinning threads slow a shared machine."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def float64():
    """Tensors are float64 unless they say otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

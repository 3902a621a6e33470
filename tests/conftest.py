"""Tests run on one thread: their tensors are small, and spinning threads slow a shared machine."""

import signal
import zlib

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as jobs in the background have it, and all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def float64():
    """Tensors are float64 unless they say otherwise."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test that is marked one_in(n) about one case in n is fast, by its name alone; the others are slow."""
    for item in items:
        mark = item.get_closest_marker("one_in")
        if mark is not None and zlib.crc32(item.name.encode()) % mark.args[0]:
            item.add_marker(pytest.mark.slow)

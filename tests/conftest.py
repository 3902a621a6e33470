"""Tests run on one thread: their tensors are small, and spinning threads slow a shared machine."""

import torch

torch.set_num_threads(1)

"""Keeping stored states of an accelerator in host memory until backward needs them."""

import torch


def stays(leaf: torch.Tensor) -> bool:
    """Return whether `store` keeps `leaf` where it is."""
    return leaf.device.type in ("cpu", "meta")


def store(leaf: torch.Tensor) -> torch.Tensor:
    """Return a copy of `leaf` in host memory, pinned where the device can be; a CPU tensor is returned as it is."""
    return leaf if stays(leaf) else to_host(leaf, pinned=leaf.device.type == "cuda")


def to_host(leaf: torch.Tensor, pinned: bool) -> torch.Tensor:
    """Return a copy of `leaf` in host memory."""
    kept = torch.empty_like(leaf, device="cpu", pin_memory=pinned)
    return kept.copy_(leaf.detach())  # waits for the device: the leaf may be freed and reused right after


def fetch(leaf: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `leaf` on `device`, itself if it is there."""
    return leaf if leaf.device == device else leaf.to(device)

"""Memory of the host: keeping stored states of an accelerator in it, and refusing what cannot fit into it."""

import os
from pathlib import Path

import torch

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def total() -> float:
    """Return the bytes that a process may have here: of the machine, or of the container if it has fewer."""
    found = [float("inf")]
    for path in map(Path, LIMITS):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # no container, or one without a limit
            continue
    try:
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    except (AttributeError, ValueError, OSError):  # a system that does not tell
        pass
    return min(found)


def check_fits(count: float, what: str) -> None:
    """Raise ValueError, saying what it is, if so many bytes cannot be held here; nothing is allocated."""
    if count > (most := total()):
        raise ValueError(f"{what} would need {count / 2**30:,.0f} GiB, and there are {most / 2**30:,.0f} GiB of memory")


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

"""Which device an engine runs on, and how much memory it has free.

Invariant: what is asked for and not there is an error, never another device.
"""

from __future__ import annotations

from pathlib import Path

import torch

from kvmon.errors import ConfigError, SystemRefused

__all__ = ["chosen_device", "free_memory"]


def chosen_device(name: str) -> str:
    """`auto` is the GPU where torch sees one. Raises ConfigError for a GPU that is not there."""
    there = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name.startswith("cuda") and not there:
        raise ConfigError("torch sees no CUDA device here: choose --device cpu")
    # Tensors know their index, so the name has one, too.
    return f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name


def free_memory(device: str) -> int:
    """Bytes that a tensor could take on `device` now: of the GPU, or of the machine as Linux counts it."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemRefused("this machine does not say how much memory is free: give the pool's size in tokens or bytes")

"""The pool that a GPU leaves for keys and values: what can be said of it before the engine has started.

    pool = memory * utilization - weights - everything else

Everything else (activations, graphs, the framework, other processes) is known to the engine alone, which measures it
when it starts. Invariant: it is never guessed here; what the caller does not give is not taken off, and `unknown` says
so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmon.errors import ConfigError, InputError

__all__ = ["GpuMemory", "weights_of"]

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"  # the same weights may lie beside it in another layout


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU. `weights` and `other` are those of one GPU too; `other` 0 = nobody said."""

    memory: int
    utilization: float
    weights: int
    other: int = 0

    @property
    def pool(self) -> int:
        """What is left, at most. Raises ConfigError where nothing is."""
        if not 0 < self.utilization <= 1:
            raise ConfigError(f"a utilization of {self.utilization:g} is none: give one above 0, up to 1")
        left = int(self.memory * self.utilization) - self.weights - self.other
        if left <= 0:
            raise ConfigError(
                f"weights of {self.weights:,} bytes leave nothing of {int(self.memory * self.utilization):,}: "
                "give more memory, or more shards with --tensor-parallel"
            )
        return left

    @property
    def unknown(self) -> str:
        """What is not taken off, in words; empty where the caller said all of it."""
        return "" if self.other else "activations, graphs and other processes are not taken off: see --other"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "gpu_memory_bytes": self.memory,
            "utilization": self.utilization,
            "weights_bytes": self.weights,
            "other_bytes": self.other or None,
            "pool_bytes": self.pool,
            "unknown": self.unknown or None,
        }


def weights_of(directory: Path) -> int:
    """Bytes of the weights in a model's directory, as they are stored: what its safetensors files hold.

    Raises InputError where there are none.
    """
    try:
        index = directory / _INDEX
        if index.is_file():
            size = json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]
            if isinstance(size, int) and size > 0:
                return size
        whole = directory / _WHOLE
        files = [whole] if whole.is_file() else list(directory.glob("*.safetensors"))
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise InputError(f"cannot read {directory}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{directory / _INDEX} says no total_size: give --weights in bytes") from None
    if not sizes:
        raise InputError(f"{directory} holds no weights (*.safetensors): give --weights in bytes, such as 15GiB")
    return sum(sizes)

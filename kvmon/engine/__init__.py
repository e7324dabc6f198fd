"""The reference engine: a torch model under the scheduler of `kvmon.serving`, over a contiguous or a paged KV cache.

Names are resolved on first use, so that importing a part does not import torch's rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmon.engine.config import ModelConfig, read_config, tiny_config
    from kvmon.engine.engine import Engine
    from kvmon.engine.model import Decoder
    from kvmon.engine.requests import Output
    from kvmon.engine.sampling import Sampling
    from kvmon.engine.weights import load_weights, random_weights

__all__ = [
    "Decoder",
    "Engine",
    "ModelConfig",
    "Output",
    "Sampling",
    "load_weights",
    "random_weights",
    "read_config",
    "tiny_config",
]

_LAZY = {
    "Decoder": "model",
    "Engine": "engine",
    "ModelConfig": "config",
    "Output": "requests",
    "Sampling": "sampling",
    "load_weights": "weights",
    "random_weights": "weights",
    "read_config": "config",
    "tiny_config": "config",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use; AttributeError for anything else."""
    if name not in _LAZY:
        raise AttributeError(f"module 'kvmon.engine' has no attribute '{name}'")
    value: object = getattr(import_module(f"kvmon.engine.{_LAZY[name]}"), name)
    globals()[name] = value
    return value

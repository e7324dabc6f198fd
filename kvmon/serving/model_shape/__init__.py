"""What the keys and values of a sequence weigh: from a model's name, its numbers, or its `config.json`.

Invariant: a model that is not known is refused; state-space layers, layers that share keys and values, and compressed
caches have formulas of their own, and a wrong number of bytes would make every answer wrong.
"""

from __future__ import annotations

from kvmon.serving.model_shape.config_json import read_description, shape_of_config
from kvmon.serving.model_shape.known import KNOWN_MODELS
from kvmon.serving.model_shape.parsing import model_shape, parse_model_shape
from kvmon.serving.model_shape.shape import ModelShape, kv_bytes_per_token

__all__ = [
    "KNOWN_MODELS",
    "ModelShape",
    "kv_bytes_per_token",
    "model_shape",
    "parse_model_shape",
    "read_description",
    "shape_of_config",
]

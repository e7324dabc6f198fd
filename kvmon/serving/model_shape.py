"""Bytes of keys and values a token: from the shape of a model, or from the name of one that is known.

Formula (standard attention): 2 * layers * kv_heads * head_dim * bytes of an element. Latent attention (MLA) keeps one
compressed vector: layers * (kv_lora_rank + rope_dim) * bytes.

Invariant: a model that is not known is refused; sliding windows, state-space layers and shared layers have formulas of
their own, and a wrong number of bytes would make every answer wrong.
"""

from __future__ import annotations

from kvmon.errors import ConfigError

__all__ = ["KNOWN_MODELS", "kv_bytes_per_token", "parse_model_shape"]


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, element_bytes: int) -> int:
    """Bytes of keys and values that one token of standard attention takes."""
    return 2 * layers * kv_heads * head_dim * element_bytes


#: Bytes a token of models whose shape is published.
KNOWN_MODELS = {
    "llama-2-7b": kv_bytes_per_token(32, 32, 128, 2),
    "llama-3.1-8b": kv_bytes_per_token(32, 8, 128, 2),
    "llama-3.1-8b-fp8": kv_bytes_per_token(32, 8, 128, 1),
    "llama-3.1-70b": kv_bytes_per_token(80, 8, 128, 2),
    "opt-13b": kv_bytes_per_token(40, 40, 128, 2),
    "deepseek-v3": 61 * (512 + 64) * 2,
}


def parse_model_shape(text: str) -> int:
    """Bytes a token of `L,H,D,BYTES` (layers, KV heads, head dimension, bytes an element) or of a known model."""
    known = KNOWN_MODELS.get(text.strip().lower())
    if known is not None:
        return known
    parts = text.split(",")
    if len(parts) == 4 and all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        layers, heads, width, size = (int(part) for part in parts)
        return kv_bytes_per_token(layers, heads, width, size)
    raise ConfigError(
        f"'{text}' is no model shape: write LAYERS,KV_HEADS,HEAD_DIM,BYTES such as 32,8,128,2, or one of "
        f"{', '.join(KNOWN_MODELS)}"
    )

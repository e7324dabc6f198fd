"""Models whose shape is published, as their `config.json` has it, with keys and values of 16 bits.

Layers, KV heads and head dimension stand in the order of that file's `num_hidden_layers`, `num_key_value_heads` and
`head_dim` (hidden_size / num_attention_heads where it is missing). Gemma 2 slides in every second layer, Gemma 3 in
five of six; Mistral 7B slid in v0.1 and does not since v0.2, so the bare name is none.

Invariant: a number that could not be checked against a published configuration is not here.
"""

from __future__ import annotations

from kvmon.serving.model_shape.shape import ModelShape, latent, standard

__all__ = ["ELEMENT_BYTES", "KNOWN_MODELS"]

#: Bytes of one element, by the suffix that names its type.
ELEMENT_BYTES = {"fp8": 1, "int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}

_FULL = {
    "llama-2-7b": (32, 32, 128),
    "llama-2-13b": (40, 40, 128),
    "llama-2-70b": (80, 8, 128),
    "llama-3.1-8b": (32, 8, 128),
    "llama-3.1-70b": (80, 8, 128),
    "llama-3.1-405b": (126, 8, 128),
    "llama-3.2-1b": (16, 8, 64),
    "llama-3.2-3b": (28, 8, 128),
    "llama-3.3-70b": (80, 8, 128),
    "qwen2.5-0.5b": (24, 2, 64),
    "qwen2.5-1.5b": (28, 2, 128),
    "qwen2.5-3b": (36, 2, 128),
    "qwen2.5-7b": (28, 4, 128),
    "qwen2.5-14b": (48, 8, 128),
    "qwen2.5-32b": (64, 8, 128),
    "qwen2.5-72b": (80, 8, 128),
    "qwen3-0.6b": (28, 8, 128),
    "qwen3-1.7b": (28, 8, 128),
    "qwen3-4b": (36, 8, 128),
    "qwen3-8b": (36, 8, 128),
    "qwen3-14b": (40, 8, 128),
    "qwen3-32b": (64, 8, 128),
    "mistral-7b-v0.2": (32, 8, 128),
    "mistral-7b-v0.3": (32, 8, 128),
    "opt-13b": (40, 40, 128),
}

# The last two: layers that slide, and the tokens of their window.
_WINDOWED = {
    "mistral-7b-v0.1": (32, 8, 128, 32, 4096),
    "gemma-2-2b": (26, 4, 256, 13, 4096),
    "gemma-2-9b": (42, 8, 256, 21, 4096),
    "gemma-2-27b": (46, 16, 128, 23, 4096),
    "gemma-3-1b": (26, 1, 256, 22, 512),
    "gemma-3-4b": (34, 4, 256, 29, 1024),
    "gemma-3-12b": (48, 8, 256, 40, 1024),
    "gemma-3-27b": (62, 16, 128, 52, 1024),
}

# Layers, kv_lora_rank, qk_rope_head_dim.
_LATENT = {
    "deepseek-v2-lite": (27, 512, 64),
    "deepseek-v2": (60, 512, 64),
    "deepseek-v3": (61, 512, 64),
    "deepseek-r1": (61, 512, 64),
}

#: Shapes by name, in lower case.
KNOWN_MODELS: dict[str, ModelShape] = {
    **{name: standard(name, *numbers) for name, numbers in _FULL.items()},
    **{
        name: standard(name, layers, heads, width, window_layers=sliding, window_tokens=window)
        for name, (layers, heads, width, sliding, window) in _WINDOWED.items()
    },
    **{name: latent(name, *numbers) for name, numbers in _LATENT.items()},
}

"""Models for the engine's tests: tiny ones with random weights, ours and transformers' with the same numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers

from kvmon.engine import Decoder, load_weights, random_weights, read_config, tiny_config

VOCABULARY = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "attn_implementation": "eager",
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
#: What is special about each model.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 16, "tie_word_embeddings": False}),
    "llama, biased and tied": (
        "Llama",
        {"head_dim": 16, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama3 positions": ("Llama", {"head_dim": 16, "rope_parameters": _LLAMA3}),
    "linear positions": (
        "Llama",
        {"head_dim": 16, "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "yarn positions": ("Llama", {"head_dim": 16, "rope_parameters": _YARN}),
    "qwen2": ("Qwen2", {}),
    "qwen2, sliding": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "layer_types": _SLIDING},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral, sliding": ("Mistral", {"head_dim": 16, "sliding_window": 24}),
}


def theirs(name: str) -> Any:
    """Transformers' model, with random numbers everywhere, norms and biases too."""
    family, special = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**_SIZES, **special})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            spread = 1.0 if "embed" in label else parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.normal_(1.0 if "norm" in label else 0.0, spread)
    return model


def saved(name: str, directory: Path) -> tuple[Any, Decoder]:
    """Transformers' model, and ours read from the files that it wrote."""
    model = theirs(name)
    model.save_pretrained(directory)
    config = read_config(directory)
    return model, Decoder(config, load_weights(config, directory))


@lru_cache(maxsize=4)
def tiny(seed: int = 0, window: int = 0) -> Decoder:
    """Ours with the default shape; with `window` its second layer slides."""
    config = tiny_config(VOCABULARY)
    if window:
        from dataclasses import replace

        config = replace(config, windows=(0, window))
    return Decoder(config, random_weights(config, seed))

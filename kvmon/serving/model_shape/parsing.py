"""A model shape from what people type: numbers, a known name, or the path of a `config.json`.

Invariant: what is not understood is an error that names what would be; nothing is guessed.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from kvmon.errors import ConfigError
from kvmon.serving.model_shape.config_json import shape_of_config
from kvmon.serving.model_shape.known import ELEMENT_BYTES, KNOWN_MODELS
from kvmon.serving.model_shape.shape import ModelShape, standard

__all__ = ["model_shape", "parse_model_shape"]

_LONGEST_PATH = 255


def model_shape(text: str) -> ModelShape:
    """The shape that `text` names: `LAYERS,KV_HEADS,HEAD_DIM,BYTES`, a known model, or a `config.json`.

    A known name may end in the type of the cache's elements, such as `llama-3.1-8b-fp8`; without, it is 16 bits. A path
    is a file that ends in `.json` or a directory with a `config.json`.
    Raises ConfigError for what is none of them (with the nearest names), InputError where the file cannot be used.
    """
    name = text.strip().lower()
    if name in KNOWN_MODELS:
        return KNOWN_MODELS[name]
    model, _, suffix = name.rpartition("-")
    if model in KNOWN_MODELS and suffix in ELEMENT_BYTES:
        return KNOWN_MODELS[model].with_element_bytes(ELEMENT_BYTES[suffix], suffix)
    parts = text.split(",")
    if len(parts) == 4 and all(part.strip().isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        layers, heads, width, size = (int(part) for part in parts)
        return standard(text.strip(), layers, heads, width, size)
    path = Path(text.strip()[:_LONGEST_PATH])
    if path.suffix == ".json" or (name and path.is_dir()):
        return shape_of_config(path / "config.json" if path.is_dir() else path)
    near = get_close_matches(name.rpartition("/")[2], KNOWN_MODELS, n=3)
    known = f"such as {', '.join(near)}" if near else "that 'kvmon simulate --shapes' lists"
    raise ConfigError(
        f"'{text[:80]}' is no model shape: write LAYERS,KV_HEADS,HEAD_DIM,BYTES such as 32,8,128,2, the path of the "
        f"model's config.json, or a name {known}"
    )


def parse_model_shape(text: str) -> int:
    """Bytes a token of the shape that `text` names (see `model_shape`), the same for every token.

    Raises ConfigError where layers slide: the bytes of a sequence are then no multiple of its tokens.
    """
    shape = model_shape(text)
    if shape.window_layers:
        sliding = f"{shape.window_layers} of its {shape.layers} layers keep only the last {shape.window_tokens} tokens"
        raise ConfigError(
            f"{shape.name} has no fixed bytes a token: {sliding}: give the pool's size in tokens, or "
            "LAYERS,KV_HEADS,HEAD_DIM,BYTES of the layers that this pool holds"
        )
    return shape.bytes_per_token

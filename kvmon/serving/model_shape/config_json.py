"""The shape of a model from its Hugging Face `config.json`.

Only architectures whose cache has a formula here are read; what a file leaves to the defaults of its class is taken
from there where that is written down below, and refused elsewhere.

Invariant: a model with layers of another kind (state space, linear or chunked attention, an indexer's keys) or with
layers that share their keys and values is refused by name, never given the formula of standard attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmon.errors import InputError
from kvmon.serving.model_shape.shape import ModelShape, latent, standard

__all__ = ["ARCHITECTURES", "read_description", "shape_of_config"]

#: Architectures that are understood.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MistralForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM",
)
_ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
# What Gemma2Config and Gemma3TextConfig of transformers have where the file says nothing.
_GEMMA = {"num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 6}


def shape_of_config(path: Path) -> ModelShape:
    """The shape that the file describes, named after its architecture; elements are of the type of the weights.

    Raises InputError where the file cannot be read, is no such description, or describes a model without a formula.
    """
    architecture, config = read_description(path)
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{path}: the cache of {architecture} has no formula here: give LAYERS,KV_HEADS,HEAD_DIM,BYTES of the "
            f"layers that keep keys and values; understood are {', '.join(ARCHITECTURES)}"
        )
    text = config.get("text_config", config)
    return _Config(path, architecture, text if isinstance(text, dict) else {}, config).shape()


def read_description(path: Path) -> tuple[str, dict[str, Any]]:
    """The architecture that a `config.json` names, and all of its fields.

    Raises InputError where the file cannot be read or is no such description.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: give the config.json of a model") from error
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InputError(f"{path} names no architecture: give the config.json of a model")
    return names[0], config


class _Config:
    """One file while it is read: its fields, and errors that name it."""

    def __init__(self, path: Path, architecture: str, text: Mapping[str, Any], outer: Mapping[str, Any]) -> None:
        self._where = f"{path} ({architecture})"
        self._kind = architecture.partition("For")[0]
        self._text = text
        self._outer = outer

    def shape(self) -> ModelShape:
        """The shape by the rule of the architecture."""
        if self._text.get("num_kv_shared_layers"):
            raise self._refused("layers share their keys and values")
        layers = self._number("num_hidden_layers")
        size = self._element_bytes()
        if self._kind.startswith("Deepseek"):
            return latent(self._kind, layers, self._number("kv_lora_rank"), self._number("qk_rope_head_dim"), size)
        sliding = self._sliding_layers(layers)
        return standard(
            self._kind,
            layers,
            self._kv_heads(),
            self._head_dim(),
            size,
            window_layers=sliding,
            window_tokens=self._number("sliding_window") if sliding else 0,
        )

    def _number(self, name: str) -> int:
        value = self._text.get(name)
        if value is None and self._kind.startswith("Gemma"):
            value = _GEMMA.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            said = "is missing" if value is None else f"is {value!r}"
            raise InputError(f"{self._where}: {name} {said}: a whole number of at least 1 is needed")
        return value

    def _kv_heads(self) -> int:
        grouped = self._text.get("num_key_value_heads") is not None or self._kind != "Llama"
        return self._number("num_key_value_heads" if grouped else "num_attention_heads")

    def _head_dim(self) -> int:
        if self._text.get("head_dim") is not None or self._kind not in ("Llama", "Qwen2", "Mistral"):
            return self._number("head_dim")
        return self._number("hidden_size") // self._number("num_attention_heads")

    def _sliding_layers(self, layers: int) -> int:
        kinds = self._text.get("layer_types")
        if isinstance(kinds, list):
            other = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
            if other or len(kinds) != layers:
                raise self._refused(f"its layers are {', '.join(other) or 'not as many as layer_types names'}")
            return kinds.count("sliding_attention")
        if self._kind == "Gemma2":
            return -(-layers // 2)
        if self._kind == "Gemma3":
            return layers - layers // self._number("sliding_window_pattern")
        if self._text.get("sliding_window") is None or self._kind == "Llama":
            return 0
        if self._kind == "Mistral":
            return layers
        return max(layers - self._number("max_window_layers"), 0) if self._text.get("use_sliding_window") else 0

    def _element_bytes(self) -> int:
        named = [fields.get(name) for fields in (self._text, self._outer) for name in ("torch_dtype", "dtype")]
        kind = next((value for value in named if value is not None), None)
        if not isinstance(kind, str) or kind not in _ELEMENT_BYTES:
            raise self._refused(f"its type is {kind!r}, not one of {', '.join(_ELEMENT_BYTES)}")
        return _ELEMENT_BYTES[kind]

    def _refused(self, why: str) -> InputError:
        return InputError(
            f"{self._where}: {why}: give LAYERS,KV_HEADS,HEAD_DIM,BYTES of the layers that keep keys and values"
        )

"""The shape of a model from its Hugging Face `config.json`.

Only architectures whose cache has a formula here are read (`architectures.py`); what a file leaves to the defaults of
its class is taken from there where that is written down, and refused elsewhere.

Invariant: a model with layers of another kind (state space, linear or chunked attention, an indexer's keys, an encoder)
or with layers that share their keys and values is refused by name, never given the formula of standard attention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmon.errors import InputError
from kvmon.serving.model_shape.architectures import ARCHITECTURES, Architecture, HeadDim, KvHeads, Sliding
from kvmon.serving.model_shape.shape import ModelShape, latent, standard

__all__ = ["read_description", "shape_of_config"]

_ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_QUANTIZED = ("kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_group")
_LARGEST_FILE = 16 << 20  # a description has a few KiB; labels of classes can make it longer
_LARGEST_NUMBER = 1_000_000
# What makes a cache another one than its architecture's, wherever it stands and whatever it holds.
_OTHERWISE = {
    "num_kv_shared_layers": "layers share their keys and values",
    "cla_share_factor": "layers share their keys and values",
    "is_encoder_decoder": "it has an encoder, whose output it keeps beside",
    "attention_chunk_size": "its layers attend to chunks",
    "mamba_d_state": "it has state-space layers",
    "ssm_state_size": "it has state-space layers",
    "index_topk": "an indexer keeps keys of its own",
}


def shape_of_config(path: Path, element_bytes: int | None = None) -> ModelShape:
    """The shape that the file describes, named after its architecture. Elements are of the type of the weights, unless
    `element_bytes` says how large they are.

    Raises InputError where the file cannot be read, is no such description, or describes a model without a formula.
    """
    architecture, config = read_description(path)
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{path}: the cache of {architecture[:80]} has no formula here: give LAYERS,KV_HEADS,HEAD_DIM,BYTES of the "
            "layers that keep keys and values; docs/capacity.md lists what is understood"
        )
    text = config.get("text_config", config)
    return _Config(path, architecture, text if isinstance(text, dict) else {}, config).shape(element_bytes)


def read_description(path: Path) -> tuple[str, dict[str, Any]]:
    """The architecture that a `config.json` names, and all of its fields.

    Raises InputError where the file cannot be read or is no such description.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file: give the config.json of a model")
        with open(path, encoding="utf-8") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise InputError(f"{path} is too long to be one: give the config.json of a model")
        config = json.loads(text)
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
        self._kind = architecture.partition("For")[0].removesuffix("LMHeadModel")
        self._rule: Architecture = ARCHITECTURES[architecture]
        self._text = text
        self._outer = outer

    def shape(self, element_bytes: int | None) -> ModelShape:
        """The shape by the rule of the architecture."""
        for name, why in _OTHERWISE.items():
            if self._text.get(name) or self._outer.get(name):
                raise self._refused(f"{why} ({name})")
        layers = self._number(*self._rule.layers)
        size = self._element_bytes() if element_bytes is None else element_bytes
        if self._rule.latent:
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

    def _number(self, *names: str) -> int:
        """The field under any of its names. Raises InputError where it is no number, or two of them differ."""
        found = {name: self._text[name] for name in names if self._text.get(name) is not None}
        if len(set(map(str, found.values()))) > 1:
            raise InputError(f"{self._where}: {' and '.join(found)} differ: say it once")
        value = next(iter(found.values()), None)
        if value is None and names[0] not in self._text:
            value = self._rule.defaults.get(names[0])
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_NUMBER:
            said = "is missing" if value is None else f"is {str(value)[:40]!r}"
            raise InputError(f"{self._where}: {names[0]} {said}: a whole number of at least 1 is needed")
        return value

    def _kv_heads(self) -> int:
        rule = self._rule.kv_heads
        if rule is KvHeads.GIVEN or (rule is KvHeads.OR_ALL and self._text.get("num_key_value_heads") is not None):
            return self._number("num_key_value_heads")
        if rule is KvHeads.FALCON and self._text.get("new_decoder_architecture"):
            return self._number("num_kv_heads", "n_head_kv")
        if rule in (KvHeads.FALCON, KvHeads.MULTI_QUERY) and self._text.get("multi_query", True):
            return 1
        if rule is KvHeads.MPT:
            attention = self._text.get("attn_config") or {}
            kind = attention.get("attn_type") if isinstance(attention, dict) else attention
            if kind not in (None, "multihead_attention"):
                raise self._refused(f"its attention is {str(kind)[:40]!r}")
        return self._number(*self._rule.heads)

    def _head_dim(self) -> int:
        rule = self._rule.head_dim
        if rule is HeadDim.GIVEN or (rule is HeadDim.OR_SHARE and self._text.get("head_dim") is not None):
            return self._number("head_dim")
        width, heads = self._number(*self._rule.width), self._number(*self._rule.heads)
        if width % heads:
            raise self._refused(f"{heads} heads cannot share a hidden size of {width} evenly")
        return width // heads

    def _sliding_layers(self, layers: int) -> int:
        rule, text = self._rule.sliding, self._text
        asked = bool(text.get("use_sliding_window"))
        kinds = text.get("layer_types")
        if isinstance(kinds, list):
            other = sorted({str(kind)[:40] for kind in kinds} - {"full_attention", "sliding_attention"})
            if other or len(kinds) != layers:
                raise self._refused(f"its layers are {', '.join(other[:4]) or 'not as many as layer_types names'}")
            sliding = kinds.count("sliding_attention")
            if sliding and rule is Sliding.UPPER and not asked:
                raise self._refused("layer_types names layers that slide, and use_sliding_window says that none does")
            return sliding
        if rule is Sliding.SAID:
            raise self._refused("layer_types is missing")
        if rule is Sliding.EVERY_SECOND:
            return -(-layers // 2)
        if rule is Sliding.PATTERN:
            return layers - layers // self._number("sliding_window_pattern")
        if rule is Sliding.ALL:
            window = text["sliding_window"] if "sliding_window" in text else self._rule.defaults.get("sliding_window")
            return 0 if window is None else layers
        if rule is Sliding.UNKNOWN and asked:
            raise self._refused("which of its layers slide is not known here (use_sliding_window)")
        if rule is Sliding.UPPER and asked:
            if "sliding_window" in text and text["sliding_window"] is None:
                return 0
            return max(layers - self._upper(), 0)
        return 0

    def _upper(self) -> int:
        """The first layer that slides; 0 is one."""
        first = self._text.get("max_window_layers")
        return 0 if first == 0 and not isinstance(first, bool) else self._number("max_window_layers")

    def _element_bytes(self) -> int:
        quantized = self._outer.get("quantization_config") or self._text.get("quantization_config")
        scheme = next((name for name in _QUANTIZED if isinstance(quantized, dict) and quantized.get(name)), None)
        if scheme is not None:
            raise self._untyped(f"its cache may be quantized ({scheme})")
        named = [fields.get(name) for fields in (self._text, self._outer) for name in ("torch_dtype", "dtype")]
        kind = next((value for value in named if value is not None), None)
        if not isinstance(kind, str) or kind not in _ELEMENT_BYTES:
            said = None if kind is None else str(kind)[:40]
            raise self._untyped(f"its type is {said!r}, not one of {', '.join(_ELEMENT_BYTES)}")
        return _ELEMENT_BYTES[kind]

    def _untyped(self, why: str) -> InputError:
        return InputError(
            f"{self._where}: {why}: give that of the cache (kvmon capacity: --kv-dtype), or "
            "LAYERS,KV_HEADS,HEAD_DIM,BYTES"
        )

    def _refused(self, why: str) -> InputError:
        return InputError(
            f"{self._where}: {why}: give LAYERS,KV_HEADS,HEAD_DIM,BYTES of the layers that keep keys and values"
        )

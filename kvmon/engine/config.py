"""What a Llama-family model is made of, and how that is read from a Hugging Face `config.json`.

Understood are `LlamaForCausalLM`, `Qwen2ForCausalLM`, `Qwen3ForCausalLM` and `MistralForCausalLM`: RMSNorm, rotary
embedding, grouped-query attention, SwiGLU; with or without biases, norms of queries and keys, tied head, and layers
with a sliding window.

Invariant: a configuration that exists can be computed by `model.py`. What a file leaves out has the value that its
class has in transformers; what cannot be computed here is refused by name, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmon.engine.rope import Rope, rope_of_config
from kvmon.errors import ConfigError, InputError
from kvmon.serving.model_shape import kv_bytes_per_token, read_description

__all__ = ["ARCHITECTURES", "DTYPES", "ModelConfig", "read_config", "tiny_config"]

#: Architectures that are understood.
ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM")
#: Types of weights and of keys and values, with the bytes of an element.
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOST = 2**24
_MOST_LAYERS = 1024


@dataclass(frozen=True)
class ModelConfig:
    """A decoder; see the module. Raises ConfigError for what is none.

    vocabulary, hidden, intermediate, layers   sizes
    heads, kv_heads, head_dim                  query heads share the keys and values of heads / kv_heads
    windows        a layer: 0 = sees every earlier token, W = the last W tokens with its own
    qkv_bias, out_bias, mlp_bias               which projections have a bias
    qk_norm        queries and keys are normalised by head before they are rotated (Qwen3)
    eos            tokens that end a sequence
    """

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope: Rope = field(default_factory=Rope)
    rms_eps: float = 1e-6
    max_positions: int = 4096
    tied: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()
    dtype: str = "float32"
    name: str = "model"

    def __post_init__(self) -> None:
        sizes = ("vocabulary", "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "max_positions")
        for size in sizes:
            if not 1 <= getattr(self, size) <= _MOST:
                raise ConfigError(f"{self.name}: {size} of {getattr(self, size)} is not possible: 1 to {_MOST}")
        if self.heads % self.kv_heads:
            raise ConfigError(f"{self.name}: {self.heads} query heads cannot share {self.kv_heads} KV heads evenly")
        if self.head_dim % 2:
            raise ConfigError(f"{self.name}: a head of {self.head_dim} cannot be rotated: an even number is needed")
        if self.dtype not in DTYPES:
            raise ConfigError(f"{self.name}: type '{self.dtype}' is unknown: choose {', '.join(DTYPES)}")
        if not self.windows:
            object.__setattr__(self, "windows", (0,) * self.layers)
        if len(self.windows) != self.layers:
            raise ConfigError(f"{self.name}: {len(self.windows)} windows for {self.layers} layers: give one for each")

    @property
    def layer_token_bytes(self) -> int:
        """Bytes of keys and values of one token in one layer."""
        return kv_bytes_per_token(1, self.kv_heads, self.head_dim, DTYPES[self.dtype])

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token in all layers."""
        return self.layers * self.layer_token_bytes


def tiny_config(vocabulary: int = 320, dtype: str = "float32") -> ModelConfig:
    """The model of laptops: two layers, grouped-query attention, 1 KiB of keys and values a token in float32."""
    return ModelConfig(
        vocabulary=vocabulary,
        hidden=64,
        intermediate=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        rope=Rope(theta=10_000.0),
        max_positions=2**20,
        tied=False,
        dtype=dtype,
        name="kvmon-tiny",
    )


def read_config(directory: Path, dtype: str | None = None) -> ModelConfig:
    """The configuration in `directory`/config.json; `dtype` overrides the type of its weights.

    Raises InputError where the file is missing, damaged, or describes a model that cannot be computed here.
    """
    path = directory / "config.json"
    architecture, found = read_description(path)
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path} is a {architecture}: the reference engine computes {', '.join(ARCHITECTURES)}")
    reader = _Reader(path, architecture, found)
    try:
        return reader.config(directory.resolve().name, dtype)
    except ConfigError as error:
        raise InputError(f"{path}: {error}") from error


#: What the classes of transformers have where a file says nothing.
_MISSING: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "Qwen2ForCausalLM": {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "max_window_layers": 28},
    "Qwen3ForCausalLM": {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    "MistralForCausalLM": {"rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
}


class _Reader:
    """One file while it is read: its fields, and errors that name it."""

    def __init__(self, path: Path, architecture: str, fields: Mapping[str, Any]) -> None:
        self._path = path
        self._kind = architecture
        self._fields = {**_MISSING[architecture], **{k: v for k, v in fields.items() if v is not None}}

    def config(self, name: str, dtype: str | None) -> ModelConfig:
        """Everything, checked."""
        activation = self._fields.get("hidden_act", "silu")
        if activation != "silu":
            raise InputError(f"{self._path}: the activation {activation!r} is not computed here: silu is")
        if self._fields.get("quantization_config"):
            raise InputError(f"{self._path}: quantised weights are not computed here: give a plain checkpoint")
        heads = self._whole("num_attention_heads")
        hidden = self._whole("hidden_size")
        layers = self._whole("num_hidden_layers")
        if layers > _MOST_LAYERS:
            raise InputError(f"{self._path}: {layers} layers are no model's: {_MOST_LAYERS} at most are computed here")
        head_dim = self._whole("head_dim") if "head_dim" in self._fields else hidden // heads
        biased = bool(self._fields.get("attention_bias", False))
        qwen2 = self._kind == "Qwen2ForCausalLM"
        return ModelConfig(
            vocabulary=self._whole("vocab_size"),
            hidden=hidden,
            intermediate=self._whole("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=self._whole("num_key_value_heads") if "num_key_value_heads" in self._fields else heads,
            head_dim=head_dim,
            rope=rope_of_config(self._fields, self._path),
            rms_eps=self._number("rms_norm_eps"),
            max_positions=self._whole("max_position_embeddings"),
            tied=bool(self._fields.get("tie_word_embeddings", False)),
            qkv_bias=qwen2 or biased,
            out_bias=biased and not qwen2,
            mlp_bias=bool(self._fields.get("mlp_bias", False)) and self._kind == "LlamaForCausalLM",
            qk_norm=self._kind == "Qwen3ForCausalLM",
            windows=self._windows(layers),
            eos=self._eos(),
            dtype=dtype or self._dtype(),
            name=name or "model",
        )

    def _whole(self, name: str) -> int:
        value = self._fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            said = "is missing" if value is None else f"is {value!r}"
            raise InputError(f"{self._path}: {name} {said}: a whole number of at least 1 is needed")
        return value

    def _number(self, name: str) -> float:
        value = self._fields[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise InputError(f"{self._path}: {name} is {value!r}: a number from 0 to 1 is needed")
        return float(value)

    def _windows(self, layers: int) -> tuple[int, ...]:
        kinds = self._fields.get("layer_types")
        if isinstance(kinds, list):
            other = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
            if other or len(kinds) != layers:
                why = f"layers of {', '.join(other)}" if other else f"{len(kinds)} layer_types for {layers} layers"
                raise InputError(f"{self._path} has {why}: full_attention and sliding_attention are computed here")
            window = self._whole("sliding_window") if "sliding_attention" in kinds else 0
            return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
        if self._fields.get("sliding_window") is None or self._kind == "LlamaForCausalLM":
            return (0,) * layers
        window = self._whole("sliding_window")
        if self._kind == "MistralForCausalLM":
            return (window,) * layers
        if not self._fields.get("use_sliding_window"):
            return (0,) * layers
        first = self._whole("max_window_layers") if self._fields["max_window_layers"] else 0
        return tuple(window if layer >= first else 0 for layer in range(layers))

    def _eos(self) -> tuple[int, ...]:
        value = self._fields.get("eos_token_id", ())
        tokens = value if isinstance(value, list) else [value] if isinstance(value, int) else []
        if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in tokens):
            raise InputError(f"{self._path}: eos_token_id is {value!r}: token numbers are needed")
        return tuple(tokens)

    def _dtype(self) -> str:
        value = self._fields.get("dtype", self._fields.get("torch_dtype", "float32"))
        if value not in DTYPES:
            raise InputError(f"{self._path}: its type is {value!r}: give another one of {', '.join(DTYPES)}")
        return str(value)

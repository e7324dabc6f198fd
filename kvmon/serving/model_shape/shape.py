"""The shape of a model as far as its KV cache goes, and the formulas of its bytes.

Standard attention keeps a key and a value for each KV head: 2 * kv_heads * head_dim elements a layer and token. Latent
attention (MLA, DeepSeek-V2, arXiv 2405.04434) keeps one compressed vector and the rotary part of the key:
kv_lora_rank + rope_dim elements. A layer with a sliding window needs the last `window_tokens` tokens and no others
(Mistral 7B, arXiv 2310.06825; Gemma 3, arXiv 2503.19786).

Invariant: a shape that exists has at least one layer, and a window exactly when some layer slides. Bytes are those of
the elements alone: the scales of a quantized cache and the unfilled rest of pages come on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvmon.errors import ConfigError

__all__ = ["ModelShape", "kv_bytes_per_token", "latent", "standard"]

_MOST_BYTES = 1 << 31  # of a token


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, element_bytes: int) -> int:
    """Bytes of keys and values that one token of standard attention takes."""
    return 2 * layers * kv_heads * head_dim * element_bytes


@dataclass(frozen=True)
class ModelShape:
    """Layers and what each of them keeps of one token.

    layer_elements   numbers that a layer keeps of a token
    element_bytes    bytes of such a number
    full_layers      layers that keep every token
    window_layers    layers that keep the last `window_tokens` tokens only
    kv_heads         heads that those numbers belong to; 0 = they are not of heads (latent attention)

    Raises ConfigError for a shape without layers, or with a window and no layer that has it, or the other way round.
    """

    name: str
    layer_elements: int
    element_bytes: int
    full_layers: int
    window_layers: int = 0
    window_tokens: int = 0
    kv_heads: int = 0

    def __post_init__(self) -> None:
        if min(self.full_layers, self.window_layers, self.window_tokens) < 0 or self.layers < 1:
            raise ConfigError(f"{self.name} has no layer that keeps anything: give at least 1 layer")
        if self.layer_elements < 1 or self.element_bytes < 1:
            raise ConfigError(f"{self.name}: a layer that keeps 0 bytes of a token is none: give numbers of at least 1")
        if self.bytes_per_token + self.window_bytes_per_token > _MOST_BYTES:
            raise ConfigError(f"{self.name}: a token of more than {_MOST_BYTES:,} bytes is none: give smaller numbers")
        if (self.window_layers > 0) != (self.window_tokens > 0):
            raise ConfigError(f"{self.name}: a window and the layers that have it go together: give both or neither")

    @property
    def layers(self) -> int:
        """All layers that keep keys and values."""
        return self.full_layers + self.window_layers

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each token takes for as long as its sequence lives."""
        return self.full_layers * self.layer_elements * self.element_bytes

    @property
    def window_bytes_per_token(self) -> int:
        """Bytes that each of the last `window_tokens` tokens takes beside `bytes_per_token`."""
        return self.window_layers * self.layer_elements * self.element_bytes

    def bytes_at(self, tokens: int) -> int:
        """Bytes of a sequence of so many tokens, where the engine gives back what has left the window."""
        return tokens * self.bytes_per_token + min(tokens, self.window_tokens) * self.window_bytes_per_token

    def on_one_of(self, shards: int) -> ModelShape:
        """What one of so many tensor-parallel shards keeps: its share of the heads, of which each shard has at least
        one; numbers that are not of heads stand on every shard.

        Raises ConfigError where heads cannot be shared out evenly.
        """
        if shards < 1:
            raise ConfigError(f"{shards} shards are none: give at least 1")
        if not self.kv_heads or shards == 1:
            return self
        if self.kv_heads % shards and shards % self.kv_heads:
            raise ConfigError(
                f"{self.name} has {self.kv_heads} KV heads, which {shards} shards cannot share evenly: give a "
                "number that divides them, or a multiple of them"
            )
        heads = max(self.kv_heads // shards, 1)
        return replace(self, layer_elements=self.layer_elements // self.kv_heads * heads, kv_heads=heads)

    def with_element_bytes(self, element_bytes: int, suffix: str) -> ModelShape:
        """The same model with keys and values of another type; `suffix` goes to its name."""
        return replace(self, name=f"{self.name}-{suffix}", element_bytes=element_bytes)


def standard(
    name: str,
    layers: int,
    kv_heads: int,
    head_dim: int,
    element_bytes: int = 2,
    *,
    window_layers: int = 0,
    window_tokens: int = 0,
) -> ModelShape:
    """A model of standard attention; `layers` counts all of them, `window_layers` those that slide."""
    return ModelShape(
        name, 2 * kv_heads * head_dim, element_bytes, layers - window_layers, window_layers, window_tokens, kv_heads
    )


def latent(name: str, layers: int, kv_lora_rank: int, rope_dim: int, element_bytes: int = 2) -> ModelShape:
    """A model of latent attention (MLA)."""
    return ModelShape(name, kv_lora_rank + rope_dim, element_bytes, layers)

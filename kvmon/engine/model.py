"""A Llama-family decoder in plain torch: what happens to tokens between their embedding and their logits.

    hidden = model(tokens, positions, attend)      tokens of many sequences one after the other
    logits = model.logits(hidden[rows])

The model knows nothing of sequences, caches or layouts: `attend(layer, q, k, v)` keeps the new keys and values and
returns the attention's output. So the same weights run over a contiguous and over a paged cache.

Invariant: nothing here depends on which sequence a token belongs to; `attend` is the only place where tokens meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from kvmon.engine.config import ModelConfig
from kvmon.engine.rope import inverse_frequencies

__all__ = ["Attend", "Decoder", "LayerWeights", "Weights"]

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, queries (tokens, heads, head_dim), keys and values (tokens, kv_heads, head_dim)) -> (tokens, heads,
head_dim)."""


@dataclass(frozen=True)
class LayerWeights:
    """One layer; `qkv` and `gate_up` hold their projections one below the other. Norms of heads and biases may be
    absent."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    qkv_bias: torch.Tensor | None = None
    output_bias: torch.Tensor | None = None
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """All weights of a decoder; `head` is the embedding itself where they are tied."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor; a tied head is there twice."""
        yield from (self.embedding, self.norm, self.head)
        for layer in self.layers:
            yield from (value for value in vars(layer).values() if value is not None)


class Decoder:
    """Computes; see the module. Weights and configuration belong together, on one device."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        frequencies, self._scale = inverse_frequencies(config.head_dim, config.rope)
        self._frequencies = frequencies.to(self.device)

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Hidden states (n, hidden) of `tokens` (n) at `positions` (n), normalised for the head."""
        config = self.config
        cos, sin = self._rotation(positions)
        hidden = F.embedding(tokens, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            normed = self._norm(hidden, layer.input_norm)
            mixed = F.linear(normed, layer.qkv, layer.qkv_bias).view(len(tokens), -1, config.head_dim)
            q, k, v = torch.split(mixed, [config.heads, config.kv_heads, config.kv_heads], dim=1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            out = attend(index, _rotated(q, cos, sin), _rotated(k, cos, sin), v)
            hidden = hidden + F.linear(out.reshape(len(tokens), -1), layer.output, layer.output_bias)
            normed = self._norm(hidden, layer.post_norm)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)
        return self._norm(hidden, self.weights.norm)

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, float32 (n, vocabulary)."""
        return F.linear(hidden, self.weights.head).float()

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_eps)

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions.float()[:, None] * self._frequencies
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return (angles.cos() * self._scale).to(self.dtype), (angles.sin() * self._scale).to(self.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (i, i + head_dim / 2), as the published checkpoints have them."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin

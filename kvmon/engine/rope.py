"""Rotary position embedding and its usual scalings: none, linear, llama3 and yarn.

The rotation of a pair of numbers at position p is p * frequency; the scalings change the frequencies so that a model
reaches beyond the length it was trained with. Formulas: rotary embedding (RoFormer, arXiv 2104.09864), position
interpolation (arXiv 2306.15595), YaRN (arXiv 2309.00071), and Llama 3.1's own (arXiv 2407.21783, 3.2 and its code).

Invariant: frequencies depend on the configuration alone, never on the sequence; scalings that change with its length
(dynamic) would make cached keys wrong and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kvmon.errors import InputError

__all__ = ["Rope", "inverse_frequencies", "rope_of_config"]

_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Rope:
    """`theta` is the base of the frequencies; the rest is read by the scaling that needs it.

    factor       by how much the context is longer than `original`, the positions of the training
    low, high    llama3: waves longer than original / low are slowed down, shorter than original / high are not
    beta_slow, beta_fast   yarn: rotations over the original length between which frequencies are blended
    truncate     yarn: those bounds are rounded outwards to whole dimensions
    attention    yarn: what queries and keys are multiplied with; None: 0.1 ln(factor) + 1
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_slow: float = 1.0
    beta_fast: float = 32.0
    truncate: bool = True
    attention: float | None = None


def inverse_frequencies(head_dim: int, rope: Rope) -> tuple[torch.Tensor, float]:
    """Frequencies of the pairs of a head, float32 (head_dim / 2), and what queries and keys are scaled with."""
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**steps
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(plain, rope), 1.0
    if rope.kind == "yarn":
        attention = rope.attention
        if attention is None:
            attention = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        return _yarn(plain, head_dim, rope), attention
    return plain, 1.0


def _llama3(plain: torch.Tensor, rope: Rope) -> torch.Tensor:
    wavelength = 2 * math.pi / plain
    slow = plain / rope.factor
    share = (rope.original / wavelength - rope.low) / (rope.high - rope.low)
    blended = (1 - share) * slow + share * plain
    between = (wavelength <= rope.original / rope.low) & (wavelength >= rope.original / rope.high)
    scaled = torch.where(wavelength > rope.original / rope.low, slow, plain)
    return torch.where(between, blended, scaled)


def _yarn(plain: torch.Tensor, head_dim: int, rope: Rope) -> torch.Tensor:
    def dimension(rotations: float) -> float:
        return head_dim * math.log(rope.original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = torch.clamp((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def rope_of_config(fields: Mapping[str, Any], path: Path) -> Rope:
    """The rotary embedding that a `config.json` describes, in the old spelling or the new one.

    Raises InputError for one that is not computed here, or lacks a number.
    """
    said = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise InputError(f"{path}: the rotary embedding is {said!r}: an object is needed")
    kind = said.get("rope_type", said.get("type", "default"))
    if kind not in _KINDS or said.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1)) != 1:
        raise InputError(f"{path}: rotary embedding of type {kind!r} is not computed here: {', '.join(_KINDS)} are")

    def number(name: str, missing: float | None = None) -> float:
        value = said.get(name, missing)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 or math.isinf(value):
            raise InputError(f"{path}: {name} of the rotary embedding is {value!r}: a number above 0 is needed")
        return float(value)

    theta = number("rope_theta", fields.get("rope_theta", 10_000.0))
    if kind == "default":
        return Rope(theta)
    longest = fields.get("max_position_embeddings")
    return Rope(
        theta,
        str(kind),
        factor=number("factor"),
        original=int(number("original_max_position_embeddings", longest)),
        low=number("low_freq_factor", 1.0 if kind != "llama3" else None),
        high=number("high_freq_factor", 4.0 if kind != "llama3" else None),
        beta_slow=number("beta_slow", 1.0),
        beta_fast=number("beta_fast", 32.0),
        truncate=bool(said.get("truncate", True)),
        attention=number("attention_factor") if said.get("attention_factor") is not None else None,
    )

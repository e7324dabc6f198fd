"""Weights of a decoder: seeded random ones, or those of a local Hugging Face directory in safetensors.

Invariant: a file that lacks a tensor, or has one of another shape, is refused by name before anything is computed. No
pickle is ever read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from kvmon.engine.config import ModelConfig
from kvmon.engine.model import LayerWeights, Weights
from kvmon.errors import InputError, SystemRefused

__all__ = ["load_weights", "random_weights", "torch_dtype"]

Get = Callable[[str, tuple[int, ...]], torch.Tensor]
_SPREAD = {"q_proj": 2.0, "k_proj": 2.0, "o_proj": 2.0}  # of random weights, beside 1 / sqrt(inputs)
_INDEX = "model.safetensors.index.json"


def torch_dtype(name: str) -> torch.dtype:
    """The type of torch that a configuration names."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def random_weights(config: ModelConfig, seed: int, device: str = "cpu") -> Weights:
    """Weights drawn from `seed`, the same on every device. Numbers stay near 1, and attention is peaked, so that what a
    request generates depends on what it reads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1:
            spread = 0.1
            base = 0.0 if name.endswith("bias") else 1.0
        else:
            spread, base = _SPREAD.get(name.split(".")[-2], 1.0), 0.0
            spread *= 1.0 if "embed" in name else shape[1] ** -0.5
        drawn = torch.randn(shape, generator=generator) * spread + base
        return drawn.to(device=device, dtype=torch_dtype(config.dtype))

    return _assemble(config, draw)


def load_weights(config: ModelConfig, directory: Path, device: str = "cpu") -> Weights:
    """The weights in `directory`. Raises InputError where a file or tensor is missing or odd, SystemRefused where the
    device has no room for them."""
    with ExitStack() as stack:
        tensors = dict(_tensors(directory, stack))

        def get(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            if name not in tensors:
                raise InputError(
                    f"{directory} has no tensor {name}: its files and its config.json do not belong together"
                )
            found = tensors[name].get_tensor(name)
            if tuple(found.shape) != shape:
                raise InputError(f"{directory}: {name} is {tuple(found.shape)}, its config.json says {shape}")
            if not found.is_floating_point():
                raise InputError(
                    f"{directory}: {name} is of type {found.dtype}: quantised weights are not computed here"
                )
            if not torch.isfinite(found).all():
                raise InputError(f"{directory}: {name} has numbers that are none (NaN or infinite): fetch it again")
            moved: torch.Tensor = found.to(device=device, dtype=torch_dtype(config.dtype))
            return moved

        try:
            return _assemble(config, get)
        except torch.OutOfMemoryError as error:
            raise SystemRefused(
                f"{device} has no room for the weights of {directory}: choose a smaller model"
            ) from error


def _tensors(directory: Path, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Name of every tensor in the files of `directory`, and the open file that has it."""
    from safetensors import SafetensorError, safe_open

    for path in _files(directory):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no whole safetensors file: {error}") from error
        names = file.keys()  # of something that is no mapping otherwise
        yield from ((name, file) for name in names)


def _files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            raise InputError(f"{directory} holds no *.safetensors: convert its weights, other formats are not read")
        return files
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} cannot be used: it should map tensors to files") from error
    missing = [name for name in names if not (directory / Path(str(name)).name).is_file()]
    if missing:
        raise InputError(f"{directory} lacks {missing[0]}, which {_INDEX} names: download it too")
    return [directory / Path(str(name)).name for name in names]


def _assemble(config: ModelConfig, get: Get) -> Weights:
    """All weights by the names and shapes of transformers' checkpoints."""
    embedding = get("model.embed_tokens.weight", (config.vocabulary, config.hidden))
    layers = tuple(_layer(config, f"model.layers.{index}", get) for index in range(config.layers))
    norm = get("model.norm.weight", (config.hidden,))
    head = embedding if config.tied else get("lm_head.weight", (config.vocabulary, config.hidden))
    return Weights(embedding, layers, norm, head)


def _layer(config: ModelConfig, name: str, get: Get) -> LayerWeights:
    hidden, wide = config.hidden, config.intermediate
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"

    def stacked(names: tuple[str, ...], sizes: tuple[int, ...], *rest: int) -> torch.Tensor:
        return torch.cat([get(part, (size, *rest)) for part, size in zip(names, sizes, strict=True)])

    projections = tuple(f"{attention}.{part}_proj" for part in "qkv")
    gate_up = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
    return LayerWeights(
        input_norm=get(f"{name}.input_layernorm.weight", (hidden,)),
        qkv=stacked(tuple(f"{part}.weight" for part in projections), (q, kv, kv), hidden),
        output=get(f"{attention}.o_proj.weight", (hidden, q)),
        post_norm=get(f"{name}.post_attention_layernorm.weight", (hidden,)),
        gate_up=stacked(tuple(f"{part}.weight" for part in gate_up), (wide, wide), hidden),
        down=get(f"{mlp}.down_proj.weight", (hidden, wide)),
        qkv_bias=stacked(tuple(f"{part}.bias" for part in projections), (q, kv, kv)) if config.qkv_bias else None,
        output_bias=get(f"{attention}.o_proj.bias", (hidden,)) if config.out_bias else None,
        gate_up_bias=stacked(tuple(f"{part}.bias" for part in gate_up), (wide, wide)) if config.mlp_bias else None,
        down_bias=get(f"{mlp}.down_proj.bias", (hidden,)) if config.mlp_bias else None,
        q_norm=get(f"{attention}.q_norm.weight", (config.head_dim,)) if config.qk_norm else None,
        k_norm=get(f"{attention}.k_norm.weight", (config.head_dim,)) if config.qk_norm else None,
    )

"""The engine computes what transformers computes from the same weights, in float32 within 1e-4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.engine import Decoder, Engine, Sampling
from kvmon.serving import SchedulerConfig
from tests.unit.engine.driving import generate, run
from tests.unit.engine.models import MODELS, VOCABULARY, saved, theirs

PROMPTS = [torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 7, 83)]
TOKENS = 30


def greedy(model: object, prompt: list[int]) -> list[int]:
    """What transformers generates."""
    ids = torch.tensor([prompt])
    out = model.generate(  # type: ignore[attr-defined]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_tokens_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Every logit of a long prompt, computed in chunks over either layout, and the tokens that follow."""
    reference, model = saved(name, tmp_path)
    with torch.no_grad():
        wanted = reference(torch.tensor([PROMPTS[-1]])).logits[0, -1]
    expected = [[greedy(reference, prompt)] for prompt in PROMPTS]
    pools: list[AllocatorConfig] = [PagedConfig(80, 8), ContiguousConfig(500, chunk_tokens=16)]
    for pool in pools:
        seen = last_logits(model, pool, PROMPTS[-1])
        assert torch.max(torch.abs(seen - wanted)) < 1e-4
        engine = Engine(model, pool, SchedulerConfig(token_budget=32), poison=True)
        assert generate(engine, PROMPTS, TOKENS) == expected


def last_logits(model: Decoder, pool: AllocatorConfig, prompt: list[int]) -> torch.Tensor:
    """The logits from which the first token of `prompt` was chosen."""
    seen = []
    logits = Decoder.logits

    class Watched(Decoder):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            """The same, remembered."""
            seen.append(logits(self, hidden))
            return seen[-1]

    engine = Engine(Watched(model.config, model.weights), pool, SchedulerConfig(token_budget=32))
    engine.add(prompt, Sampling(1))
    run(engine)
    return next(logits[0] for logits in seen if len(logits))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(dtype: str, tmp_path: Path) -> None:
    """The same weights in two bytes give the same distribution, nearly."""
    from kvmon.engine import load_weights, read_config

    _, model = saved("llama", tmp_path)
    config = read_config(tmp_path, dtype)
    half = Decoder(config, load_weights(config, tmp_path))
    whole = torch.softmax(last_logits(model, PagedConfig(80, 8), PROMPTS[-1]), -1)
    rough = torch.softmax(last_logits(half, PagedConfig(80, 8), PROMPTS[-1]), -1)
    assert half.dtype == getattr(torch, dtype)
    assert 0 < torch.max(torch.abs(whole - rough)) < 0.02


def test_sharded_weights_are_read_like_whole_ones(tmp_path: Path) -> None:
    """A checkpoint in several files gives the same weights."""
    from kvmon.engine import load_weights, read_config

    reference = theirs("llama")
    reference.save_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    config = read_config(tmp_path / "parts")
    whole, parts = (load_weights(config, tmp_path / name) for name in ("whole", "parts"))
    assert torch.equal(whole.head, parts.head)
    assert all(torch.equal(a.qkv, b.qkv) for a, b in zip(whole.layers, parts.layers, strict=True))

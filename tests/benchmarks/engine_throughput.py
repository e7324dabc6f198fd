"""Tokens a second of one model and one set of requests: contiguous and paged here, and transformers' continuous
batching, in turns in one process.

`python -m tests.benchmarks.engine_throughput [--device cuda] [--requests N] ...` prints one JSON object; `bench_engine`
calls it. All sides get the same weights, greedy decoding of the same number of tokens, a pool of the same tokens, and
the same most tokens in a step, and no prefix cache, because rounds repeat the same requests. Each side is set up once
and serves all requests before the clock runs: graphs are captured and kernels compiled by then.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.engine import Decoder, Engine, Sampling, load_weights, read_config
from kvmon.serving import SchedulerConfig

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "heads": 4, "kv_heads": 2},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "heads": 8, "kv_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "heads": 32, "kv_heads": 8},
}


def reference(size: str, dtype: torch.dtype, device: str) -> Any:
    """Transformers' model with random weights."""
    import transformers

    numbers = SIZES[size]
    config = transformers.LlamaConfig(
        vocab_size=32_000 if size != "tiny" else 320,
        hidden_size=numbers["hidden_size"],
        intermediate_size=numbers["intermediate_size"],
        num_hidden_layers=numbers["num_hidden_layers"],
        num_attention_heads=numbers["heads"],
        num_key_value_heads=numbers["kv_heads"],
        max_position_embeddings=32_768,
        attn_implementation="sdpa",
        dtype=dtype,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


def ours(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    """Seconds that the engine takes for all prompts."""
    began = time.perf_counter()
    for prompt in prompts:
        engine.add(prompt, Sampling(tokens, ignore_eos=True))
    count = 0
    while engine.has_work:
        count += sum(len(output.tokens) for output in engine.step())
    seconds = time.perf_counter() - began
    assert count == tokens * len(prompts), f"{count} tokens"
    return seconds


def theirs(model: Any, prompts: list[list[int]], tokens: int, pages: int, page: int, budget: int) -> float:
    """Seconds that transformers' continuous batching takes for all prompts."""
    import transformers

    generation = transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
    )
    known = {field.name for field in dataclasses.fields(transformers.ContinuousBatchingConfig)}
    size = {"page_size" if "page_size" in known else "block_size": page}  # by the release
    batching = transformers.ContinuousBatchingConfig(
        **size, num_blocks=pages, max_batch_tokens=budget, max_memory_percent=0.9, allow_block_sharing=False
    )
    began = time.perf_counter()
    found = model.generate_batch(
        inputs=prompts,
        generation_config=generation,
        continuous_batching_config=batching,
        progress_bar=False,
        persistent_manager=True,
    )
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    assert sum(len(one.generated_tokens) for one in found.values()) == tokens * len(prompts)
    return seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Best seconds of each side over the rounds, one side after the other in each."""
    dtype = getattr(torch, options.dtype)
    model = reference(options.size, dtype, options.device)
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        config = read_config(Path(place))
        mine = Decoder(config, load_weights(config, Path(place), options.device))
    random = np.random.default_rng(0)
    lengths = random.integers(options.prompt // 2, options.prompt * 3 // 2, options.requests)
    prompts = [random.integers(3, config.vocabulary, length).tolist() for length in lengths]
    page = 32 if options.device == "cpu" else 256
    longest = int(lengths.max()) + options.tokens
    pages = options.requests * -(-longest // page)
    units, policy = pages * page // 16, SchedulerConfig(token_budget=options.budget, max_sequences=options.requests)
    pools: dict[str, AllocatorConfig] = {
        "paged": PagedConfig(units, 16, prefix_cache=False),
        "contiguous": ContiguousConfig(units, 16),
    }
    sides = {name: partial(ours, Engine(mine, pool, policy), prompts, options.tokens) for name, pool in pools.items()}
    sides["transformers"] = partial(theirs, model, prompts, options.tokens, pages, page, options.budget)
    best: dict[str, float] = {}
    for turn in range(options.rounds + 1):
        for name, side in sides.items():
            seconds = side()
            if turn:
                best[name] = min(best.get(name, seconds), seconds)
    generated = options.requests * options.tokens
    return {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "size": options.size,
        "requests": options.requests,
        "prompt": int(lengths.mean()),
        "tokens": options.tokens,
        "tokens_per_s": {name: generated / seconds for name, seconds in best.items()},
    }


def main() -> None:
    """One measurement, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()

"""transformers' continuous batching on a GPU, two batches in flight: recorded whole, and the same answers."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

import kvmon
from kvmon.state import StreamState
from tests.engines.transformers_truth import words_of

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

PROMPTS = [[3 + (7 * k * k + 5 * place) % 900 for place in range(20 + 37 * k)] for k in range(24)]
TOKENS = 60


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL + 1)


def model() -> Any:
    """A small Llama with random weights, always the same ones."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        attn_implementation="paged|sdpa",
        pad_token_id=0,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval().to("cuda", torch.bfloat16)


def answers(watch: Path | None, *, in_flight: bool) -> tuple[dict[str, list[int]], Any]:
    """What the manager says to all prompts, recorded or not."""
    generation = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=2, pad_token_id=0)
    batching = ContinuousBatchingConfig(
        page_size=16, num_blocks=90, max_batch_tokens=128, use_async_batching=in_flight, use_cuda_graph=False
    )
    manager = model().init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
    recording = kvmon.attach(manager, directory=watch) if watch is not None else None
    manager.start()
    for number, prompt in enumerate(PROMPTS):
        manager.add_request(prompt, request_id=f"client-{number}", max_new_tokens=TOKENS)
    said: dict[str, list[int]] = {}
    end = time.monotonic() + 120
    while len(said) < len(PROMPTS):
        assert time.monotonic() < end and manager.is_running()
        done = manager.get_result(timeout=2)
        if done is not None:
            said[done.request_id] = list(done.generated_tokens)
    manager.stop()
    return said, recording


@pytest.mark.parametrize("in_flight", [False, True])
def test_the_same_answers_and_a_whole_recording(tmp_path: Path, in_flight: bool) -> None:
    """Under pressure, so that requests wait; nothing lost, nothing strange, everything given back."""
    alone, _ = answers(None, in_flight=in_flight)
    watched, recording = answers(tmp_path, in_flight=in_flight)
    assert watched == alone
    assert recording.grade == "exact", recording.why
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert state.converged and not state.faults()
    assert state.last_step is not None and (state.last_step.running, state.last_step.waiting) == (0, 0)
    assert all(pool.units["active"] == 0 for pool in state.pools.values())
    assert state.steps > TOKENS

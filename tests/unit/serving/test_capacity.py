"""Pages, tokens and requests of a pool: published numbers, brute force over every length, and vLLM's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.allocators import PagedConfig
from kvmon.errors import ConfigError, InputError
from kvmon.replay.capacity_run import Ran, run_capacity
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.capacity import MOST_TOKENS, Lengths, Plan, plan, tail_ratio
from kvmon.serving.gpu_memory import GpuMemory, weights_of
from kvmon.serving.model_shape import ModelShape, model_shape
from kvmon.serving.scenarios import Setup
from kvmon.serving.traces import read_trace

GIB = 1 << 30


def sequence_bytes(made: Plan, tokens: int) -> int:
    """Bytes of a sequence of so many tokens."""
    return int(made.sequence_bytes(np.array([tokens], np.int64))[0])


@pytest.mark.parametrize(
    ("model", "page", "pages", "tokens"),
    [
        ("llama-3.1-8b", 16, 15_360, 245_760),
        ("llama-3.1-8b-fp8", 16, 30_720, 491_520),
        ("llama-2-7b", 16, 3840, 61_440),
        ("deepseek-v3", 64, 7162, 458_368),
        ("opt-13b", 16, 2457, 39_312),
    ],
)
def test_pages_of_thirty_gibibytes(model: str, page: int, pages: int, tokens: int) -> None:
    """Published bytes a token, times the tokens of a page, into 30 GiB."""
    made = plan(model_shape(model), 30 * GIB, page)
    assert (made.pages, made.tokens, made.longest) == (pages, tokens, tokens)
    assert made.requests_of(tokens) == 1 and made.requests_of(tokens + 1) == 0
    assert made.requests_of(1) == pages


def test_shared_prefixes_are_found_by_whole_pages() -> None:
    """220 tokens give 208 at pages of 16, 192 at 64, nothing at 256."""
    found = [plan(model_shape("llama-3.1-8b"), GIB, page).prefix_hit(220) for page in (16, 64, 256)]
    assert found == [208, 192, 0]


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Layers that keep everything, layers that slide, or both."""
    full, sliding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    if full + sliding == 0:
        full = 1
    window = draw(st.integers(1, 50)) if sliding else 0
    return ModelShape("drawn", draw(st.integers(1, 4)), 2, full, sliding, window)


@given(shapes(), st.integers(1, 20), st.integers(1, 3000), st.lists(st.integers(1, 300), min_size=1, max_size=5))
def test_what_fits_is_what_brute_force_finds(shape: ModelShape, page: int, capacity: int, totals: list[int]) -> None:
    """Pages of a sequence counted one by one; the longest that fits; how many of a length fit at once."""
    least = page * (shape.bytes_per_token + shape.window_bytes_per_token)
    if capacity < least:
        with pytest.raises(ConfigError, match="holds no page"):
            plan(shape, capacity, page)
        return
    made = plan(shape, capacity, page)

    def naive(tokens: int) -> int:
        pages = len({token // page for token in range(tokens)})
        # the most pages that a window can touch, wherever it begins
        window = max(len({token // page for token in range(at, at + shape.window_tokens)}) for at in range(page))
        held = pages if tokens <= shape.window_tokens else min(pages, max(window, -(-shape.window_tokens // page) + 1))
        return page * (pages * shape.bytes_per_token + min(pages, held) * shape.window_bytes_per_token)

    for tokens in totals:
        assert sequence_bytes(made, tokens) == naive(tokens)
        assert made.requests_of(tokens) == capacity // naive(tokens)
    longest = made.longest
    if longest is None:
        assert sequence_bytes(made, MOST_TOKENS) <= capacity
    else:
        assert sequence_bytes(made, max(longest, 1)) <= capacity < sequence_bytes(made, longest + 1)
    lengths = Lengths(np.array(totals, np.int64), np.zeros(len(totals), np.int64))
    assert made.requests_of_mix(lengths) == pytest.approx(capacity / np.mean([naive(total) for total in totals]))
    assert made.never_fit(lengths) == sum(naive(total) > capacity for total in totals)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=4), st.integers(1, 40))
def test_tail_waste_is_the_sum_over_every_token(requests: list[tuple[int, int]], page: int) -> None:
    """A decode from prompt to end, token by token."""
    unfilled = written = 0
    for prompt, output in requests:
        for tokens in range(prompt + 1, prompt + output + 1):
            unfilled += -tokens % page
            written += tokens
    columns = np.array(requests, np.int64).T
    expected = unfilled / (unfilled + written) if written else 0.0
    assert tail_ratio(Lengths(columns[0], columns[1]), page) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        ("azure-llm-2023/AzureLLMInferenceTrace_conv.csv", (0.006, 0.050, 0.164)),
        ("mooncake/conversation_trace.jsonl", (0.0006, 0.005, 0.019)),
    ],
)
def test_tail_waste_of_public_traces(traces: Path, trace: str, expected: tuple[float, ...]) -> None:
    """Over time at pages of 16, 128 and 512, as others have measured it."""
    workload = read_trace(traces / trace)
    lengths = Lengths(workload.prompt_tokens.astype(np.int64), workload.output_tokens.astype(np.int64))
    for page, share in zip((16, 128, 512), expected, strict=True):
        assert tail_ratio(lengths, page) == pytest.approx(share, abs=0.001)


def ran_at_once(pool: PagedConfig, requests: int, prompt: int, output: int) -> Ran:
    """Equal requests that arrive together, run to their end by the simulator."""
    each, none = np.ones(requests, np.int32), np.zeros(requests, np.int64)
    work = Workload(none, prompt * each, output * each, output * each, 0 * each)
    scheduler = SchedulerConfig(token_budget=1 << 20, max_sequences=1 << 12, admit_by="full")
    return run_capacity(Setup(work, pool, scheduler, token_bytes=8))


@pytest.mark.parametrize("page", [1, 16, 48])
@pytest.mark.parametrize("total", [3, 47, 48, 49, 96, 700])
def test_as_many_requests_hold_memory_at_once_as_were_promised(page: int, total: int) -> None:
    """In the simulator's own allocator, so many of that length run at once and no more; the longest fits, alone."""
    shape = model_shape("1,2,2,1")
    made = plan(shape, 2000 * shape.bytes_per_token, page)
    assert made.pages is not None and made.longest is not None
    pool = PagedConfig(made.pages, page, prefix_cache=False)
    many = made.requests_of(total)
    for requests in (many, many + 1):
        ran = ran_at_once(pool, requests, total - 2, 2)
        assert (ran.most_running, ran.result.completed) == (many, requests)
    for tokens, completed in ((made.longest, 1), (made.longest + 1, 0)):
        result = ran_at_once(pool, 1, tokens - 2, 2).result
        assert (result.completed, result.refused) == (completed, 1 - completed)


def test_numbers_that_are_none_are_refused() -> None:
    """What no memory can hold does not overflow."""
    with pytest.raises(ConfigError, match="bytes is none"):
        model_shape("999999999,999999999,999999999,9")
    with pytest.raises(ConfigError, match="is none"):
        plan(model_shape("llama-3.1-8b"), GIB, MOST_TOKENS + 1)
    with pytest.raises(ConfigError, match="at most"):
        plan(model_shape("llama-3.1-8b"), GIB, 16).requests_of(MOST_TOKENS + 1)
    huge = plan(model_shape("gemma-3-27b"), 1 << 90, 16)
    assert huge.longest is None and huge.requests_of(100) == (1 << 90) // sequence_bytes(huge, 100)
    assert huge.never_fit(Lengths(np.array([5]), np.array([5]))) == 0


def test_shards_share_heads_and_copy_what_is_none() -> None:
    """Half the heads on each of two; one head on each of sixteen that share eight; latent attention on every one."""
    shape = model_shape("llama-3.1-8b")
    assert [shape.on_one_of(n).bytes_per_token for n in (1, 2, 8, 16)] == [131_072, 65_536, 16_384, 16_384]
    assert model_shape("deepseek-v3").on_one_of(8).bytes_per_token == 70_272
    assert plan(shape, 30 * GIB, 16, shards=4).tokens == 4 * 245_760
    gemma = model_shape("gemma-3-27b").on_one_of(2)
    assert (gemma.bytes_per_token, gemma.window_bytes_per_token) == (40_960, 212_992)
    with pytest.raises(ConfigError, match="cannot share evenly"):
        shape.on_one_of(3)
    with pytest.raises(ConfigError, match="at least 1"):
        shape.on_one_of(0)


def test_a_gpu_leaves_what_is_not_taken() -> None:
    """The sum, what it does not know, and what cannot be."""
    memory = GpuMemory(80 * GIB, 0.9, 15 * GIB)
    assert memory.pool == 57 * GIB and "--other" in memory.unknown
    assert GpuMemory(80 * GIB, 0.9, 15 * GIB, 2 * GIB).pool == 55 * GIB
    assert GpuMemory(80 * GIB, 0.9, 15 * GIB, 2 * GIB).unknown == ""
    with pytest.raises(ConfigError, match="leave nothing"):
        GpuMemory(16 * GIB, 0.9, 15 * GIB).pool  # noqa: B018 - reading it is what fails
    with pytest.raises(ConfigError, match="utilization"):
        GpuMemory(16 * GIB, 1.5, 0).pool  # noqa: B018


def test_weights_are_what_the_files_hold(tmp_path: Path) -> None:
    """The index where there is one, else the sizes of the files, else an error."""
    with pytest.raises(InputError, match="holds no weights"):
        weights_of(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    (tmp_path / "b.safetensors").write_bytes(bytes(50))
    assert weights_of(tmp_path) == 150
    (tmp_path / "model.safetensors").write_bytes(bytes(120))
    assert weights_of(tmp_path) == 120  # others beside it hold the same in another layout
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 140}}))
    assert weights_of(tmp_path) == 140
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="total_size"):
        weights_of(tmp_path)


def test_pages_weigh_what_vllm_says() -> None:
    """Bytes of a page of a layer by vLLM's own specifications."""
    interface = pytest.importorskip("vllm.v1.kv_cache_interface", reason="vLLM is not installed here")
    torch = pytest.importorskip("torch")
    for page in (16, 64):
        llama = interface.FullAttentionSpec(block_size=page, num_kv_heads=8, head_size=128, dtype=torch.bfloat16)
        assert plan(model_shape("llama-3.1-8b"), GIB, page).page_bytes == 32 * llama.page_size_bytes
        mla = interface.MLAAttentionSpec(block_size=page, num_kv_heads=1, head_size=576, dtype=torch.bfloat16)
        assert plan(model_shape("deepseek-v3"), GIB, page).page_bytes == 61 * mla.page_size_bytes

"""The engine on a GPU says what it says on a CPU, over either layout; memory is seen as the driver sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.engine import Decoder, Engine, random_weights, tiny_config
from kvmon.engine.attention import attention_over
from kvmon.errors import SystemRefused
from kvmon.serving import SchedulerConfig
from kvmon.serving import state as at
from tests.unit.engine.driving import generate

pytestmark = pytest.mark.gpu

PROMPTS = [
    torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 5, 17, 33, 64, 100)
]
TOKENS = 40
POLICIES: dict[str, tuple[AllocatorConfig, SchedulerConfig, int]] = {
    "pages": (PagedConfig(300, 16), SchedulerConfig(), 0),
    "small pages under pressure": (PagedConfig(70, 4), SchedulerConfig(token_budget=64), 0),
    "pages of an odd size": (PagedConfig(200, 5), SchedulerConfig(token_budget=48), 0),
    "pages, swapped": (PagedConfig(70, 4), SchedulerConfig(preemption="swap", host_tokens=200), 0),
    "pages, sliding layers": (PagedConfig(100, 4), SchedulerConfig(token_budget=48), 9),
    "pages, window group": (
        PagedConfig(150, 4, prefix_cache=False, window_tokens=9),
        SchedulerConfig(token_budget=48),
        9,
    ),
    "chunks, relocated": (ContiguousConfig(70, 4, 8), SchedulerConfig(), 0),
    "chunks, compacted and swapped": (
        ContiguousConfig(280, 1, 8, compaction=True),
        SchedulerConfig(preemption="swap", host_tokens=200, token_budget=64),
        0,
    ),
    "longest, sliding layers": (ContiguousConfig(600), SchedulerConfig(token_budget=48), 9),
}


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False


def decoder(device: str, window: int, dtype: str = "float32") -> Decoder:
    """The tiny model; with `window` its second layer slides."""
    config = replace(tiny_config(dtype=dtype), windows=(0, window))
    return Decoder(config, random_weights(config, 0, device))


@pytest.mark.parametrize("name", POLICIES)
def test_the_gpu_says_what_the_cpu_says(name: str) -> None:
    """Greedy tokens in float32, with NaN wherever nobody may read, launch by launch and as CUDA graphs."""
    allocator, scheduler, window = POLICIES[name]
    alone = Engine(decoder("cpu", window), ContiguousConfig(4000))
    expected = [[tokens[0]] * 2 for tokens in generate(alone, PROMPTS, TOKENS)]
    for graphs in (False, True):
        engine = Engine(decoder("cuda", window), allocator, scheduler, poison=True, graphs=graphs)
        assert generate(engine, PROMPTS, TOKENS, n=2) == expected
        assert engine.scheduler.state.tally[at.HELD_PAGES] == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_over_both_layouts(dtype: str) -> None:
    """Both layouts agree on nearly every token; a tie in two bytes may fall either way."""
    found = [
        generate(Engine(decoder("cuda", 0, dtype), pool), PROMPTS, TOKENS)
        for pool in (PagedConfig(300, 16), ContiguousConfig(300, 16, 16))
    ]
    same = sum(a == b for one, other in zip(*found, strict=True) for a, b in zip(one[0], other[0], strict=True))
    assert same > 0.5 * len(PROMPTS) * TOKENS


def test_attention_is_chosen_by_layout_and_device() -> None:
    """Pages on a GPU are read by the kernel, blocks by the kernel and by views."""
    from kvmon.engine.gpu_attention import BlockAttention, KernelAttention

    for pool, kind in ((PagedConfig(10, 4), KernelAttention), (ContiguousConfig(40), BlockAttention)):
        assert isinstance(attention_over(Engine(decoder("cuda", 0), pool).store), kind)


def test_a_pool_larger_than_the_gpu_is_refused() -> None:
    """One line with both sizes."""
    with pytest.raises(SystemRefused, match=r"the GPU has .* free: choose a smaller one"):
        Engine(decoder("cuda", 0), PagedConfig(2**24, 16))

"""Numbers on public traces that the code must reproduce."""

from __future__ import annotations

import pytest

from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.serving import SchedulerConfig, StepTime, Workload
from kvmon.simulate import infinite_cache, simulate


def test_mooncake_in_an_infinite_cache(mooncake: Workload) -> None:
    """36.6 % of blocks and 37.36 % of tokens are reused (37.34 % counting full blocks alone)."""
    cache = infinite_cache(mooncake)
    assert cache.block_ratio == pytest.approx(0.366, abs=0.001)
    assert cache.token_ratio == pytest.approx(0.3736, abs=0.0001)
    assert cache.full_token_ratio == pytest.approx(0.3734, abs=0.0001)


def test_the_simulator_agrees_with_the_infinite_cache(mooncake: Workload) -> None:
    """With memory for everything and no time between steps the simulator hits exactly the full blocks of the count."""
    everything = SchedulerConfig(token_budget=1_000_000, max_sequences=4096)
    result = simulate(mooncake, PagedConfig(400_000, 512), everything, StepTime(1, 0, 0, 0))
    assert result.evictions == 0
    cache = infinite_cache(mooncake)
    assert result.prefix_lookup_tokens == cache.lookup_tokens
    # A prompt that the cache holds to its very end has its last page computed again.
    assert cache.full_hit_tokens - result.prefix_hit_tokens < 0.001 * cache.full_hit_tokens
    assert result.prefix_hit_tokens <= cache.full_hit_tokens


@pytest.mark.parametrize(("unit", "tail"), [(16, 0.006), (128, 0.050), (512, 0.164)])
def test_tail_waste_of_azure(azure: Workload, unit: int, tail: float) -> None:
    """Every request completes, and larger pages waste the share of the pool that is known: 0.6, 5.0 and 16.4 %."""
    result = simulate(azure, PagedConfig(2**20 // unit, unit))
    assert (result.completed, result.errors, result.refused) == (19_366, 0, 0)
    assert result.tail_waste_ratio == pytest.approx(tail, abs=0.0015)
    assert result.page_utilization_ratio == pytest.approx(1 - (result.tail_waste_ratio or 0))


@pytest.mark.parametrize(("unit", "tail"), [(16, 0.0006), (128, 0.005), (512, 0.019)])
def test_tail_waste_of_mooncake(mooncake: Workload, unit: int, tail: float) -> None:
    """Long prompts waste little even in large pages: 0.06, 0.5 and 1.9 %."""
    result = simulate(mooncake, PagedConfig(2**23 // unit, unit))
    assert result.completed == 12_031
    assert result.tail_waste_ratio == pytest.approx(tail, rel=0.07)


@pytest.mark.parametrize("chunk", [None, 64])
def test_azure_through_first_fit(azure: Workload, chunk: int | None) -> None:
    """Every request completes in contiguous blocks too; reserving wastes, chunks copy."""
    result = simulate(azure, ContiguousConfig(65_536 * 2, 1, chunk))
    assert result.completed == 19_366
    assert result.external_fragmentation_ratio is not None and result.external_fragmentation_ratio > 0.001
    assert result.reserved_ratio is not None and (result.reserved_ratio > 0.3) == (chunk is None)
    assert (result.copied_tokens > 0) == (chunk is not None)


def test_a_smaller_pool_hits_less(mooncake: Workload) -> None:
    """Hits fall and evictions rise as the cache shrinks."""
    results = [simulate(mooncake, PagedConfig(units, 512)) for units in (8_192, 32_768, 131_072)]
    assert [r.prefix_hit_tokens for r in results] == sorted(r.prefix_hit_tokens for r in results)
    assert [r.evictions for r in results] == sorted((r.evictions for r in results), reverse=True)


@pytest.mark.parametrize(("unit", "units", "most"), [(512, 16_384, 0.6), (64, 131_072, 1.2), (16, 524_288, 3.0)])
def test_a_whole_trace_takes_a_fraction_of_a_second(mooncake: Workload, unit: int, units: int, most: float) -> None:
    """The Mooncake conversation trace, best of three; a shared machine is five times as slow for minutes at a time."""
    assert min(simulate(mooncake, PagedConfig(units, unit)).wall_seconds for _ in range(3)) < most

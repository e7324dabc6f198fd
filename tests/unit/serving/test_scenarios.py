"""Scenarios: each shows what its row says, its twin does not, and a seed means the same run everywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kvmon.allocators import PagedConfig
from kvmon.errors import ConfigError
from kvmon.serving.scenarios import PAPER, POLICIES, SCENARIOS, Setup, find, names
from kvmon.simulate import Result, simulate

SEEDS = range(4)

FIRST_TABLE = {
    *("server-failures", "paged-vs-standard", "post-incident", "root-cause", "stabilizing", "multi-tenant"),
    *("choosing", "prefix-mixed", "chatbot-degradation"),
    *("two-phase", "updating", "single-step", "space", "structure"),
}
SECOND_TABLE = {
    *("leak", "double-free", "warm-cache", "deadlock", "never-fits", "pool-starved", "preemption-storm"),
    *("cache-thrash", "stranded", "fragmentation", "tail-waste", "reservation", "head-of-line", "not-kv"),
    *("telemetry-untrusted", "reclaim-failed"),
}


def only(name: str, seed: int) -> Setup:
    """The one setup of a scenario, or the first of those it compares."""
    return next(iter(find(name).setups(seed)[0].values()))


def run(setup: Setup) -> Result:
    """The whole run."""
    return simulate(
        setup.workload,
        setup.allocator,
        setup.scheduler,
        setup.step_time,
        faults=setup.faults,
        linger_ns=round(setup.linger_s * 1e9),
    )


def hits(result: Result) -> float:
    """Share of the prompt tokens that were found."""
    return result.prefix_hit_tokens / result.prefix_lookup_tokens


def failed(result: Result, reason: str) -> float:
    """Share of the failures that have this reason."""
    total = sum(result.allocation_failures.values())
    return result.allocation_failures.get(reason, 0) / total if total else 0.0


def fragments(result: Result, twin: Result) -> bool:
    """Failures for want of a run with a fifth or so of the pool free, none in pages, and less is served."""
    free, largest = result.free_at_fragmentation_ratio, result.largest_at_fragmentation_ratio
    return (
        failed(result, "no_contiguous_run") >= 0.9
        and free is not None
        and largest is not None
        and 0.12 < free < 0.55
        and largest < 0.3
        and failed(twin, "no_contiguous_run") == 0
        and twin.completed == twin.requests > result.completed
    )


Shows = Callable[[Result, Result], bool]
SHOWS: dict[str, Shows] = {
    "server-failures": fragments,
    "post-incident": fragments,
    "post-incident-without-reuse": fragments,
    "root-cause": fragments,
    "stabilizing": lambda r, t: (
        fragments(r, t) and t.preemptions == 0 and (r.ttft_p99_s or 0) > 4 * (r.ttft_p50_s or 0)
    ),
    "multi-tenant": fragments,
    "fragmentation": fragments,
    "choosing": lambda r, t: hits(t) > 1.15 * hits(r) and r.evictions > 20_000,
    "prefix-mixed": lambda r, t: hits(r) == 0.0 and hits(t) > 0.25 and failed(r, "exhausted") == 1.0,
    "chatbot-degradation": lambda r, t: hits(r) < 0.5 < 0.8 < hits(t) and r.evictions > 20_000,
    "cache-thrash": lambda r, t: hits(r) < 0.6 < 0.85 < hits(t) and (r.ttft_p50_s or 0) > 8 * (t.ttft_p50_s or 0),
    "warm-cache": lambda r, t: not r.allocation_failures and r.evictions > 1_000,
    "tail-waste": lambda r, t: (
        failed(r, "exhausted") == 1.0 and (r.tail_waste_ratio or 0) > 0.6 and (t.tail_waste_ratio or 1) < 0.1
    ),
    "two-phase": lambda r, t: not r.allocation_failures and r.completed == 1,
    "updating": lambda r, t: not r.allocation_failures and r.completed == 1,
    "single-step": lambda r, t: r.steps == 1 or r.completed == 1,
    "space": lambda r, t: not r.allocation_failures,
    "structure": lambda r, t: not r.allocation_failures and r.peak_active_units < 2 * t.peak_active_units,
    "deadlock": lambda r, t: r.deadlock and r.unfinished == r.requests and t.completed == t.requests,
    "never-fits": lambda r, t: r.deadlock and failed(r, "never_fits") > 0 and not t.deadlock and t.refused == 1,
    "pool-starved": lambda r, t: r.deadlock and failed(r, "pool_starved") == 1.0 and t.completed == t.requests,
    "preemption-storm": lambda r, t: r.preemptions > 20 * r.requests and t.preemptions == 0,
    "stranded": lambda r, t: r.stranded_transfers > 15 and failed(r, "exhausted") > 0.9 and not t.allocation_failures,
    "reservation": lambda r, t: (
        failed(r, "exhausted") == 1.0 and (r.reserved_ratio or 0) > 0.5 and not t.allocation_failures
    ),
    "head-of-line": lambda r, t: (r.ttft_p99_s or 0) > 1.5 * (t.ttft_p99_s or 0) and r.completed == r.requests,
    "capacity": lambda r, t: (
        failed(r, "exhausted") == 1.0 and (r.page_utilization_ratio or 0) > 0.95 and not t.allocation_failures
    ),
    "pinned": lambda r, t: failed(r, "all_pinned") > 0.9 and (r.ttft_p50_s or 0) > 10 * (t.ttft_p50_s or 0),
    "partition": lambda r, t: failed(r, "partition_full") > 0.9 and failed(t, "partition_full") < 0.1,
    "short-burst": lambda r, t: 0 < sum(r.allocation_failures.values()) < 60 and (r.ttft_p99_s or 9) < 3,
    "leak": lambda r, t: r.leaked_units > 100 and t.leaked_units == 0,
    "double-free": lambda r, t: r.twice_freed_units > 10 and t.twice_freed_units == 0,
    "not-kv": lambda r, t: 1 <= r.errors <= 3 and not r.allocation_failures and t.errors == 0,
    "telemetry-untrusted": lambda r, t: not r.allocation_failures and r.completed == r.requests,
    "reclaim-failed": lambda r, t: failed(r, "evictable_not_reclaimed") == 1.0 and not t.allocation_failures,
    "paged-vs-standard": lambda r, t: (r.reserved_ratio or 0) > 0.6 and failed(r, "exhausted") > 0.9,
}


def test_every_row_of_both_tables_is_there() -> None:
    """Each name of the tables, each with its twin, each with a check in this file."""
    assert set(SCENARIOS) >= FIRST_TABLE | SECOND_TABLE
    assert set(SHOWS) == set(SCENARIOS)
    assert set(names()) == {*SCENARIOS, *(f"{name}-healthy" for name in SCENARIOS)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_shows_what_its_row_says(name: str) -> None:
    """For several seeds: the trouble is there, and with the cure it is not."""
    for seed in SEEDS:
        bad, good = run(only(name, seed)), run(only(f"{name}-healthy", seed))
        assert SHOWS[name](bad, good), (seed, bad, good)


def test_the_lesson_in_numbers() -> None:
    """64 slots, half of them free, a request of 16, the largest free block 8."""
    for seed in SEEDS:
        result = run(only("server-failures", seed))
        assert result.allocation_failures == {"no_contiguous_run": 1}
        assert (result.free_at_fragmentation_ratio, result.largest_at_fragmentation_ratio) == (0.5, 0.25)
        assert (result.refused, result.failures_at_start, result.failures_mid_stream) == (1, 1, 0)
        assert run(only("server-failures-healthy", seed)).completed == 9


def test_reuse_in_a_contiguous_pool_has_two_sides() -> None:
    """Without retained prefixes more is prefilled, and fewer requests fail before they begin."""
    kept = [run(only("post-incident", seed)) for seed in range(10)]
    off = [run(only("post-incident-without-reuse", seed)) for seed in range(10)]
    assert all(result.prefix_hit_tokens > 0 for result in kept) and not any(r.prefix_hit_tokens for r in off)
    assert sum(r.computed_tokens for r in off) > 1.15 * sum(r.computed_tokens for r in kept)
    assert sum(r.failures_at_start for r in kept) > 1.15 * sum(r.failures_at_start for r in off)
    assert np.mean([r.external_fragmentation_ratio for r in kept]) > np.mean(
        [r.external_fragmentation_ratio for r in off]
    )


@pytest.mark.parametrize("seed", range(3))
def test_paged_attentions_figure_2(seed: int) -> None:
    """Each share within 5 points of the paper, the batch within one and a half, paged at 95 % or more."""
    setups, _ = find("paged-vs-standard").setups(seed)
    assert list(setups) == list(POLICIES) == list(PAPER)
    for policy, setup in setups.items():
        full = run(setup).while_waiting
        assert full is not None
        shares = (full.written_ratio, full.used_later_ratio, full.never_used_ratio, full.free_ratio)
        assert sum(shares) == pytest.approx(1.0)
        for ours, published in zip(shares, PAPER[policy], strict=False):
            assert published is None or 100 * ours == pytest.approx(published, abs=5.0), policy
        if policy == "paged":
            assert full.written_ratio >= 0.95
        else:
            assert full.batch == pytest.approx(PAPER[policy][4], abs=1.5)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_is_one_run(name: str) -> None:
    """The same seed gives the same traffic and engine, another one other traffic; a twin differs in the cure alone."""
    first, again, other = only(name, 1), only(name, 1), only(name, 2)
    assert (first.allocator, first.scheduler, first.faults) == (again.allocator, again.scheduler, again.faults)
    for array in ("arrival_ns", "prompt_tokens", "output_tokens", "hashes", "follows", "abort_ns"):
        assert np.array_equal(getattr(first.workload, array), getattr(again.workload, array))
    drawn = [find(name).setups(seed)[1] for seed in range(8)]
    twins = [find(f"{name}-healthy").setups(seed)[1] for seed in range(8)]
    assert drawn == twins
    same = np.array_equal(first.workload.prompt_tokens, other.workload.prompt_tokens)
    assert not same or any(values != drawn[0] for values in drawn)


def test_an_unknown_scenario_names_the_nearest() -> None:
    """A slip of the finger is answered with the name that was meant."""
    with pytest.raises(ConfigError, match="did you mean server-failures"):
        find("server-failurs")
    with pytest.raises(ConfigError, match=r"did you mean .*leak-healthy"):
        find("leek-healthy")
    with pytest.raises(ConfigError, match="kvmon simulate --list"):
        find("qqqqqqqq")


def test_pages_of_a_sequence_follow_by_arithmetic() -> None:
    """ceil(m/B) pages after the prefill, then one every B tokens; the last sampled token is never written."""
    for seed in SEEDS:
        setup = only("two-phase", seed)
        pool = setup.allocator
        assert isinstance(pool, PagedConfig)
        tokens = int(setup.workload.prompt_tokens[0] + setup.workload.output_tokens[0]) - 1
        assert run(setup).peak_active_units == -(-tokens // pool.unit_tokens)

"""The central property: whoever folds the journal knows the allocator's true state, after every step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, page_pool
from kvmon.serving import SchedulerConfig
from kvmon.serving import state as at
from kvmon.serving.faults import Faults
from tests.unit.serving.option_sets import STEP_NS, contiguous_pools, option_sets, paged_pools
from tests.unit.serving.watching import Arrival, pressing, watch

Options = tuple[AllocatorConfig, SchedulerConfig, Faults]

requests = st.builds(
    Arrival,
    delay=st.integers(0, 6),
    prompt=st.integers(1, 70),
    limit=st.integers(1, 30),
    intended=st.integers(0, 40),
    family=st.integers(0, 2),
    class_id=st.integers(0, 3),
    forks=st.sampled_from([0, 0, 0, 0, 1, 2]),
)
arrivals = st.lists(requests, min_size=1, max_size=12)
# 1: the prefix cache is reset, 2: a request is aborted, 3 and 4: some requests stop
chaos = st.lists(st.sampled_from([0] * 20 + [1, 2, 3, 4]), min_size=1, max_size=12)


@settings(max_examples=150)
@given(option_sets(paged_pools()), arrivals, chaos)
def test_paged_journal_is_the_truth(options: Options, arrivals: list[Arrival], chaos: list[int]) -> None:
    """References, contents, marks, order of eviction, tables and computed tokens follow from the journal (paged)."""
    allocator, config, faults = options
    watch(allocator, config, arrivals, chaos, faults)


@settings(max_examples=150)
@given(option_sets(contiguous_pools()), arrivals, chaos)
def test_contiguous_journal_is_the_truth(options: Options, arrivals: list[Arrival], chaos: list[int]) -> None:
    """Owners of units, blocks, regions, reservations and computed tokens follow from the journal (contiguous)."""
    allocator, config, faults = options
    watch(allocator, config, arrivals, chaos, faults)


@settings(max_examples=60)
@given(st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())), st.integers(0, 10**6), chaos)
def test_journal_is_the_truth_under_pressure(options: Options, seed: int, chaos: list[int]) -> None:
    """The same with every option and many requests that fit one by one and not together."""
    allocator, config, faults = options
    watch(allocator, config, pressing(allocator, seed, 20), chaos, faults)


CACHE = PagedConfig(30, 4)
CHUNKS = ContiguousConfig(60, 2, 6)
SMALL = SchedulerConfig(token_budget=48, max_sequences=8)
#: What is chosen, and what must have happened in a run under pressure, so that the comparison was about it.
PRESSED = {
    "lru": (CACHE, SMALL, None, [at.PREEMPTIONS, at.HIT_TOKENS, at.AGAIN_HIT_TOKENS]),
    "lfu": (replace(CACHE, evict="lfu"), SMALL, None, [at.PREEMPTIONS, at.HIT_TOKENS]),
    "fifo": (replace(CACHE, evict="fifo"), SMALL, None, [at.PREEMPTIONS, at.HIT_TOKENS]),
    "idle": (replace(CACHE, reclaim="idle"), SMALL, None, [at.PREEMPTIONS, at.REASONS + 3]),
    "pins": (replace(CACHE, pin_after_hits=1, pin_share=0.7), SMALL, None, [at.HIT_TOKENS, at.REASONS + 4]),
    "quotas": (replace(CACHE, quotas=((1, 0.4), (2, 0.4))), SMALL, None, [at.REASONS + 7, at.REASONS + 16 + 7]),
    "window": (PagedConfig(30, 4, prefix_cache=False, window_tokens=9), SMALL, None, [at.PREEMPTIONS]),
    "own window": (
        PagedConfig(30, 4, prefix_cache=False, window_tokens=9, window_pool_units=9),
        SMALL,
        None,
        [at.PREEMPTIONS, at.REASONS + 6],
    ),
    "chunk": (CACHE, replace(SMALL, admit_by="chunk"), None, [at.PREEMPTIONS]),
    "full": (CACHE, replace(SMALL, admit_by="full"), None, [at.REASONS + 8]),
    "priorities": (CACHE, replace(SMALL, priorities=((1, -1), (2, 1))), None, [at.PREEMPTIONS]),
    "wait": (CACHE, replace(SMALL, on_growth_failure="wait"), None, [at.REASONS + 16 + 1]),
    "abort": (CACHE, replace(SMALL, on_growth_failure="abort"), None, [at.ERRORS]),
    "swap": (
        CACHE,
        replace(SMALL, preemption="swap", host_tokens=60),
        None,
        [at.SWAPPED_IN_TOKENS, at.SWAPS_REFUSED],
    ),
    "drafts": (
        CACHE,
        replace(SMALL, lookahead_tokens=3, acceptance=0.6),
        None,
        [at.ACCEPTED_TOKENS, at.PREEMPTIONS],
    ),
    "transfers": (
        CACHE,
        replace(SMALL, transfer_share=0.7, transfer_ns=5 * STEP_NS),
        None,
        [at.TRANSFERS_BEGUN, at.PREEMPTIONS],
    ),
    "leaks": (CACHE, SMALL, Faults(leak_share=0.2, claims_every_ns=1), [at.LEAKED_UNITS, at.PREEMPTIONS]),
    "double frees": (CACHE, SMALL, Faults(double_free_share=0.5, claims_every_ns=1), [at.TWICE_FREED]),
    "relocation": (CHUNKS, SMALL, None, [at.RELOCATIONS, at.PREEMPTIONS, at.REASONS + 2]),
    "best fit": (replace(CHUNKS, placement="best-fit"), SMALL, None, [at.RELOCATIONS, at.REASONS + 2]),
    "buddy": (replace(CHUNKS, placement="buddy"), SMALL, None, [at.RELOCATIONS, at.PREEMPTIONS]),
    "compaction": (replace(CHUNKS, compaction=True), SMALL, None, [at.COMPACTIONS, at.COMPACTED_TOKENS]),
    "retained": (ContiguousConfig(120, 2, 6, retained_prefixes=2), SMALL, None, [at.HIT_TOKENS, at.COPIED_TOKENS]),
    "max": (ContiguousConfig(60, 2), SMALL, None, [at.REASONS + 1]),
    "pow2": (ContiguousConfig(60, 2, reserve="pow2"), SMALL, None, [at.REASONS + 1]),
    "oracle": (ContiguousConfig(60, 2, reserve="oracle"), SMALL, None, [at.REASONS + 1]),
    "contiguous swap": (
        CHUNKS,
        replace(SMALL, preemption="swap", host_tokens=60),
        None,
        [at.SWAPPED_IN_TOKENS, at.SWAPS_REFUSED],
    ),
    "contiguous quotas": (replace(CHUNKS, quotas=((1, 0.4), (2, 0.4))), SMALL, None, [at.REASONS + 7]),
}


@pytest.mark.parametrize("name", PRESSED)
@pytest.mark.parametrize("seed", [1, 2])
def test_each_option_under_pressure(name: str, seed: int) -> None:
    """Each option alone in a pool that is too small: all of the above holds, and the option has shown itself."""
    allocator, config, faults, happened = PRESSED[name]
    watched = watch(allocator, config, pressing(allocator, seed, 60), None, faults)
    tally = watched.state.tally
    assert all(tally[column] > 0 for column in happened), [int(tally[column]) for column in happened]
    if name in ("lru", "lfu", "fifo", "idle", "pins"):
        assert watched.state.pages.tally[page_pool.EVICTIONS_DONE] > 0
    if name in ("wait", "abort"):
        assert tally[at.PREEMPTIONS] == 0
    if name == "pins":
        assert watched.state.pages.tally[page_pool.PINNED_PAGES] == watched.state.pages.tally[page_pool.PIN_CAP]

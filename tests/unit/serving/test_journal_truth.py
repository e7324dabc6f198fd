"""The central property: whoever folds the journal knows the allocator's true state, after every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, page_pool
from kvmon.serving import Scheduler, SchedulerConfig
from kvmon.serving import state as at
from tests.naive.journal_fold import JournalFold

HASH_TOKENS = 8

paged = st.builds(
    PagedConfig,
    capacity_units=st.integers(2, 40),
    unit_tokens=st.sampled_from([1, 2, 4, 8, 16]),
    prefix_cache=st.booleans(),
)
contiguous = st.integers(8, 120).flatmap(
    lambda units: st.builds(
        ContiguousConfig,
        capacity_units=st.just(units),
        unit_tokens=st.sampled_from([1, 4]),
        chunk_tokens=st.sampled_from([None, 1, 4, 7]),
    )
)
schedulers = st.builds(
    SchedulerConfig,
    token_budget=st.sampled_from([3, 8, 32, 200]),
    max_sequences=st.integers(1, 6),
    chunked_prefill=st.booleans(),
    watermark=st.sampled_from([0.0, 0.2]),
    admit_by=st.sampled_from(["prompt", "chunk"]),
    on_no_fit=st.sampled_from(["wait", "wait", "refuse"]),
    on_growth_failure=st.sampled_from(["preempt", "preempt", "wait", "abort"]),
    max_model_len=st.sampled_from([None, None, 60]),
)
requests = st.tuples(
    st.integers(0, 6),  # steps to wait before it arrives
    st.integers(1, 70),  # prompt
    st.integers(1, 30),  # limit
    st.integers(0, 40),  # intended output, 0: stopped from outside
    st.integers(0, 2),  # which shared prefix
)
Arrivals = list[tuple[int, int, int, int, int]]


def identities(prompt: int, family: int, request: int) -> list[int]:
    """Chained identities: two families share their first 24 tokens, family 0 shares nothing."""
    steps = -(-prompt // HASH_TOKENS)
    return [family * 1000 + i + 1 if family and i < 3 else 10_000 * request + i + 1 for i in range(steps)]


def compare(fold: JournalFold, scheduler: Scheduler) -> None:
    """Everything that both sides know is equal."""
    state = scheduler.state
    if isinstance(scheduler.allocator, PagedConfig):
        references = state.pages.node[1:, page_pool.REF].tolist()
        assert list(fold.references.values()) == references
        assert fold.cached == {unit for unit, name in enumerate(state.pages.content.tolist()) if name}
        order, page = [], int(state.pages.node[0, page_pool.NEXT])
        while page:
            order.append(page)
            page = int(state.pages.node[page, page_pool.NEXT])
        assert fold.queue == order
        assert fold.evicted == state.pages.tally[page_pool.EVICTIONS]
    running = scheduler.running.tolist()
    assert {number for number, seen in fold.requests.items() if seen.running} == set(running)
    for request in running:
        seen = fold.requests[request]
        seat = int(state.live[request, at.SEAT])
        assert seen.computed == state.live[request, at.COMPUTED]
        if isinstance(scheduler.allocator, PagedConfig):
            table = state.table[seat, : state.held[seat, at.PAGES]].tolist()
        else:
            start, units = state.held[seat, at.START], state.held[seat, at.UNITS]
            table = list(range(start, start + units))
            assert seen.reserved == units * scheduler.allocator.unit_tokens
        assert seen.table == table
    if not isinstance(scheduler.allocator, PagedConfig):
        assert len(fold.owner) == sum(len(fold.requests[request].table) for request in running)


def run(allocator: AllocatorConfig, config: SchedulerConfig, arrivals: Arrivals, chaos: list[int]) -> Scheduler:
    """Drive a scheduler to the end, comparing after each step; `chaos` aborts, stops and resets on the way."""
    scheduler = Scheduler(allocator, config, hash_tokens=HASH_TOKENS, journal=True)
    fold = JournalFold(allocator.capacity_units)
    pending = list(enumerate(arrivals, start=1))
    delay = pending[0][1][0] if pending else 0
    step = 0
    while pending or scheduler.has_work:
        while pending and (delay <= 0 or not scheduler.has_work):
            number, (_, prompt, limit, intended, family) = pending.pop(0)
            names = identities(prompt, family, number)
            assert scheduler.add(prompt, limit, intended_output=intended, identities=names) == number
            delay = pending[0][1][0] if pending else 0
        delay -= 1
        dice = chaos[step % len(chaos)]
        if dice == 1 and isinstance(allocator, PagedConfig):
            scheduler.reset_prefix_cache()
        if dice == 2:
            scheduler.abort(1 + step % len(fold.requests) if fold.requests else 1)
        plan = scheduler.schedule()
        scheduler.check()
        assert plan.tokens.sum() <= config.token_budget or not config.chunked_prefill
        if scheduler.stuck:
            assert config.on_growth_failure == "wait"
            scheduler.commit(step, 1)
            fold.feed(scheduler.drain().tolist())
            compare(fold, scheduler)
            scheduler.abort(int(scheduler.running[0]))
        else:
            stopped = plan.samples & (plan.requests % 7 == dice) if dice > 2 else None
            scheduler.commit(step, 1, stopped)
        scheduler.check()
        fold.feed(scheduler.drain().tolist())
        compare(fold, scheduler)
        step += 1
        assert step < 20_000, "the scheduler does not come to an end"
    assert all(seen.ended for seen in fold.requests.values())
    assert not fold.owner and not any(fold.references.values())
    return scheduler


chaos = st.lists(st.sampled_from([0] * 20 + [1, 2, 3, 4]), min_size=1, max_size=12)


@settings(max_examples=120)
@given(paged, schedulers, st.lists(requests, min_size=1, max_size=12), chaos)
def test_paged_journal_is_the_truth(
    allocator: PagedConfig, config: SchedulerConfig, arrivals: Arrivals, chaos: list[int]
) -> None:
    """References, contents, queue order, block tables and computed tokens follow from the journal (paged)."""
    run(allocator, config, arrivals, chaos)


@settings(max_examples=120)
@given(contiguous, schedulers, st.lists(requests, min_size=1, max_size=12), chaos)
def test_contiguous_journal_is_the_truth(
    allocator: ContiguousConfig, config: SchedulerConfig, arrivals: Arrivals, chaos: list[int]
) -> None:
    """Owners of units, blocks, reservations and computed tokens follow from the journal (contiguous, every policy)."""
    run(allocator, config, arrivals, chaos)


@pytest.mark.parametrize("seed", range(6))
def test_paged_journal_is_the_truth_under_pressure(seed: int) -> None:
    """The same with many requests in a pool that is too small for them: hits, evictions and preemptions all happen."""
    random = np.random.default_rng(seed)
    arrivals = [
        (
            int(random.integers(0, 3)),
            int(random.integers(20, 70)),
            40,
            int(random.integers(5, 40)),
            int(random.integers(0, 3)),
        )
        for _ in range(60)
    ]
    config = SchedulerConfig(token_budget=48, max_sequences=8, admit_by=["prompt", "chunk"][seed % 2])
    state = run(PagedConfig(30, [4, 8][seed // 3]), config, arrivals, [0]).state
    assert state.tally[at.HIT_TOKENS] > 0
    assert state.tally[at.PREEMPTIONS] > 0
    assert state.pages.tally[page_pool.EVICTIONS] > 0


@pytest.mark.parametrize("chunk", [None, 3, 16])
@pytest.mark.parametrize("growth", ["preempt", "wait", "abort"])
def test_contiguous_journal_is_the_truth_under_pressure(chunk: int | None, growth: str) -> None:
    """The same for blocks that grow and move in a pool that is too small for them."""
    random = np.random.default_rng(3)
    arrivals = [
        (int(random.integers(0, 4)), int(random.integers(1, 60)), 40, int(random.integers(5, 40)), 0) for _ in range(60)
    ]
    config = SchedulerConfig(token_budget=48, max_sequences=8, on_growth_failure=growth)
    tally = run(ContiguousConfig(200, 1, chunk), config, arrivals, [0]).state.tally
    assert chunk is None or tally[at.RELOCATIONS] > 0
    assert (tally[at.PREEMPTIONS] > 0) == (chunk is not None and growth == "preempt")

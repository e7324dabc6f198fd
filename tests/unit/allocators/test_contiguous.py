"""The contiguous allocator against a model on paper, its rules one by one, and its speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvmon.allocators import Contiguity, ContiguousAllocator, ContiguousConfig, Reason, parse_reserve, run_pool
from kvmon.errors import ConfigError, InvariantError
from kvmon.jit import kernel
from tests.naive.journal_fold import JournalFold
from tests.naive.pools import PaperSlots


class ContiguousModel(RuleBasedStateMachine):
    """Random use of the allocator; owners and free runs equal the paper's after each call."""

    @initialize(capacity=st.integers(1, 40))
    def start(self, capacity: int) -> None:
        self.pool = ContiguousAllocator(ContiguousConfig(capacity), journal=True)
        self.paper = PaperSlots(capacity)
        self.fold = JournalFold(capacity)
        self.live: list[int] = []
        self.request = 0

    @rule(n=st.integers(1, 12))
    def place(self, n: int) -> None:
        self.request += 1
        self.fold.arrive(self.request, 0, 0, n, 1, 0)
        free, largest = self.pool.free_units, self.pool.largest_free_units
        refusal = self.pool.allocate(self.request, n)
        assert (self.paper.place(self.request, n) is None) == (refusal is not None)
        if refusal is None:
            self.live.append(self.request)
            return
        assert (refusal.need_units, refusal.free_units, refusal.largest_units) == (n, free, largest)
        assert refusal.contiguity is Contiguity.REQUIRED
        assert (refusal.reason is Reason.NO_CONTIGUOUS_RUN) == (free >= n)

    @rule(pick=st.integers(0, 99), n=st.integers(1, 6))
    def extend(self, pick: int, n: int) -> None:
        if self.live:
            request = self.live[pick % len(self.live)]
            assert (self.pool.extend(request, n) is None) == self.paper.extend(request, n)

    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        if self.live:
            request = self.live.pop(pick % len(self.live))
            self.pool.release(request)
            self.paper.release(request)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert [tuple(run) for run in self.pool.free_runs().tolist()] == self.paper.runs()
        assert self.pool.largest_free_units == max([length for _, length in self.paper.runs()], default=0)
        for request in self.live:
            assert self.pool.units_of(request).tolist() == self.paper.block(request)
        self.fold.feed(self.pool.drain().tolist())
        assert self.fold.owner == {slot: owner for slot, owner in enumerate(self.paper.owner) if owner}


TestContiguousModel = ContiguousModel.TestCase
TestContiguousModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_lesson() -> None:
    """64 slots, eight sequences of 8, every second one ends: 16 more are refused with 32 free in runs of 8."""
    pool = ContiguousAllocator(ContiguousConfig(64))
    for request in range(1, 9):
        assert pool.allocate(request, 8) is None
    for request in range(2, 9, 2):
        pool.release(request)
    refusal = pool.allocate(9, 16)
    assert refusal is not None
    assert refusal.reason is Reason.NO_CONTIGUOUS_RUN
    assert (refusal.need_units, refusal.free_units, refusal.largest_units) == (16, 32, 8)


def test_a_block_moves_only_when_it_must() -> None:
    """Growth takes the next run where it is free, and a new block beside the old one where it is not."""
    pool = ContiguousAllocator(ContiguousConfig(20))
    pool.allocate(1, 4)
    pool.extend(1, 2)
    assert pool.block_of(1) == (1, 6)
    pool.allocate(2, 2)
    pool.extend(1, 2, used_tokens=5)
    assert pool.block_of(1) == (9, 8)
    assert pool.free_runs().tolist() == [[1, 6], [17, 4]]


def test_a_move_needs_old_and_new_at_once() -> None:
    """A block that would fit where it lies is refused when the next run is taken and no second block fits."""
    pool = ContiguousAllocator(ContiguousConfig(12))
    pool.allocate(1, 6)
    pool.allocate(2, 1)
    refusal = pool.extend(1, 1)
    assert refusal is not None
    assert (refusal.reason, refusal.need_units, refusal.free_units) == (Reason.EXHAUSTED, 7, 5)


def test_clone_at_another_size_is_empty() -> None:
    """A clone keeps the policy and forgets the blocks."""
    pool = ContiguousAllocator(ContiguousConfig(12, 1, 4))
    pool.allocate(1, 6)
    assert pool.clone().free_units == 12
    assert pool.clone(30).config == ContiguousConfig(30, 1, 4)


def test_check_names_what_is_wrong() -> None:
    """A lost unit and a wrong counter are each found."""
    pool = ContiguousAllocator(ContiguousConfig(12))
    pool.allocate(1, 6)
    pool.pool.starts[0] += 1
    with pytest.raises(InvariantError):
        pool.check()
    pool = ContiguousAllocator(ContiguousConfig(12))
    pool.pool.tally[run_pool.FREE] = 11
    with pytest.raises(InvariantError, match="12 units, 11 are counted"):
        pool.check()


def test_reserve_policies_by_name() -> None:
    """`max` and `chunk:N` are read; anything else is named in one line."""
    assert parse_reserve("max") is None
    assert parse_reserve("chunk:64") == 64
    for text in ("chunk", "chunk:", "chunk:0", "chunk:-1", "chunk:x", "all", ""):
        with pytest.raises(ConfigError, match="no reservation policy"):
            parse_reserve(text)


def test_a_chunk_larger_than_the_pool_is_refused() -> None:
    """A reservation step that could never be placed is a configuration error."""
    with pytest.raises(ConfigError, match="larger than the pool"):
        ContiguousConfig(10, 1, 11)


@kernel
def churn(pool: run_pool.RunPool, sizes: np.ndarray, starts: np.ndarray, order: np.ndarray, rounds: int) -> int:
    """Take and give blocks in a fixed random order; returns how many operations that were."""
    done = 0
    for _ in range(rounds):
        for i in order:
            if starts[i]:
                run_pool.give_run(pool, starts[i], sizes[i])
                starts[i] = 0
                done += 1
            else:
                at = run_pool.first_fit(pool, sizes[i])
                if at < pool.tally[1]:
                    starts[i] = run_pool.take_run(pool, at, sizes[i])
                    done += 1
    return done


def test_first_fit_is_fast_enough_for_simulation() -> None:
    """Millions of operations a second (the target is 10 M on an idle machine; here half that)."""
    random = np.random.default_rng(1)
    pool = run_pool.new_run_pool(65_536, 256)
    sizes = random.integers(100, 2000, 64)
    starts = np.zeros(64, np.int64)
    order = random.integers(0, 64, 4096)
    churn(pool, sizes, starts, order, 1)
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        done = churn(pool, sizes, starts, order, 50)
        best = max(best, done / (time.perf_counter() - began))
    assert best > 5e6

"""The contiguous allocator against a model on paper, its rules one by one, and its speed."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvmon.allocators import Contiguity, ContiguousAllocator, ContiguousConfig, Reason, Refusal, parse_reserve, run_pool
from kvmon.allocators.checks import check_run_pool
from kvmon.allocators.config import PLACEMENTS
from kvmon.allocators.journal import COMPACT, iterate
from kvmon.errors import ConfigError, InvariantError
from kvmon.jit import kernel
from tests.naive.journal_fold import JournalFold
from tests.naive.pools import PaperBuddies, PaperSlots


class ContiguousModel(RuleBasedStateMachine):
    """Random use of the allocator; owners and free runs equal the paper's after each call, whatever the placement."""

    @initialize(capacity=st.integers(1, 40), placement=st.sampled_from(PLACEMENTS))
    def start(self, capacity: int, placement: str) -> None:
        self.pool = ContiguousAllocator(ContiguousConfig(capacity, placement=placement), journal=True)
        self.again = self.pool.clone()
        self.buddy = placement == "buddy"
        self.paper = PaperBuddies(capacity) if self.buddy else PaperSlots(capacity, placement)
        self.untouched = self.paper.runs()
        self.fold = JournalFold(capacity)
        self.live: list[int] = []
        self.request = 0

    def refused(self, refusal: Refusal, need: int, free: int, largest: int) -> None:
        """The reason follows from the numbers, and the numbers are those from before the call."""
        assert (refusal.need_units, refusal.free_units, refusal.largest_units) == (need, free, largest)
        assert refusal.contiguity is Contiguity.REQUIRED
        assert (refusal.reason is Reason.NO_CONTIGUOUS_RUN) == (free >= need > largest)
        assert (refusal.reason is Reason.NEVER_FITS) == (need > self.pool.capacity_units)
        assert (refusal.reason is Reason.EXHAUSTED) == (free < need <= self.pool.capacity_units)

    @rule(n=st.integers(1, 12))
    def place(self, n: int) -> None:
        self.request += 1
        self.fold.arrive(self.request, 0, 0, n, 1, 0)
        free, largest = self.pool.free_units, self.pool.largest_free_units
        refusal = self.pool.allocate(self.request, n)
        assert self.again.allocate(self.request, n) == refusal
        assert (self.paper.place(self.request, n) is None) == (refusal is not None)
        if refusal is None:
            self.live.append(self.request)
        else:
            self.refused(refusal, self.paper.needs(n), free, largest)

    @rule(pick=st.integers(0, 99), n=st.integers(1, 6))
    def extend(self, pick: int, n: int) -> None:
        if not self.live:
            return
        request = self.live[pick % len(self.live)]
        free, largest = self.pool.free_units, self.pool.largest_free_units
        refusal = self.pool.extend(request, n)
        assert self.again.extend(request, n) == refusal
        asked = (self.paper.asked[request] if self.buddy else len(self.paper.block(request))) + n
        assert self.paper.extend(request, n) == (refusal is None)
        if refusal is not None:
            self.refused(refusal, self.paper.needs(asked), free, largest)

    @rule(pick=st.integers(0, 99))
    def release(self, pick: int) -> None:
        if self.live:
            request = self.live.pop(pick % len(self.live))
            for each in (self.pool, self.again, self.paper):
                each.release(request)

    @rule()
    def compact(self) -> None:
        if self.buddy:
            with pytest.raises(ConfigError, match="buddy blocks"):
                self.pool.compact()
            return
        moved = self.paper.compact()
        nothing_written = dict.fromkeys(self.live, 0)
        assert self.pool.compact(nothing_written) == self.again.compact(nothing_written) == moved
        if moved:
            words = self.pool.drain().tolist()
            assert self.again.drain().tolist() == words
            assert words[-3:] == [COMPACT, moved, 0]
            self.fold.feed(words)

    @rule()
    def release_everything(self) -> None:
        while self.live:
            self.release(0)
        assert self.pool.free_runs().tolist() == [list(run) for run in self.untouched]

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        runs = self.paper.runs()
        assert [tuple(run) for run in self.pool.free_runs().tolist()] == runs
        owners = self.paper.owners()
        assert self.pool.free_units == self.pool.capacity_units - len(owners)
        assert self.pool.largest_free_units == max([length for _, length in runs], default=0)
        assert self.pool.largest_free_units <= longest_run(self.pool.capacity_units, owners)
        for request in self.live:
            assert self.pool.units_of(request).tolist() == self.paper.block(request)
        journal = self.pool.drain()
        assert (self.again.drain() == journal).all()
        self.fold.feed(journal.tolist())
        assert self.fold.owner == owners


def longest_run(capacity: int, owners: dict[int, int]) -> int:
    """L: the longest stretch of slots that nobody owns."""
    most = length = 0
    for slot in range(1, capacity + 1):
        length = 0 if slot in owners else length + 1
        most = max(most, length)
    return most


TestContiguousModel = ContiguousModel.TestCase
TestContiguousModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


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


def test_best_fit_keeps_the_long_run_whole() -> None:
    """Of the runs that are long enough the shortest is taken; first fit takes the lowest."""
    for placement, start in (("first-fit", 1), ("best-fit", 12)):
        pool = ContiguousAllocator(ContiguousConfig(20, placement=placement))
        for request, units in ((1, 8), (2, 3), (3, 4), (4, 5)):
            pool.allocate(request, units)
        pool.release(1)
        pool.release(3)
        pool.allocate(5, 4)
        assert pool.block_of(5) == (start, 4)


def test_compaction_makes_one_run_of_the_free_ones() -> None:
    """The lesson again: after sliding the four blocks together 16 units fit; what moved and was copied is written."""
    pool = ContiguousAllocator(ContiguousConfig(64, 2, compaction=True), journal=True)
    for request in range(1, 9):
        pool.allocate(request, 8)
    for request in range(2, 9, 2):
        pool.release(request)
    pool.drain()
    assert pool.compact({3: 10, 5: 16}) == 24
    assert pool.free_runs().tolist() == [[33, 32]]
    assert [pool.block_of(request) for request in (1, 3, 5, 7)] == [(1, 8), (9, 8), (17, 8), (25, 8)]
    assert iterate(pool.drain())[-1] == (COMPACT, [24, 10 + 16 + 16])
    assert pool.compact() == 0 and len(pool.drain()) == 0
    assert pool.allocate(9, 16) is None
    pool.check()


def test_reserve_policies_by_name() -> None:
    """`max`, `pow2`, `oracle` and `chunk:N` are read; anything else is named in one line."""
    assert parse_reserve("max") == ("max", None)
    assert parse_reserve("pow2") == ("pow2", None)
    assert parse_reserve("oracle") == ("oracle", None)
    assert parse_reserve("chunk:64") == ("chunk", 64)
    for text in ("chunk", "chunk:", "chunk:0", "chunk:-1", "chunk:x", "all", ""):
        with pytest.raises(ConfigError, match="no reservation policy"):
            parse_reserve(text)


def test_a_chunk_larger_than_the_pool_is_refused() -> None:
    """A reservation step that could never be placed is a configuration error."""
    with pytest.raises(ConfigError, match="larger than the pool"):
        ContiguousConfig(10, 1, 11)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_many_small_blocks_make_the_lists_grow(placement: str) -> None:
    """Thousands of blocks and the gaps between them fit, and everything merges back to where it began."""
    pool = ContiguousAllocator(ContiguousConfig(2_500, placement=placement))
    begin = pool.free_runs().tolist()
    order = np.random.default_rng(2).permutation(2_500) + 1
    for request in range(1, 2_501):
        assert pool.allocate(request, 1) is None
    for request in order[:1_250].tolist():
        pool.release(request)
    pool.check()
    assert len(pool.free_runs()) > 500
    for request in order[1_250:].tolist():
        pool.release(request)
    pool.check()
    assert pool.free_runs().tolist() == begin


@pytest.mark.parametrize("policy", [run_pool.FIRST_FIT, run_pool.BEST_FIT, run_pool.BUDDY])
@given(capacity=st.integers(1, 300), most=st.integers(1, 9), seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_room_is_enough_for_the_most_blocks(policy: int, capacity: int, most: int, seed: int) -> None:
    """However `most` blocks lie, the list of free runs never outgrows its arrays."""
    random = Random(seed)
    pool = run_pool.new_run_pool(capacity, most, policy)
    held: list[tuple[int, int]] = []
    for _ in range(100):
        if len(held) == most or (held and random.random() < 0.4):
            run_pool.give_block(pool, *held.pop(random.randrange(len(held))))
        else:
            n = random.choice((1, 1, 1, random.randint(1, capacity)))
            at = run_pool.find_run(pool, n)
            if at < pool.tally[run_pool.RUNS]:
                granted = run_pool.granted_units(pool, n)
                held.append((run_pool.take_block(pool, at, n), granted))
        assert pool.tally[run_pool.RUNS] <= len(pool.starts)
        check_run_pool(pool)


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

"""The paged allocator against a model on paper, and its rules one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvmon.allocators import Contiguity, PagedAllocator, PagedConfig, Reason, page_pool
from kvmon.errors import ConfigError, InvariantError
from tests.naive.journal_fold import JournalFold
from tests.naive.pools import PaperPages

NAMES = [11, 12, 13, 14, 15]


class PagedModel(RuleBasedStateMachine):
    """Random use of the allocator; queue, references, contents and tables equal the paper's after each call."""

    @initialize(
        capacity=st.integers(1, 12),
        evict=st.sampled_from(["lru", "lfu", "fifo"]),
        pin_after=st.integers(0, 2),
        pin_most=st.integers(1, 12),
    )
    def start(self, capacity: int, evict: str, pin_after: int, pin_most: int) -> None:
        pin_most = min(pin_most, capacity) if pin_after else 0
        share = (pin_most + 0.5) / capacity if pin_most < capacity else pin_most / capacity
        config = PagedConfig(capacity, 4, evict=evict, pin_after_hits=pin_after, pin_share=share if pin_after else 0.0)
        self.pool = PagedAllocator(config, journal=True)
        self.paper = PaperPages(capacity, evict, pin_after, pin_most)
        self.fold = JournalFold(capacity, evict=evict, pins=(pin_after, pin_most))
        self.names: dict[int, list[int]] = {}
        self.request = 0

    @rule(n=st.integers(1, 6), hit=st.booleans())
    def admit(self, n: int, hit: bool) -> None:
        self.request += 1
        self.fold.arrive(self.request, 0, 0, n, 1, 0)  # never admitted: without a scheduler nobody says so
        self.names[self.request] = [*NAMES[:n], 100 + self.request][:n]
        hits = self.pool.lookup(self.names[self.request][: n - 1]) if hit else np.zeros(0, np.int32)
        if hit:
            assert hits.tolist() == self.paper.lookup(self.names[self.request][: n - 1])
        self.pool.share(self.request, hits)
        self.paper.share(self.request, hits.tolist())
        self.extend(self.request, n - len(hits))

    def extend(self, request: int, n: int) -> None:
        free, evictable = self.pool.free_units, self.pool.evictable_units
        refusal = self.pool.allocate(request, n)
        assert self.paper.allocate(request, n) == (refusal is None)
        if refusal is not None:
            assert (refusal.need_units, refusal.free_units, refusal.evictable_units) == (n, free, evictable)
            assert refusal.contiguity is Contiguity.NONE and refusal.largest_units == free
            assert (refusal.reason is Reason.NEVER_FITS) == (n > self.pool.capacity_units)

    @rule(pick=st.integers(0, 99), n=st.integers(1, 3))
    def grow(self, pick: int, n: int) -> None:
        live = sorted(self.paper.tables)
        if live:
            self.extend(live[pick % len(live)], n)

    @rule(pick=st.integers(0, 99))
    def fill(self, pick: int) -> None:
        live = sorted(self.paper.tables)
        if live:
            request = live[pick % len(live)]
            table = self.paper.tables[request]
            names = self.names[request][: len(table)]
            for page, name in zip(table, names, strict=False):
                if page not in self.paper.content and page not in self.registered(request):
                    self.paper.register(page, name)
            self.pool.register(request, names)
            self.forgotten.setdefault(request, set()).update(table[: len(names)])

    @property
    def forgotten(self) -> dict[int, set[int]]:
        """Pages of each request that were registered once; a reset does not bring them back."""
        return self.__dict__.setdefault("_forgotten", {})

    def registered(self, request: int) -> set[int]:
        return self.forgotten.get(request, set())

    @rule(pick=st.integers(0, 99))
    def end(self, pick: int) -> None:
        live = sorted(self.paper.tables)
        if live:
            request = live[pick % len(live)]
            self.pool.release(request)
            self.paper.release(request)
            self.forgotten.pop(request, None)

    @rule()
    def reset(self) -> None:
        self.pool.reset_prefix_cache()
        self.paper.reset()
        for request, table in self.paper.tables.items():
            self.forgotten[request] = set(table)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        assert self.pool.free_order().tolist() == self.paper.order()
        idle = [page for page in self.paper.pinned if self.paper.references[page] == 0]
        assert self.pool.pinned_units == len(idle)
        assert self.pool.free_units + self.pool.evictable_units == len(self.paper.order())
        assert self.pool.references()[1:].tolist() == list(self.paper.references.values())
        assert {u: n for u, n in enumerate(self.pool.contents().tolist()) if n} == self.paper.content
        assert self.pool.evictions == self.paper.evictions
        for request, table in self.paper.tables.items():
            assert self.pool.units_of(request).tolist() == table
        self.fold.assigned.clear()
        words = self.pool.drain().tolist()
        # Alone, one call may share and the next allocate for the same request: no step stands between them.
        at = 0
        while at < len(words):
            length = 1 if words[at] == 7 else 3 + words[at + 2]
            self.fold.assigned.clear()
            self.fold.feed(words[at : at + length])
            at += length
        assert list(self.fold.references.values()) == list(self.paper.references.values())
        assert self.fold.cached == set(self.paper.content)
        assert self.fold.queue == self.paper.queue
        assert self.fold.unused == set(self.paper.unused) and self.fold.pinned == self.paper.pinned


TestPagedModel = PagedModel.TestCase
TestPagedModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_never_used_pages_come_first_and_tails_go_first() -> None:
    """A released request without content is reused at once, its last page first; with content it waits at the back."""
    pool = PagedAllocator(PagedConfig(6))
    pool.allocate(1, 3)
    pool.release(1)
    assert pool.free_order().tolist() == [3, 2, 1, 4, 5, 6]
    pool.allocate(2, 3)
    pool.register(2, [7, 8, 9])
    pool.release(2)
    assert pool.free_order().tolist() == [4, 5, 6, 1, 2, 3]
    assert (pool.free_units, pool.evictable_units) == (3, 3)


def test_content_lives_until_its_page_is_taken() -> None:
    """Eviction is lazy: a lookup finds the content of a released page until an allocation takes the page."""
    pool = PagedAllocator(PagedConfig(3))
    pool.allocate(1, 2)
    pool.register(1, [5, 6])
    pool.release(1)
    assert pool.lookup([5, 6]).tolist() == [1, 2]
    pool.allocate(2, 2)
    assert pool.lookup([5, 6]).tolist() == [1]
    assert pool.evictions == 1


def test_equal_contents_stand_side_by_side() -> None:
    """Two pages may hold the same content; when the older one is evicted the younger is found."""
    pool = PagedAllocator(PagedConfig(4))
    for request in (1, 2):
        pool.allocate(request, 1)
        pool.register(request, [5])
    assert pool.lookup([5]).tolist() == [1]
    pool.release(1)
    pool.allocate(3, 3)
    assert pool.lookup([5]).tolist() == [2]
    pool.check()


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    """A pool without a prefix cache registers nothing and finds nothing."""
    pool = PagedAllocator(PagedConfig(4, prefix_cache=False))
    pool.allocate(1, 2)
    pool.register(1, [5, 6])
    pool.release(1)
    assert pool.lookup([5, 6]).size == 0
    assert pool.evictable_units == 0


def test_a_refusal_changes_nothing() -> None:
    """A request for more than there is leaves queue and journal as they were."""
    pool = PagedAllocator(PagedConfig(4), journal=True)
    pool.allocate(1, 3)
    before = pool.drain().size, pool.free_order().tolist()
    refusal = pool.allocate(2, 2)
    assert refusal is not None and refusal.reason is Reason.EXHAUSTED
    assert before[0] > 0 and pool.drain().size == 0
    assert pool.free_order().tolist() == before[1]


def test_a_clone_is_empty_and_replays_the_same() -> None:
    """A clone has the policy and none of the contents, and repeats the journal call by call."""
    pool = PagedAllocator(PagedConfig(5, 8), journal=True)

    def use(target: PagedAllocator) -> list[int]:
        target.allocate(1, 3)
        target.register(1, [1, 2])
        target.release(1)
        target.share(2, target.lookup([1]))
        target.allocate(2, 4)
        return list(target.drain().tolist())

    first = use(pool)
    assert use(pool.clone()) == first
    assert pool.clone(50).free_units == 50


def test_check_names_what_is_wrong() -> None:
    """A reference that no table holds, a broken queue and a lost counter are each found."""
    pool = PagedAllocator(PagedConfig(4))
    pool.allocate(1, 2)
    pool.pool.node[1, page_pool.REF] = 2
    with pytest.raises(InvariantError, match="page 1 has 2 references"):
        pool.check()
    pool = PagedAllocator(PagedConfig(4))
    pool.pool.node[2, page_pool.PREV] = 4
    with pytest.raises(InvariantError, match="page 2"):
        pool.check()
    pool = PagedAllocator(PagedConfig(4))
    pool.pool.tally[page_pool.QUEUED] = 3
    with pytest.raises(InvariantError, match="counted"):
        pool.check()


@pytest.mark.parametrize(("capacity", "unit"), [(0, 16), (4, 0), (2**31, 1)])
def test_sizes_that_cannot_be_are_refused(capacity: int, unit: int) -> None:
    """No pages, pages of no tokens and more pages than numbers are configuration errors."""
    with pytest.raises(ConfigError):
        PagedConfig(capacity, unit)


def test_misuse_is_an_error_not_a_corruption() -> None:
    """Sharing late, empty allocations, content 0 and more contents than pages are refused by name."""
    pool = PagedAllocator(PagedConfig(4))
    pool.allocate(1, 2)
    pool.register(1, [5])
    with pytest.raises(ConfigError, match="before anything else"):
        pool.share(1, pool.lookup([5]))
    with pytest.raises(ConfigError, match="look them up again"):
        pool.share(2, np.array([4], np.int32))
    with pytest.raises(ConfigError, match="at least 1"):
        pool.allocate(1, 0)
    with pytest.raises(ConfigError, match="one each"):
        pool.register(1, [5, 6, 7])
    with pytest.raises(ConfigError, match="content 0"):
        pool.register(1, [5, 0])
    pool.check()

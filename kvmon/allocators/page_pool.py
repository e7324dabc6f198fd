"""Kernels of the paged pool: references, free queue, prefix cache, and who is evicted first.

    node     int32 (capacity + 1, 4)    a row a page: references, next and previous in the free queue, next in bucket
    content  uint64 (capacity + 1)      hash of the page's content, 0 = none
    bucket   int32 (power of two)       first page of each hash bucket, 0 = empty
    more     int64 (capacity + 2, 6)    a row a page: MARK = PINNED, HELD (a transfer still reads it), LEAKED (given
                                        back by nobody, a fault); USES = hits of the content; BORN = when it was
                                        registered; SPOT = place in the heap, 0 = not in it. A row a place of the heap
                                        of unused pages with content (LFU, FIFO), the smallest first: KEY and PAGE
    tally    int64 (14)                 see the columns below

A pool that needs none of it has one row of `more`.

Page 0 does not exist: row 0 is the head of the circular free queue, and 0 in a chain ends it.

A page without references is either allocatable (in the free queue, or under LFU and FIFO, when it has content, in the
heap), or idle and pinned, or held by a transfer. With LRU the queue is that of vLLM's BlockPool: pages without content
at the front, those with content behind them in the order in which they were given back, so that the front is evicted.

Invariant: a page is in one bucket exactly when it has content; an allocatable page with content is evictable, one
without is free; in the queue no page with content stands before one without. Several pages may hold the same content
(computed side by side); the oldest is found. Eviction is lazy: content lives until `take_pages` hands the page out.
Kernels here act; whether they may is asked before (`find_content`, `queued_among`). Pins and holds are set in
`page_marks.py`. They write no journal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.allocators.config import EVICTIONS, PagedConfig
from kvmon.jit import inlined, inner, kernel

__all__ = [
    "PagePool",
    "drop_contents",
    "find_content",
    "give_pages",
    "new_page_pool",
    "page_pool_of",
    "queue_page",
    "queued_among",
    "register_content",
    "share_pages",
    "take_pages",
    "used_pages",
]

# Columns of PagePool.node.
REF = 0
NEXT = 1
PREV = 2
CHAIN = 3
# Columns of PagePool.more.
MARK = 0
USES = 1
BORN = 2
SPOT = 3
KEY = 4
PAGE = 5
# Columns of PagePool.tally.
CAPACITY = 0
QUEUED = 1  # allocatable pages
EVICTABLE = 2  # those of them with content
EVICTIONS_DONE = 3
POLICY = 4  # index into config.EVICTIONS
PLAIN = 5  # 1: LRU without pins and holds, where `more` is never looked at
PIN_AFTER = 6  # hits, 0 = nothing is pinned
PIN_CAP = 7  # most pages that may be pinned
PINNED_PAGES = 8
IDLE_PINNED = 9  # pinned pages without references
DEFERRED = 10  # pages without references that a transfer holds
CLOCK = 11  # registrations and returns so far
LEAKED_PAGES = 12
HEAPED = 13  # pages in the heap
TALLIES = 14
# Bits of MARK.
PINNED = 1
HELD = 2
LEAKED = 4

LRU = EVICTIONS.index("lru")
LFU = EVICTIONS.index("lfu")
FIFO = EVICTIONS.index("fifo")

_ZERO = np.uint64(0)
USES_BITS = 40  # of a LFU key: uses above, the time of the return below


class PagePool(NamedTuple):
    """Arrays of one pool; see the module for shapes."""

    node: npt.NDArray[np.int32]
    content: npt.NDArray[np.uint64]
    bucket: npt.NDArray[np.int32]
    more: npt.NDArray[np.int64]
    tally: npt.NDArray[np.int64]


def new_page_pool(
    capacity_units: int, *, evict: str = "lru", pin_after: int = 0, pin_cap: int = 0, holds: bool = False
) -> PagePool:
    """An empty pool of pages 1..capacity_units, queued in the order of their numbers; `holds`: transfers happen."""
    n = capacity_units
    node = np.zeros((n + 1, 4), np.int32)
    numbers = np.arange(n + 1, dtype=np.int32)
    node[:, NEXT] = numbers + 1
    node[:, PREV] = numbers - 1
    node[n, NEXT] = 0
    node[0, PREV] = n
    buckets = 1 << max(1, (2 * n - 1).bit_length())
    policy = EVICTIONS.index(evict)
    tally = np.zeros(TALLIES, np.int64)
    tally[CAPACITY] = tally[QUEUED] = n
    tally[POLICY] = policy
    tally[PIN_AFTER] = pin_after
    tally[PIN_CAP] = pin_cap
    plain = policy == LRU and not pin_after and not holds
    tally[PLAIN] = plain
    more = np.zeros((1 if plain else n + 2, 6), np.int64)
    return PagePool(node, np.zeros(n + 1, np.uint64), np.zeros(buckets, np.int32), more, tally)


def page_pool_of(config: PagedConfig, *, holds: bool = False) -> PagePool:
    """The empty pool that a configuration describes."""
    return new_page_pool(
        config.capacity_units,
        evict=config.evict,
        pin_after=config.pin_after_hits,
        pin_cap=int(config.pin_share * config.capacity_units),
        holds=holds,
    )


@inlined
def used_pages(pool: PagePool) -> int:
    """Pages that somebody refers to."""
    tally = pool.tally
    return int(tally[CAPACITY] - tally[QUEUED] - tally[IDLE_PINNED] - tally[DEFERRED])


@kernel
def find_content(pool: PagePool, page_hash: np.uint64) -> int:
    """The oldest page that holds `page_hash`, or 0. Changes nothing."""
    bucket = pool.bucket
    content = pool.content
    node = pool.node
    page = bucket[np.int64(page_hash & np.uint64(bucket.size - 1))]
    while page != 0 and content[page] != page_hash:
        page = node[page, CHAIN]
    return int(page)


@kernel
def queued_among(pool: PagePool, row: npt.NDArray[np.int32], first: int, n: int) -> int:
    """How many of the pages `row[first : first + n]` are allocatable now (sharing would take them out)."""
    node = pool.node
    plain = pool.tally[PLAIN]
    count = 0
    for i in range(first, first + n):
        if node[row[i], REF] == 0 and (plain or pool.more[row[i], MARK] & (PINNED | HELD) == 0):
            count += 1
    return count


@inner
def _heap_place(pool: PagePool, at: int, key: int, page: int) -> None:
    pool.more[at, KEY] = key
    pool.more[at, PAGE] = page
    pool.more[page, SPOT] = at


@inner
def _heap_settle(pool: PagePool, at: int, key: int, page: int) -> None:
    """Put (key, page) into the hole at `at`, up or down to where it belongs; keys are unique."""
    heap = pool.more
    while at > 1 and heap[at >> 1, KEY] > key:
        _heap_place(pool, at, heap[at >> 1, KEY], heap[at >> 1, PAGE])
        at >>= 1
    last = pool.tally[HEAPED]
    while 2 * at <= last:
        child = 2 * at
        if child < last and heap[child + 1, KEY] < heap[child, KEY]:
            child += 1
        if heap[child, KEY] > key:
            break
        _heap_place(pool, at, heap[child, KEY], heap[child, PAGE])
        at = child
    _heap_place(pool, at, key, page)


@inner
def _heap_add(pool: PagePool, page: int) -> None:
    tally = pool.tally
    key = pool.more[page, BORN]
    if tally[POLICY] == LFU:
        tally[CLOCK] += 1
        key = (pool.more[page, USES] << USES_BITS) | tally[CLOCK]
    tally[HEAPED] += 1
    _heap_settle(pool, tally[HEAPED], key, page)


@inner
def _heap_remove(pool: PagePool, page: int) -> None:
    heap = pool.more
    at = pool.more[page, SPOT]
    last = pool.tally[HEAPED]
    pool.tally[HEAPED] = last - 1
    pool.more[page, SPOT] = 0
    if at != last:
        _heap_settle(pool, at, heap[last, KEY], heap[last, PAGE])


@inlined
def _unlink(pool: PagePool, page: int) -> None:
    node = pool.node
    before = node[page, PREV]
    after = node[page, NEXT]
    node[before, NEXT] = after
    node[after, PREV] = before


@inlined
def _link_behind(pool: PagePool, before: int, page: int) -> None:
    node = pool.node
    after = node[before, NEXT]
    node[before, NEXT] = page
    node[page, PREV] = before
    node[page, NEXT] = after
    node[after, PREV] = page


@inlined
def _forget(pool: PagePool, page: int) -> None:
    """Take a page out of its bucket."""
    node = pool.node
    bucket = pool.bucket
    slot = np.int64(pool.content[page] & np.uint64(bucket.size - 1))
    if bucket[slot] == page:
        bucket[slot] = node[page, CHAIN]
    else:
        before = bucket[slot]
        while node[before, CHAIN] != page:
            before = node[before, CHAIN]
        node[before, CHAIN] = node[page, CHAIN]
    node[page, CHAIN] = 0
    pool.content[page] = _ZERO


@kernel
def take_pages(pool: PagePool, row: npt.NDArray[np.int32], first: int, n: int) -> None:
    """Move `n` pages into `row[first:]` with one reference each: from the front of the queue, then from the heap,
    evicting their contents.

    The caller has made sure that `n` pages are allocatable.
    """
    node = pool.node
    content = pool.content
    tally = pool.tally
    page = node[0, NEXT]
    evicted = 0
    taken = first
    while taken < first + n and page != 0:
        row[taken] = page
        node[page, REF] = 1
        if content[page] != _ZERO:
            evicted += 1
            _forget(pool, page)
        page = node[page, NEXT]
        taken += 1
    node[0, NEXT] = page
    node[page, PREV] = 0
    while taken < first + n:
        page = np.int32(pool.more[1, PAGE])
        _heap_remove(pool, page)
        _forget(pool, page)
        evicted += 1
        row[taken] = page
        node[page, REF] = 1
        taken += 1
    tally[QUEUED] -= n
    tally[EVICTABLE] -= evicted
    tally[EVICTIONS_DONE] += evicted


@kernel
def share_pages(pool: PagePool, row: npt.NDArray[np.int32], first: int, n: int) -> None:
    """One more reference for each of `row[first : first + n]`; unused pages with content stop being allocatable."""
    node = pool.node
    tally = pool.tally
    plain = tally[PLAIN]
    revived = 0
    for i in range(first, first + n):
        page = row[i]
        if not plain:
            pool.more[page, USES] += 1
        if node[page, REF] == 0:
            if plain:
                _unlink(pool, page)
                revived += 1
            elif pool.more[page, MARK] & HELD:
                tally[DEFERRED] -= 1
            elif pool.more[page, MARK] & PINNED:
                tally[IDLE_PINNED] -= 1
            else:
                if tally[POLICY] == LRU:
                    _unlink(pool, page)
                else:
                    _heap_remove(pool, page)
                revived += 1
        node[page, REF] += 1
    tally[QUEUED] -= revived
    tally[EVICTABLE] -= revived


@kernel
def give_pages(pool: PagePool, row: npt.NDArray[np.int32], n: int) -> None:
    """One reference fewer for `row[n - 1]` down to `row[0]`.

    Pages that reach 0 with content go to the back of the queue one by one (or into the heap); those without go to the
    front as one group, the first given at the very front. A held page waits for its transfer, a pinned one for its next
    hit.
    """
    node = pool.node
    content = pool.content
    tally = pool.tally
    plain = tally[PLAIN]
    queued = 0
    kept = 0
    # The back of the queue is kept at hand: written and read again for each page it would be the slowest part.
    back = node[0, PREV]
    group = 0  # last page of the front group so far; 0: the group is empty, its first page goes right behind the head
    for i in range(n - 1, -1, -1):
        page = row[i]
        node[page, REF] -= 1
        if node[page, REF] != 0:
            continue
        if not plain:
            if pool.more[page, MARK] & HELD:
                tally[DEFERRED] += 1
                continue
            if pool.more[page, MARK] & PINNED:
                tally[IDLE_PINNED] += 1
                continue
        queued += 1
        if content[page] == _ZERO:
            if node[group, NEXT] == 0:
                back = page
            _link_behind(pool, group, page)
            group = page
            continue
        kept += 1
        if tally[POLICY] == LRU:
            node[back, NEXT] = page
            node[page, PREV] = back
            node[page, NEXT] = 0
            back = page
        else:
            _heap_add(pool, page)
    node[0, PREV] = back
    tally[QUEUED] += queued
    tally[EVICTABLE] += kept


@inner
def queue_page(pool: PagePool, page: int, before: int) -> None:
    """Make a page without references allocatable: with content as the last of its order, without behind page `before`
    of the queue (0: at the very front)."""
    tally = pool.tally
    tally[QUEUED] += 1
    if pool.content[page] == _ZERO:
        _link_behind(pool, before, page)
        return
    tally[EVICTABLE] += 1
    if tally[POLICY] == LRU:
        _link_behind(pool, pool.node[0, PREV], page)
    else:
        _heap_add(pool, page)


@kernel
def register_content(pool: PagePool, page: int, page_hash: np.uint64) -> None:
    """Put a referenced page without content into the cache, behind any page with the same hash."""
    node = pool.node
    bucket = pool.bucket
    slot = np.int64(page_hash & np.uint64(bucket.size - 1))
    pool.content[page] = page_hash
    if not pool.tally[PLAIN]:
        pool.more[page, USES] = 0
        if pool.tally[POLICY] != LRU:
            pool.tally[CLOCK] += 1
            pool.more[page, BORN] = pool.tally[CLOCK]
    last = bucket[slot]
    if last == 0:
        bucket[slot] = page
        return
    while node[last, CHAIN] != 0:
        last = node[last, CHAIN]
    node[last, CHAIN] = page


@kernel
def drop_contents(pool: PagePool) -> None:
    """Forget every content and every pin; references, holds and the order of the free queue stand. Pages of the heap
    and idle pinned ones join the back of the queue in the order of their numbers."""
    tally = pool.tally
    if not tally[PLAIN]:
        for page in range(1, tally[CAPACITY] + 1):
            idle = pool.node[page, REF] == 0 and pool.more[page, MARK] & HELD == 0
            if idle and pool.more[page, MARK] & PINNED:
                tally[QUEUED] += 1
                _link_behind(pool, pool.node[0, PREV], page)
            elif idle and tally[POLICY] != LRU and pool.content[page] != _ZERO:
                pool.more[page, SPOT] = 0
                _link_behind(pool, pool.node[0, PREV], page)
            pool.more[page, MARK] &= ~PINNED
        tally[HEAPED] = 0
        tally[PINNED_PAGES] = 0
        tally[IDLE_PINNED] = 0
    pool.content[:] = _ZERO
    pool.bucket[:] = 0
    pool.node[:, CHAIN] = 0
    tally[EVICTABLE] = 0

"""Kernels of the paged pool: references, free queue, prefix cache. The behaviour of vLLM's BlockPool.

    node     int32 (capacity + 1, 4)    a row a page: references, next and previous in the free queue, next in bucket
    content  uint64 (capacity + 1)      hash of the page's content, 0 = none
    bucket   int32 (power of two)       first page of each hash bucket, 0 = empty
    tally    int64 (4)                  capacity, pages in the free queue, those of them with content, evictions so far

Page 0 does not exist: row 0 is the head of the circular free queue, and 0 in a chain ends it.

Invariant: a page is in the free queue exactly when its reference count is 0, and in one bucket exactly when it has
content; a page in the queue with content is evictable, one without is free. Several pages may hold the same content
(computed side by side); the oldest is found. Eviction is lazy: content lives until `take_pages` hands the page out.
Kernels here act; whether they may is asked before (`find_content`, `queued_among`). They write no journal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.jit import kernel

__all__ = [
    "PagePool",
    "drop_contents",
    "find_content",
    "give_pages",
    "new_page_pool",
    "queued_among",
    "register_content",
    "share_pages",
    "take_pages",
]

# Columns of PagePool.node.
REF = 0
NEXT = 1
PREV = 2
CHAIN = 3
# Columns of PagePool.tally.
CAPACITY = 0
QUEUED = 1
EVICTABLE = 2
EVICTIONS = 3

_ZERO = np.uint64(0)


class PagePool(NamedTuple):
    """Arrays of one pool; see the module for shapes."""

    node: npt.NDArray[np.int32]
    content: npt.NDArray[np.uint64]
    bucket: npt.NDArray[np.int32]
    tally: npt.NDArray[np.int64]


def new_page_pool(capacity_units: int) -> PagePool:
    """An empty pool of pages 1..capacity_units, queued in the order of their numbers."""
    n = capacity_units
    node = np.zeros((n + 1, 4), np.int32)
    numbers = np.arange(n + 1, dtype=np.int32)
    node[:, NEXT] = numbers + 1
    node[:, PREV] = numbers - 1
    node[n, NEXT] = 0
    node[0, PREV] = n
    buckets = 1 << max(1, (2 * n - 1).bit_length())
    tally = np.array([n, n, 0, 0], np.int64)
    return PagePool(node, np.zeros(n + 1, np.uint64), np.zeros(buckets, np.int32), tally)


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
    """How many of the pages `row[first : first + n]` are in the free queue now (sharing would take them out)."""
    node = pool.node
    count = 0
    for i in range(first, first + n):
        if node[row[i], REF] == 0:
            count += 1
    return count


@kernel
def take_pages(pool: PagePool, row: npt.NDArray[np.int32], first: int, n: int) -> None:
    """Move `n` pages from the front of the queue into `row[first:]` with one reference each, evicting their contents.

    The caller has made sure that the queue holds `n` pages.
    """
    node = pool.node
    content = pool.content
    bucket = pool.bucket
    tally = pool.tally
    mask = np.uint64(bucket.size - 1)
    page = node[0, NEXT]
    evicted = 0
    for i in range(first, first + n):
        row[i] = page
        node[page, REF] = 1
        if content[page] != _ZERO:
            evicted += 1
            slot = np.int64(content[page] & mask)
            if bucket[slot] == page:
                bucket[slot] = node[page, CHAIN]
            else:
                before = bucket[slot]
                while node[before, CHAIN] != page:
                    before = node[before, CHAIN]
                node[before, CHAIN] = node[page, CHAIN]
            node[page, CHAIN] = 0
            content[page] = _ZERO
        page = node[page, NEXT]
    node[0, NEXT] = page
    node[page, PREV] = 0
    tally[QUEUED] -= n
    tally[EVICTABLE] -= evicted
    tally[EVICTIONS] += evicted


@kernel
def share_pages(pool: PagePool, row: npt.NDArray[np.int32], first: int, n: int) -> None:
    """One more reference for each of `row[first : first + n]`; pages with content that wait in the queue leave it."""
    node = pool.node
    tally = pool.tally
    revived = 0
    for i in range(first, first + n):
        page = row[i]
        if node[page, REF] == 0:
            before = node[page, PREV]
            after = node[page, NEXT]
            node[before, NEXT] = after
            node[after, PREV] = before
            revived += 1
        node[page, REF] += 1
    tally[QUEUED] -= revived
    tally[EVICTABLE] -= revived


@kernel
def give_pages(pool: PagePool, row: npt.NDArray[np.int32], n: int) -> None:
    """One reference fewer for `row[n - 1]` down to `row[0]`.

    Pages that reach 0 with content go to the back of the queue one by one; those without go to the front as one group,
    the first given at the very front.
    """
    node = pool.node
    content = pool.content
    tally = pool.tally
    queued = 0
    kept = 0
    group = 0  # last page of the front group so far; 0: the group is empty, its first page goes right behind the head
    for i in range(n - 1, -1, -1):
        page = row[i]
        node[page, REF] -= 1
        if node[page, REF] != 0:
            continue
        queued += 1
        if content[page] != _ZERO:
            before = node[0, PREV]
            kept += 1
        else:
            before = np.int32(group)
            group = page
        after = node[before, NEXT]
        node[before, NEXT] = page
        node[page, PREV] = before
        node[page, NEXT] = after
        node[after, PREV] = page
    tally[QUEUED] += queued
    tally[EVICTABLE] += kept


@kernel
def register_content(pool: PagePool, page: int, page_hash: np.uint64) -> None:
    """Put a referenced page without content into the cache, behind any page with the same hash."""
    node = pool.node
    bucket = pool.bucket
    slot = np.int64(page_hash & np.uint64(bucket.size - 1))
    pool.content[page] = page_hash
    last = bucket[slot]
    if last == 0:
        bucket[slot] = page
        return
    while node[last, CHAIN] != 0:
        last = node[last, CHAIN]
    node[last, CHAIN] = page


@kernel
def drop_contents(pool: PagePool) -> None:
    """Forget every content; references and the order of the free queue stand."""
    pool.content[:] = _ZERO
    pool.bucket[:] = 0
    pool.node[:, CHAIN] = 0
    pool.tally[EVICTABLE] = 0

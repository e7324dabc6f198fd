"""Invariant walks of both pools, in plain Python beside the kernels.

Invariant: a walk changes nothing, and raises InvariantError naming the first contradiction it meets. It trusts no
counter.
"""

from __future__ import annotations

from kvmon.allocators import page_pool as pages
from kvmon.allocators import run_pool as runs
from kvmon.errors import InvariantError

__all__ = ["check_page_pool", "check_run_pool"]


def check_page_pool(pool: pages.PagePool) -> None:
    """References, free queue, buckets and counters of a paged pool agree."""
    capacity = int(pool.tally[pages.CAPACITY])
    node = pool.node.tolist()
    content = pool.content.tolist()
    queued: list[int] = []
    before, page = 0, node[0][pages.NEXT]
    while page != 0:
        if not 1 <= page <= capacity or len(queued) == capacity:
            raise InvariantError(f"the free queue leaves the pool or loops at page {page}")
        if node[page][pages.PREV] != before:
            raise InvariantError(f"page {page} names {node[page][pages.PREV]} before it in the queue, not {before}")
        if node[page][pages.REF] != 0:
            raise InvariantError(f"page {page} is queued with {node[page][pages.REF]} references")
        queued.append(page)
        before, page = page, node[page][pages.NEXT]
    if node[0][pages.PREV] != before:
        raise InvariantError(f"the queue ends at page {before}, its head says {node[0][pages.PREV]}")
    unreferenced = sum(1 for row in node[1:] if row[pages.REF] == 0)
    if unreferenced != len(queued) or len(queued) != pool.tally[pages.QUEUED]:
        raise InvariantError(
            f"{unreferenced} unreferenced pages, {len(queued)} queued, {pool.tally[pages.QUEUED]} counted"
        )
    if any(row[pages.REF] < 0 for row in node[1:]):
        raise InvariantError("a page has fewer than 0 references")
    evictable = sum(1 for page in queued if content[page])
    if evictable != pool.tally[pages.EVICTABLE]:
        raise InvariantError(f"{evictable} queued pages have content, {pool.tally[pages.EVICTABLE]} are counted")
    _check_buckets(pool, node, content)


def _check_buckets(pool: pages.PagePool, node: list[list[int]], content: list[int]) -> None:
    mask = len(pool.bucket) - 1
    seen: set[int] = set()
    for slot, page in enumerate(pool.bucket.tolist()):
        while page != 0:
            if page in seen:
                raise InvariantError(f"page {page} stands twice in the buckets")
            if content[page] == 0 or content[page] & mask != slot:
                raise InvariantError(f"page {page} stands in bucket {slot} where its content does not belong")
            seen.add(page)
            page = node[page][pages.CHAIN]
    if len(seen) != sum(1 for value in content[1:] if value):
        raise InvariantError(f"{len(seen)} pages stand in buckets, {sum(1 for v in content[1:] if v)} have content")


def check_run_pool(pool: runs.RunPool) -> None:
    """Free runs are ordered, apart, inside the pool, and add up."""
    capacity = int(pool.tally[runs.CAPACITY])
    count = int(pool.tally[runs.RUNS])
    free, end, largest = 0, -1, 0
    for start, length in zip(pool.starts[:count].tolist(), pool.lengths[:count].tolist(), strict=True):
        if length < 1 or start < 1 or start + length - 1 > capacity:
            raise InvariantError(f"free run {start}+{length} is empty or outside 1..{capacity}")
        if start <= end:
            raise InvariantError(f"free run {start}+{length} overlaps or touches the one that ends before {end}")
        free += length
        end = start + length
        largest = max(largest, length)
    if free != pool.tally[runs.FREE]:
        raise InvariantError(f"free runs hold {free} units, {pool.tally[runs.FREE]} are counted")
    if pool.tally[runs.LARGEST] not in (0, largest):
        raise InvariantError(f"the largest run is {largest}, remembered is {pool.tally[runs.LARGEST]}")

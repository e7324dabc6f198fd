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
    """References, free queue, heap, marks, buckets and counters of a paged pool agree."""
    node = pool.node.tolist()
    content = pool.content.tolist()
    if any(row[pages.REF] < 0 for row in node[1:]):
        raise InvariantError("a page has fewer than 0 references")
    queued = _check_queue(pool, node, content)
    heaped = _check_heap(pool, node, content)
    both = set(queued) & set(heaped)
    if both:
        raise InvariantError(f"page {min(both)} stands in the free queue and in the heap")
    kept = _check_marks(pool, node, content, set(queued) | set(heaped))
    unreferenced = sum(1 for row in node[1:] if row[pages.REF] == 0)
    if unreferenced != len(queued) + len(heaped) + kept or len(queued) + len(heaped) != pool.tally[pages.QUEUED]:
        raise InvariantError(
            f"{unreferenced} unreferenced pages, {len(queued)} queued, {len(heaped)} in the heap, {kept} kept, "
            f"{pool.tally[pages.QUEUED]} counted as allocatable"
        )
    evictable = sum(1 for page in [*queued, *heaped] if content[page])
    if evictable != pool.tally[pages.EVICTABLE]:
        raise InvariantError(f"{evictable} allocatable pages have content, {pool.tally[pages.EVICTABLE]} are counted")
    _check_buckets(pool, node, content)


def _check_queue(pool: pages.PagePool, node: list[list[int]], content: list[int]) -> list[int]:
    capacity = int(pool.tally[pages.CAPACITY])
    queued: list[int] = []
    before, page = 0, node[0][pages.NEXT]
    while page != 0:
        if not 1 <= page <= capacity or len(queued) == capacity:
            raise InvariantError(f"the free queue leaves the pool or loops at page {page}")
        if node[page][pages.PREV] != before:
            raise InvariantError(f"page {page} names {node[page][pages.PREV]} before it in the queue, not {before}")
        if node[page][pages.REF] != 0:
            raise InvariantError(f"page {page} is queued with {node[page][pages.REF]} references")
        if before and content[before] and not content[page]:
            raise InvariantError(f"page {before} with content is queued before page {page} without")
        if content[page] and pool.tally[pages.POLICY] != pages.LRU:
            raise InvariantError(f"page {page} has content and is queued: it belongs into the heap")
        queued.append(page)
        before, page = page, node[page][pages.NEXT]
    if node[0][pages.PREV] != before:
        raise InvariantError(f"the queue ends at page {before}, its head says {node[0][pages.PREV]}")
    return queued


def _check_heap(pool: pages.PagePool, node: list[list[int]], content: list[int]) -> list[int]:
    """Smallest first, every page knows its place, and the keys are what the policy says."""
    count = int(pool.tally[pages.HEAPED])
    if pool.tally[pages.PLAIN] or pool.tally[pages.POLICY] == pages.LRU:
        if count:
            raise InvariantError(f"{count} pages stand in the heap of a pool that has none")
        return []
    more = pool.more.tolist()
    heaped: list[int] = []
    for place in range(1, count + 1):
        key, page = more[place][pages.KEY], more[place][pages.PAGE]
        if more[page][pages.SPOT] != place:
            raise InvariantError(f"page {page} stands at {place} of the heap and says {more[page][pages.SPOT]}")
        if node[page][pages.REF] or not content[page]:
            raise InvariantError(f"page {page} stands in the heap with references or without content")
        if place > 1 and more[place >> 1][pages.KEY] >= key:
            raise InvariantError(f"the heap is out of order at {place}")
        right = more[page][pages.BORN]
        if pool.tally[pages.POLICY] == pages.LFU:
            key, right = key >> pages.USES_BITS, more[page][pages.USES]
        if key != right:
            raise InvariantError(f"page {page} stands in the heap with key {key}, which should be {right}")
        heaped.append(page)
    if sum(1 for row in more if row[pages.SPOT]) != count:
        raise InvariantError(f"{count} pages stand in the heap, other pages say that they do")
    return heaped


def _check_marks(pool: pages.PagePool, node: list[list[int]], content: list[int], allocatable: set[int]) -> int:
    """Pins, holds and leaks; returns how many unreferenced pages they keep."""
    tally = pool.tally
    pinned = idle = deferred = leaked = 0
    if not tally[pages.PLAIN]:
        for page, row in enumerate(pool.more[: tally[pages.CAPACITY] + 1].tolist()):
            mark = row[pages.MARK]
            references = node[page][pages.REF]
            if mark & (pages.PINNED | pages.HELD) and page in allocatable:
                raise InvariantError(f"page {page} is pinned or held and allocatable")
            if mark & pages.PINNED:
                pinned += 1
                idle += references == 0 and not mark & pages.HELD
                if not content[page]:
                    raise InvariantError(f"page {page} is pinned without content")
            if mark & pages.HELD:
                deferred += references == 0
            if mark & pages.LEAKED:
                leaked += 1
                if references != 1 or content[page] or mark != pages.LEAKED:
                    raise InvariantError(f"page {page} is leaked and something else")
    for what, counted, column in (
        ("pinned", pinned, pages.PINNED_PAGES),
        ("idle and pinned", idle, pages.IDLE_PINNED),
        ("deferred", deferred, pages.DEFERRED),
        ("leaked", leaked, pages.LEAKED_PAGES),
    ):
        if counted != tally[column]:
            raise InvariantError(f"{counted} pages are {what}, {tally[column]} are counted")
    if pinned > tally[pages.PIN_CAP]:
        raise InvariantError(f"{pinned} pages are pinned, the cap is {tally[pages.PIN_CAP]}")
    return idle + deferred


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
    """Free runs are ordered, apart, inside the pool, and add up; those of a buddy pool are merged buddy blocks."""
    capacity = int(pool.tally[runs.CAPACITY])
    count = int(pool.tally[runs.RUNS])
    buddy = pool.tally[runs.POLICY] == runs.BUDDY
    free, end, largest = 0, 1, 0
    entries = list(zip(pool.starts[:count].tolist(), pool.lengths[:count].tolist(), strict=True))
    for start, length in entries:
        if length < 1 or start < 1 or start + length - 1 > capacity:
            raise InvariantError(f"free run {start}+{length} is empty or outside 1..{capacity}")
        if start < end or (start == end > 1 and not buddy):
            raise InvariantError(f"free run {start}+{length} overlaps or touches the one that ends before {end}")
        free += length
        end = start + length
        largest = max(largest, length)
    if buddy:
        _check_buddies(entries)
    if free != pool.tally[runs.FREE]:
        raise InvariantError(f"free runs hold {free} units, {pool.tally[runs.FREE]} are counted")
    if pool.tally[runs.LARGEST] not in (0, largest):
        raise InvariantError(f"the largest run is {largest}, remembered is {pool.tally[runs.LARGEST]}")


def _check_buddies(entries: list[tuple[int, int]]) -> None:
    free = set(entries)
    for start, length in entries:
        if length & (length - 1) or (start - 1) % length:
            raise InvariantError(f"free block {start}+{length} is no power of two at a multiple of itself")
        buddy = ((start - 1) ^ length) + 1
        if (buddy, length) in free:
            raise InvariantError(f"free buddies {start}+{length} and {buddy}+{length} have not merged")

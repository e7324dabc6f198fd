"""The paged allocator by itself: pages for requests, shared prefixes, lazy eviction.

    pool = PagedAllocator(PagedConfig(64))
    hits = pool.lookup(hashes)                       ask: nothing changes
    if pool.probe(4) is None: pool.share(1, hits); pool.allocate(1, 4)
    pool.register(1, hashes)                         the request's leading pages are full now
    pool.release(1)                                  last page first; contents stay until somebody needs the page

Purpose: the pool of the scheduler, one call at a time, for tests, scenarios and whoever studies the policy. The same
kernels do the work, with every policy for eviction and with pins; it knows no classes and no page groups, so quotas and
windows are the scheduler's. Invariant: only leading, full pages are registered or shared; `check()` walks the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvmon.allocators import page_pool as at
from kvmon.allocators.checks import check_page_pool
from kvmon.allocators.config import PagedConfig
from kvmon.allocators.journal import (
    ALLOC,
    ASSIGN,
    CACHE,
    PIN,
    RESET,
    SHARE,
    UNSHARE,
    USED,
    put_units,
    put_units_reversed,
)
from kvmon.allocators.own_journal import OwnJournal
from kvmon.allocators.page_marks import pin_hot
from kvmon.allocators.refusal import Contiguity, Reason, Refusal
from kvmon.errors import ConfigError, InvariantError

__all__ = ["PagedAllocator"]


class PagedAllocator:
    """Pages 1..capacity with reference counts and a prefix cache; see `page_pool` for the policy."""

    def __init__(self, config: PagedConfig, *, journal: bool = False) -> None:
        if config.quotas or config.window_tokens:
            raise ConfigError("quotas and window groups need a scheduler: leave them out for an allocator alone")
        self.config = config
        self.pool = at.page_pool_of(config)
        self._journal = OwnJournal(journal)
        self._tables: dict[int, npt.NDArray[np.int32]] = {}
        self._registered: dict[int, int] = {}

    @property
    def capacity_units(self) -> int:
        """Pages in all."""
        return self.config.capacity_units

    @property
    def free_units(self) -> int:
        """Unreferenced pages without content."""
        return int(self.pool.tally[at.QUEUED] - self.pool.tally[at.EVICTABLE])

    @property
    def evictable_units(self) -> int:
        """Unreferenced pages with content."""
        return int(self.pool.tally[at.EVICTABLE])

    @property
    def pinned_units(self) -> int:
        """Unreferenced pages whose content is pinned."""
        return int(self.pool.tally[at.IDLE_PINNED])

    @property
    def largest_free_units(self) -> int:
        """Pages go anywhere, so the largest block that could be granted is every free page."""
        return self.free_units

    @property
    def evictions(self) -> int:
        """Contents lost to allocations so far."""
        return int(self.pool.tally[at.EVICTIONS_DONE])

    def references(self) -> npt.NDArray[np.int32]:
        """Reference count of each page (a copy; index 0 is unused)."""
        return np.array(self.pool.node[:, at.REF])

    def contents(self) -> npt.NDArray[np.uint64]:
        """Hash of each page's content, 0 = none (a copy; index 0 is unused)."""
        return np.array(self.pool.content)

    def free_order(self) -> npt.NDArray[np.int32]:
        """Allocatable pages in the order in which they would be taken."""
        order = []
        page = int(self.pool.node[0, at.NEXT])
        while page:
            order.append(page)
            page = int(self.pool.node[page, at.NEXT])
        heap = self.pool.more[1 : self.pool.tally[at.HEAPED] + 1]
        order += heap[np.argsort(heap[:, at.KEY]), at.PAGE].tolist()
        return np.array(order, np.int32)

    def units_of(self, request: int) -> npt.NDArray[np.int64]:
        """The block table of `request`."""
        return self._table(request).astype(np.int64)

    def probe(self, units: int, request: int = 0) -> Refusal | None:
        """Why `units` pages could not be given to `request` (0: to a new one) now; None when they could."""
        free = self.free_units
        queued = int(self.pool.tally[at.QUEUED])
        others = any(holder != request for holder in self._tables)
        if units <= (free if self.config.reclaim == "idle" and others else queued):
            return None
        if units > self.capacity_units:
            reason = Reason.NEVER_FITS
        elif units <= queued:
            reason = Reason.EVICTABLE_NOT_RECLAIMED
        elif units <= queued + self.pinned_units:
            reason = Reason.ALL_PINNED
        else:
            reason = Reason.EXHAUSTED
        return Refusal(reason, units, free, self.evictable_units, free, Contiguity.NONE)

    def lookup(self, hashes: Sequence[int] | npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Pages that hold the longest chain of `hashes` from their beginning; empty without a prefix cache."""
        found: list[int] = []
        if self.config.prefix_cache:
            for name in hashes:
                page = at.find_content(self.pool, np.uint64(name))
                if page == 0:
                    break
                found.append(page)
        return np.array(found, np.int32)

    def share(self, request: int, pages: npt.NDArray[np.int32]) -> None:
        """Give a request that holds nothing the pages of a lookup, one more reference each; those that were hit often
        enough are pinned while the cap allows."""
        if request in self._tables:
            raise ConfigError(f"request {request} holds pages already: share a prefix before anything else")
        if not len(pages):
            return
        if np.any(self.pool.content[pages] == 0):
            raise ConfigError("only pages with content can be shared: look them up again")
        row = np.array(pages, np.int32)
        at.share_pages(self.pool, row, 0, len(row))
        self._tables[request] = row
        self._registered[request] = len(row)
        self._write(SHARE, request, row, 0)
        if self.config.pin_after_hits:
            pinned = np.zeros(len(row), np.int32)
            count = pin_hot(self.pool, row, len(row), pinned)
            if count:
                self._write(PIN, request, pinned[:count], 0)
        self._write(ASSIGN, request, row, 0)

    def allocate(self, request: int, units: int) -> Refusal | None:
        """Give `units` more pages to `request`, or say why not and change nothing."""
        _check_request(request, units)
        refusal = self.probe(units, request)
        if refusal is not None:
            return refusal
        have = self._table(request)
        row = np.concatenate([have, np.zeros(units, np.int32)])
        at.take_pages(self.pool, row, len(have), units)
        self._tables[request] = row
        self._write(ALLOC, request, row, len(have))
        self._write(ASSIGN, request, row, len(have))
        return None

    def register(self, request: int, hashes: Sequence[int] | npt.NDArray[np.uint64]) -> None:
        """Say that the leading pages of `request` are full and hold `hashes`; those known already are passed over."""
        row = self._table(request)
        if len(hashes) > len(row):
            raise ConfigError(f"{len(hashes)} contents for the {len(row)} pages of request {request}: one each at most")
        done = self._registered.get(request, 0)
        if not self.config.prefix_cache or len(hashes) <= done:
            return
        if any(int(name) == 0 for name in hashes):
            raise ConfigError("content 0 is reserved for 'none': use page hashes from 1")
        for page, name in zip(row[done : len(hashes)], hashes[done:], strict=True):
            at.register_content(self.pool, int(page), np.uint64(name))
        self._registered[request] = len(hashes)
        self._write(CACHE, request, row[: len(hashes)], done)

    def release(self, request: int) -> None:
        """Drop every reference of `request`, last page first."""
        row = self._tables.pop(request, None)
        self._registered.pop(request, None)
        if row is None:
            return
        at.give_pages(self.pool, row, len(row))
        if self._journal.wanted:
            self._journal.make_room(3 + len(row))
            put_units_reversed(self._journal.kernel_state, UNSHARE, request, row, len(row))

    def reset_prefix_cache(self) -> None:
        """Forget every content and pin; references and the order of the queue stand (see `drop_contents`)."""
        at.drop_contents(self.pool)
        self._registered = {request: len(row) for request, row in self._tables.items()}
        if self._journal.wanted:
            self._journal.make_room(1)
            journal = self._journal.kernel_state
            journal.words[journal.state[USED]] = RESET
            journal.state[USED] += 1

    def drain(self) -> npt.NDArray[np.int64]:
        """The journal since the last drain; empty when it is off."""
        return self._journal.drain()

    def check(self) -> None:
        """Walk every invariant; raises InvariantError."""
        check_page_pool(self.pool)
        counted = np.zeros(self.capacity_units + 1, np.int64)
        for row in self._tables.values():
            np.add.at(counted, row, 1)
        wrong = np.flatnonzero(counted != self.pool.node[:, at.REF] * (np.arange(len(counted)) > 0))
        if wrong.size:
            page = int(wrong[0])
            raise InvariantError(
                f"page {page} has {self.pool.node[page, at.REF]} references, tables hold {counted[page]}"
            )

    def clone(self, capacity_units: int | None = None) -> PagedAllocator:
        """An empty allocator of the same policy at the same or another size."""
        config = self.config if capacity_units is None else self.config.resized(capacity_units)
        return PagedAllocator(config, journal=self._journal.wanted)

    def _table(self, request: int) -> npt.NDArray[np.int32]:
        return self._tables.get(request, np.zeros(0, np.int32))

    def _write(self, code: int, request: int, row: npt.NDArray[np.int32], first: int) -> None:
        if self._journal.wanted:
            self._journal.make_room(3 + len(row))
            put_units(self._journal.kernel_state, code, request, row, first, len(row) - first)


def _check_request(request: int, units: int) -> None:
    if request < 1:
        raise ConfigError(f"request {request} is no number from 1")
    if units < 1:
        raise ConfigError(f"{units} units is no allocation: ask for at least 1")

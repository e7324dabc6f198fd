"""What the allocator's decisions mean for keys and values: the copies that a journal names, done in its order.

A relocation copies a block, a compaction every block that slides, a fork the part of a page that it shares, a retained
prefix its region, a swap what goes to the host tier and what comes back. In journal order each of them reads what the
one before left, and the model writes only after all of them.

Invariant: after `apply`, what a table or block of the scheduler names holds the keys and values of the tokens that the
scheduler counts as computed. With `poison`, every unit that was taken holds NaN where nothing was copied, and so does
every unit that is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kvmon.allocators import journal as entries
from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.journal import iterate
from kvmon.engine.kvstore import KVStore
from kvmon.serving import Scheduler
from kvmon.serving import state as at

__all__ = ["Moves"]

Words = npt.NDArray[np.int64]
_COUNTERS = (at.RELOCATIONS, at.COMPACTIONS, at.COPIED_TOKENS, at.SWAPPED_OUT_TOKENS, at.SWAPPED_IN_TOKENS)
_WHY = {entries.COPY_FORK: "fork", entries.COPY_PREFIX: "prefix", entries.COPY_SLIDE: "compaction"}


class Moves:
    """Keeps a store in step with its scheduler; `poison` writes NaN over what nobody may read."""

    def __init__(self, store: KVStore, scheduler: Scheduler, *, poison: bool = False) -> None:
        self._store = store
        self._scheduler = scheduler
        self._poison = poison
        self._seen = np.zeros(len(_COUNTERS), np.int64)
        self._poisoned: set[tuple[int, int]] = set()  # pool and unit
        self._leaving: dict[int, Words] = {}  # units of a request on their way to the host tier
        self._kept: dict[int, int] = {}  # tokens of a request there
        self._returning: dict[int, Words] = {}
        self._slid_to = 0  # first unit of the block that slid last
        self._pool = 1
        self._handlers: dict[int, Callable[..., None]] = {
            entries.USE_POOL: self._use_pool,
            entries.ALLOC: self._alloc,
            entries.ALLOC_RUN: self._alloc_run,
            entries.COPY: self._copy,
            entries.RELOCATE: self._relocate,
            entries.OFFLOAD: self._offload,
            entries.COMMIT: self._commit,
            entries.ASSIGN_RUN: self._assign_run,
            entries.ONBOARD: self._onboard,
            entries.FREE_RUN: self._free_run,
        }
        if poison:
            self.poison_free()

    def apply(self, words: Words) -> None:
        """Do what the journal of a schedule stands for; a journal without a copy costs one look at the counters."""
        counters = self._scheduler.state.tally[list(_COUNTERS)]
        if not self._poison and np.array_equal(counters, self._seen):
            return
        self._seen = counters
        for code, fields in iterate(words):
            handler = self._handlers.get(code)
            if handler is not None:
                handler(*fields)

    def poison_free(self) -> None:
        """Write NaN over every unit that is free now and was not before."""
        if not self._poison:
            return
        for pool, free in self._free_units():
            fresh = [unit for unit in free if (pool, unit) not in self._poisoned]
            if fresh:
                self._store.poison(np.array(fresh, np.int64), window=pool == 2)
                self._poisoned.update((pool, unit) for unit in fresh)

    def _slots(self, units: Words, tokens: int) -> Words:
        """Slots of the first `tokens` tokens in `units`."""
        size = self._store.unit_tokens
        return ((units[:, np.newaxis] - 1) * size + np.arange(size)).ravel()[:tokens]

    def _first_slot(self, unit: int) -> int:
        return (unit - 1) * self._store.unit_tokens

    def _use_pool(self, pool: int) -> None:
        self._pool = pool

    def _copy(self, request: int, source: int, target: int, tokens: int, why: int) -> None:
        self._store.move(_WHY[why], self._first_slot(source), self._first_slot(target), tokens)
        if why == entries.COPY_SLIDE:
            self._slid_to = target

    def _relocate(self, request: int, source: int, old: int, target: int, new: int, tokens: int) -> None:
        self._store.move("relocation", self._first_slot(source), self._first_slot(target), tokens)

    def _offload(self, request: int, count: int, *units: int) -> None:
        self._leaving[request] = np.array(units, np.int64)

    def _commit(self, request: int, tokens: int) -> None:
        self._kept[request] = tokens

    def _assign_run(self, request: int, start: int, count: int) -> None:
        if self._pool == 2:  # a block in the host tier
            slots = self._slots(self._leaving.pop(request), self._kept.pop(request))
            self._store.swap_out(slots, self._first_slot(start))

    def _onboard(self, request: int, count: int, *units: int) -> None:
        self._returning[request] = np.array(units, np.int64)

    def _free_run(self, request: int, start: int, count: int) -> None:
        if self._pool == 2 and request in self._returning:
            # Everything computed so far comes back; what this step computes is written behind it.
            tokens = int(self._scheduler.state.live[request, at.COMPUTED])
            self._store.swap_in(self._first_slot(start), self._slots(self._returning.pop(request), tokens))

    def _alloc(self, request: int, count: int, *units: int) -> None:
        self._taken(units)

    def _alloc_run(self, request: int, start: int, count: int) -> None:
        if start != self._slid_to:  # a block that slid is there already
            self._taken(range(start, start + count))
        self._slid_to = 0

    def _taken(self, units: Sequence[int]) -> None:
        """Units that were just taken hold nothing: whatever was there before is not theirs to read."""
        if not self._poison or (self._pool == 2 and not self._store.window_token_bytes):
            return  # the second pool is the host tier
        self._poisoned.difference_update((self._pool, unit) for unit in units)
        self._store.poison(np.array(units, np.int64), window=self._pool == 2)

    def _free_units(self) -> list[tuple[int, list[int]]]:
        """Pool and numbers of the units that hold nothing anybody may read."""
        state = self._scheduler.state
        if not self._store.paged:
            count = int(state.runs.tally[run_pool.RUNS])
            runs = zip(state.runs.starts[:count].tolist(), state.runs.lengths[:count].tolist(), strict=True)
            return [(1, [unit for start, length in runs for unit in range(start, start + length)])]
        pages = state.pages
        unused = (pages.node[:, page_pool.REF] == 0) & (pages.content == 0)
        if not pages.tally[page_pool.PLAIN]:
            unused &= pages.more[: len(unused), page_pool.MARK] & page_pool.HELD == 0
        free = [(1, [unit for unit in np.flatnonzero(unused).tolist() if 1 <= unit <= state.config[at.CAPACITY_UNITS]])]
        if state.config[at.WINDOW_OWN]:
            free.append((2, state.window[: state.tally[at.WINDOW_SPARE]].tolist()))
        return free

"""What the allocator's decisions mean for keys and values: the copies that a journal stands for, done in its order.

A relocation copies a block, a compaction every block that slides, a fork the part of a page that it shares, a retained
prefix its region, a swap what goes to the host tier and what comes back. In journal order each of them reads what the
one before left, and the model writes only after all of them.

Invariant: after `apply`, what a table or block of the scheduler names holds the keys and values of the tokens that the
scheduler counts as computed. With `poison`, every unit that was taken holds NaN where nothing was copied, and so does
every unit that is free.
"""

from __future__ import annotations

from collections.abc import Callable

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
Handler = Callable[..., None]
_COUNTERS = (at.RELOCATIONS, at.COMPACTIONS, at.COPIED_TOKENS, at.SWAPPED_OUT_TOKENS, at.SWAPPED_IN_TOKENS)


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
        self._copies: dict[int, int] = {}  # tokens that a request finds in a region
        self._pool = 1
        if poison:
            self.poison_free()

    def apply(self, words: Words) -> None:
        """Do what the journal of a schedule stands for; a journal without a copy costs one look at the counters."""
        counters = self._scheduler.state.tally[list(_COUNTERS)]
        if not self._poison and np.array_equal(counters, self._seen):
            return
        self._seen = counters
        found = iterate(words)
        # What a block held when it slid, of a request that lost it to the host tier in the same schedule.
        self._kept.update((fields[0], fields[1]) for code, fields in found if code == entries.COMMIT)
        for index, (code, fields) in enumerate(found):
            handler = _HANDLERS.get(code)
            if handler is not None:
                handler(self, *fields)
            if code == entries.FREE_RUN and self._slides(found, index):
                self._slide(found[index : index + 2])
            elif self._poison and code in (entries.ALLOC, entries.ALLOC_RUN) and not self._slides(found, index - 1):
                self._taken(code, fields)

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

    @staticmethod
    def _slides(found: list[tuple[int, list[int]]], index: int) -> bool:
        """Whether a block is given back at `index` only to be taken again, further down: that is a compaction."""
        if index < 0 or found[index][0] != entries.FREE_RUN or index + 1 >= len(found):
            return False
        code, fields = found[index + 1]
        return code == entries.ALLOC_RUN and fields[0] == found[index][1][0] and fields[2] == found[index][1][2]

    def _slide(self, pair: list[tuple[int, list[int]]]) -> None:
        (_, (request, source, _)), (_, (_, target, _)) = pair
        computed = self._kept.get(request, int(self._scheduler.state.live[request, at.COMPUTED]))
        self._store.move("compaction", self._first_slot(source), self._first_slot(target), computed)

    def _use_pool(self, pool: int) -> None:
        self._pool = pool

    def _relocate(self, request: int, source: int, old: int, target: int, new: int, tokens: int) -> None:
        self._store.move("relocation", self._first_slot(source), self._first_slot(target), tokens)

    def _copy(self, request: int, source: int, target: int, tokens: int) -> None:
        self._store.move("fork", self._first_slot(source), self._first_slot(target), tokens)

    def _admit(self, request: int, hit_tokens: int, lookup_tokens: int) -> None:
        if hit_tokens and not self._store.paged:
            self._copies[request] = hit_tokens

    def _assign_run(self, request: int, start: int, count: int) -> None:
        """A block that is there: with the prefix of a region, or with what comes back; or a block in the host tier."""
        if self._pool == 2:
            units = self._leaving.pop(request)
            slots = self._slots(units, self._kept.pop(request))
            self._store.swap_out(slots, self._first_slot(start))
        elif request in self._copies:
            region = self._scheduler.region_of(request)
            tokens = self._copies.pop(request)
            self._store.move("prefix", self._first_slot(region), self._first_slot(start), tokens)

    def _offload(self, request: int, count: int, *units: int) -> None:
        self._leaving[request] = np.array(units, np.int64)

    def _onboard(self, request: int, count: int, *units: int) -> None:
        self._returning[request] = np.array(units, np.int64)

    def _free_run(self, request: int, start: int, count: int) -> None:
        if self._pool == 2 and request in self._returning:
            # Everything computed so far comes back; what this step computes is written behind it.
            tokens = int(self._scheduler.state.live[request, at.COMPUTED])
            self._store.swap_in(self._first_slot(start), self._slots(self._returning.pop(request), tokens))

    def _taken(self, code: int, fields: list[int]) -> None:
        """Units that were just taken hold nothing: whatever was there before is not theirs to read."""
        if self._pool == 2 and not self._store.window_token_bytes:
            return  # the host tier
        units = range(fields[1], fields[1] + fields[2]) if code == entries.ALLOC_RUN else fields[2:]
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


_HANDLERS: dict[int, Handler] = {
    entries.USE_POOL: Moves._use_pool,
    entries.RELOCATE: Moves._relocate,
    entries.COPY: Moves._copy,
    entries.ADMIT: Moves._admit,
    entries.ASSIGN_RUN: Moves._assign_run,
    entries.OFFLOAD: Moves._offload,
    entries.ONBOARD: Moves._onboard,
    entries.FREE_RUN: Moves._free_run,
}

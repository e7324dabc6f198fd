"""The contiguous first-fit allocator by itself: one block a request, grown in place or moved.

    pool = ContiguousAllocator(ContiguousConfig(64))
    pool.allocate(1, 8)
    pool.extend(1, 4)           in place if the next run is free, otherwise a new block of 12 must be found
    pool.release(1)

Purpose: the pool of the scheduler, one call at a time, for tests, scenarios and whoever studies the policy. The same
kernels do the work. Invariant: blocks and free runs tile 1..capacity; a refusal changes nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators import run_pool as at
from kvmon.allocators.checks import check_run_pool
from kvmon.allocators.config import ContiguousConfig
from kvmon.allocators.journal import ALLOC_RUN, ASSIGN_RUN, FREE_RUN, RELOCATE, RESERVE, put2, put3, put6
from kvmon.allocators.own_journal import OwnJournal
from kvmon.allocators.refusal import Contiguity, Reason, Refusal
from kvmon.errors import ConfigError, InvariantError

__all__ = ["ContiguousAllocator"]

_MOST_ENTRY_WORDS = 24


class ContiguousAllocator:
    """Units 1..capacity handed out in blocks; see `run_pool` for the policy."""

    def __init__(self, config: ContiguousConfig, *, journal: bool = False) -> None:
        self.config = config
        self.pool = at.new_run_pool(config.capacity_units, 16)
        self._journal = OwnJournal(journal)
        self._blocks: dict[int, tuple[int, int]] = {}

    @property
    def capacity_units(self) -> int:
        """Units in all."""
        return self.config.capacity_units

    @property
    def free_units(self) -> int:
        """Free units, wherever they lie (F)."""
        return int(self.pool.tally[at.FREE])

    @property
    def evictable_units(self) -> int:
        """Always 0: a block keeps nothing when its request is gone."""
        return 0

    @property
    def largest_free_units(self) -> int:
        """The longest free run (G)."""
        return at.largest_run(self.pool)

    def free_runs(self) -> npt.NDArray[np.int64]:
        """First unit and units of each free run, by address (n, 2)."""
        count = int(self.pool.tally[at.RUNS])
        return np.stack([self.pool.starts[:count], self.pool.lengths[:count]], axis=1)

    def block_of(self, request: int) -> tuple[int, int] | None:
        """First unit and units of the block of `request`; None when it holds none."""
        return self._blocks.get(request)

    def units_of(self, request: int) -> npt.NDArray[np.int64]:
        """Units of `request` in the order of its tokens."""
        start, units = self._blocks.get(request, (0, 0))
        return np.arange(start, start + units, dtype=np.int64)

    def probe(self, units: int) -> Refusal | None:
        """Why a block of `units` could not be given now; None when it could."""
        if at.first_fit(self.pool, units) < self.pool.tally[at.RUNS]:
            return None
        if units > self.capacity_units:
            reason = Reason.NEVER_FITS
        elif self.free_units < units:
            reason = Reason.EXHAUSTED
        else:
            reason = Reason.NO_CONTIGUOUS_RUN
        return Refusal(reason, units, self.free_units, 0, self.largest_free_units, Contiguity.REQUIRED)

    def allocate(self, request: int, units: int) -> Refusal | None:
        """Give `request` a block of `units`, or say why not and change nothing."""
        _check_units(request, units)
        if request in self._blocks:
            raise ConfigError(f"request {request} holds a block already: extend it or release it first")
        refusal = self.probe(units)
        if refusal is not None:
            return refusal
        self._make_room()
        start = at.take_run(self.pool, at.first_fit(self.pool, units), units)
        self._blocks[request] = (start, units)
        if self._journal.wanted:
            journal = self._journal.kernel_state
            put3(journal, ALLOC_RUN, request, start, units)
            put3(journal, ASSIGN_RUN, request, start, units)
            put2(journal, RESERVE, request, units * self.config.unit_tokens)
        return None

    def extend(self, request: int, units: int, used_tokens: int = 0) -> Refusal | None:
        """Grow the block of `request` by `units`: in place if the next run is free, otherwise into a new block.

        A move needs the new block while the old one is held, and copies `used_tokens`. A refusal names the size of the
        new block and changes nothing.
        """
        _check_units(request, units)
        if request not in self._blocks:
            raise ConfigError(f"request {request} holds no block: allocate one first")
        start, have = self._blocks[request]
        self._make_room()
        journal = self._journal.kernel_state
        next_run = at.run_at(self.pool, start + have)
        if next_run < self.pool.tally[at.RUNS] and self.pool.lengths[next_run] >= units:
            at.take_run(self.pool, next_run, units)
            self._blocks[request] = (start, have + units)
            if self._journal.wanted:
                put3(journal, ALLOC_RUN, request, start + have, units)
                put3(journal, ASSIGN_RUN, request, start + have, units)
                put2(journal, RESERVE, request, (have + units) * self.config.unit_tokens)
            return None
        refusal = self.probe(have + units)
        if refusal is not None:
            return refusal
        moved = at.take_run(self.pool, at.first_fit(self.pool, have + units), have + units)
        at.give_run(self.pool, start, have)
        self._blocks[request] = (moved, have + units)
        if self._journal.wanted:
            put3(journal, ALLOC_RUN, request, moved, have + units)
            put6(journal, RELOCATE, request, start, have, moved, have + units, used_tokens)
            put3(journal, FREE_RUN, request, start, have)
            put3(journal, ASSIGN_RUN, request, moved, have + units)
            put2(journal, RESERVE, request, (have + units) * self.config.unit_tokens)
        return None

    def release(self, request: int) -> None:
        """Give back the block of `request`."""
        block = self._blocks.pop(request, None)
        if block is None:
            return
        at.give_run(self.pool, *block)
        if self._journal.wanted:
            self._journal.make_room(_MOST_ENTRY_WORDS)
            put3(self._journal.kernel_state, FREE_RUN, request, *block)

    def drain(self) -> npt.NDArray[np.int64]:
        """The journal since the last drain; empty when it is off."""
        return self._journal.drain()

    def check(self) -> None:
        """Walk every invariant; raises InvariantError."""
        check_run_pool(self.pool)
        pieces = sorted([*self._blocks.values(), *map(tuple, self.free_runs().tolist())])
        end = 1
        for start, units in pieces:
            if start != end:
                raise InvariantError(f"units {end}..{start - 1} belong to nobody or to two")
            end = start + units
        if end != self.capacity_units + 1:
            raise InvariantError(f"blocks and free runs end at unit {end - 1} of {self.capacity_units}")

    def clone(self, capacity_units: int | None = None) -> ContiguousAllocator:
        """An empty allocator of the same policy at the same or another size."""
        config = self.config if capacity_units is None else self.config.resized(capacity_units)
        return ContiguousAllocator(config, journal=self._journal.wanted)

    def _make_room(self) -> None:
        self._journal.make_room(_MOST_ENTRY_WORDS)
        if len(self._blocks) + 3 >= len(self.pool.starts):
            more = np.zeros(len(self.pool.starts), np.int64)
            self.pool = at.RunPool(
                np.concatenate([self.pool.starts, more]), np.concatenate([self.pool.lengths, more]), self.pool.tally
            )


def _check_units(request: int, units: int) -> None:
    if request < 1:
        raise ConfigError(f"request {request} is no number from 1")
    if units < 1:
        raise ConfigError(f"{units} units is no allocation: ask for at least 1")

"""The contiguous allocator by itself: one block a request, placed by first fit, best fit or buddies, grown or moved.

    pool = ContiguousAllocator(ContiguousConfig(64))
    pool.allocate(1, 8)
    pool.extend(1, 4)           in place if the next run is free, otherwise a new block of 12 must be found
    pool.release(1)
    pool.compact()              every block slides down, all that is free becomes one run

Purpose: the pool of the scheduler, one call at a time, for tests, scenarios and whoever studies the policy. The same
kernels do the work. A buddy pool grants the next power of two, so a block may have more units than were asked for, and
grows into them first. Invariant: blocks and free runs tile 1..capacity; a refusal changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kvmon.allocators import run_pool as at
from kvmon.allocators.checks import check_run_pool
from kvmon.allocators.config import PLACEMENTS, ContiguousConfig
from kvmon.allocators.journal import (
    ALLOC_RUN,
    ASSIGN_RUN,
    COMPACT,
    COPY,
    COPY_SLIDE,
    FREE_RUN,
    RELOCATE,
    RESERVE,
    put2,
    put3,
    put5,
    put6,
)
from kvmon.allocators.own_journal import OwnJournal
from kvmon.allocators.refusal import Contiguity, Reason, Refusal
from kvmon.errors import ConfigError, InvariantError

__all__ = ["ContiguousAllocator"]

_MOST_ENTRY_WORDS = 24


class ContiguousAllocator:
    """Units 1..capacity handed out in blocks; see `run_pool` for the policy."""

    def __init__(self, config: ContiguousConfig, *, journal: bool = False) -> None:
        self.config = config
        self.pool = at.new_run_pool(config.capacity_units, 16, PLACEMENTS.index(config.placement))
        self._journal = OwnJournal(journal)
        self._blocks: dict[int, tuple[int, int]] = {}
        self._asked: dict[int, int] = {}

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
        """The longest free run, in a buddy pool the largest free block (G)."""
        return at.largest_block(self.pool)

    def free_runs(self) -> npt.NDArray[np.int64]:
        """First unit and units of each free run, in a buddy pool of each free block, by address (n, 2)."""
        count = int(self.pool.tally[at.RUNS])
        return np.stack([self.pool.starts[:count], self.pool.lengths[:count]], axis=1)

    def block_of(self, request: int) -> tuple[int, int] | None:
        """First unit and units of the block that `request` was granted; None when it holds none."""
        return self._blocks.get(request)

    def units_of(self, request: int) -> npt.NDArray[np.int64]:
        """Units of `request` in the order of its tokens."""
        start, units = self._blocks.get(request, (0, 0))
        return np.arange(start, start + units, dtype=np.int64)

    def probe(self, units: int) -> Refusal | None:
        """Why a block for `units` could not be given now; None when it could. The need is what would be granted."""
        if at.find_run(self.pool, units) < self.pool.tally[at.RUNS]:
            return None
        need = at.granted_units(self.pool, units)
        if need > self.capacity_units:
            reason = Reason.NEVER_FITS
        elif self.free_units < need:
            reason = Reason.EXHAUSTED
        else:
            reason = Reason.NO_CONTIGUOUS_RUN
        return Refusal(reason, need, self.free_units, 0, self.largest_free_units, Contiguity.REQUIRED)

    def allocate(self, request: int, units: int) -> Refusal | None:
        """Give `request` a block of at least `units`, or say why not and change nothing."""
        _check_units(request, units)
        if request in self._blocks:
            raise ConfigError(f"request {request} holds a block already: extend it or release it first")
        refusal = self.probe(units)
        if refusal is not None:
            return refusal
        self._make_room()
        self._gain(request, *self._place(units))
        self._asked[request] = units
        return None

    def extend(self, request: int, units: int, used_tokens: int = 0) -> Refusal | None:
        """Grow what `request` asked for by `units`: in place if its block already has them or the next run is free,
        otherwise into a new block.

        A move needs the new block while the old one is held, and copies `used_tokens`. A refusal names the size of the
        new block and changes nothing.
        """
        _check_units(request, units)
        if request not in self._blocks:
            raise ConfigError(f"request {request} holds no block: allocate one first")
        start, have = self._blocks[request]
        asked = self._asked[request] + units
        more = at.granted_units(self.pool, asked) - have
        if more > 0:
            next_run = at.grows_in_place(self.pool, start, have, more)
            if next_run < self.pool.tally[at.RUNS]:
                self._make_room()
                self._gain(request, at.take_block(self.pool, next_run, more), more)
            else:
                refusal = self.probe(asked)
                if refusal is not None:
                    return refusal
                self._make_room()
                self._relocate(request, asked, used_tokens)
        self._asked[request] = asked
        return None

    def release(self, request: int) -> None:
        """Give back the block of `request`."""
        block = self._blocks.pop(request, None)
        if block is None:
            return
        del self._asked[request]
        at.give_block(self.pool, *block)
        self._write_run(FREE_RUN, request, *block)

    def compact(self, used_tokens: Mapping[int, int] | None = None) -> int:
        """Slide all blocks together in the order of their addresses; returns how many units moved.

        A moved block copies the `used_tokens` of its request, all of its tokens where they are not said. Raises
        ConfigError for a buddy pool, whose blocks have their places.
        """
        if self.config.placement == "buddy":
            raise ConfigError("buddy blocks cannot be slid together: choose first-fit or best-fit")
        used_tokens = used_tokens or {}
        end, moved_units, copied_tokens = 1, 0, 0
        for request, (start, units) in sorted(self._blocks.items(), key=lambda item: item[1]):
            if start != end:
                self._blocks[request] = (end, units)
                moved_units += units
                tokens = used_tokens.get(request, units * self.config.unit_tokens)
                copied_tokens += tokens
                self._journal.make_room(_MOST_ENTRY_WORDS)
                if self._journal.wanted:
                    put5(self._journal.kernel_state, COPY, request, start, end, tokens, COPY_SLIDE)
                self._write_run(FREE_RUN, request, start, units)
                self._write_run(ALLOC_RUN, request, end, units)
                self._write_run(ASSIGN_RUN, request, end, units)
            end += units
        if moved_units:
            at.gather_free(self.pool)
            self._journal.make_room(_MOST_ENTRY_WORDS)
            if self._journal.wanted:
                put2(self._journal.kernel_state, COMPACT, moved_units, copied_tokens)
        return moved_units

    def drain(self) -> npt.NDArray[np.int64]:
        """The journal since the last drain; empty when it is off."""
        return self._journal.drain()

    def check(self) -> None:
        """Walk every invariant; raises InvariantError."""
        check_run_pool(self.pool)
        for request, (_, units) in self._blocks.items():
            if units != at.granted_units(self.pool, self._asked[request]):
                raise InvariantError(f"request {request} asked for {self._asked[request]} units and holds {units}")
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

    def _place(self, units: int) -> tuple[int, int]:
        """Take a block for `units` where the placement says, which has been asked; its first unit and units."""
        granted = at.granted_units(self.pool, units)
        return at.take_block(self.pool, at.find_run(self.pool, units), units), granted

    def _gain(self, request: int, start: int, units: int) -> None:
        """`request` has these units now, behind those that it had."""
        first, have = self._blocks.get(request, (start, 0))
        self._blocks[request] = (first, have + units)
        self._write_run(ALLOC_RUN, request, start, units)
        self._write_run(ASSIGN_RUN, request, start, units)
        self._write_reserve(request)

    def _relocate(self, request: int, asked: int, used_tokens: int) -> None:
        start, have = self._blocks[request]
        moved, units = self._place(asked)
        at.give_block(self.pool, start, have)
        self._blocks[request] = (moved, units)
        self._write_run(ALLOC_RUN, request, moved, units)
        if self._journal.wanted:
            put6(self._journal.kernel_state, RELOCATE, request, start, have, moved, units, used_tokens)
        self._write_run(FREE_RUN, request, start, have)
        self._write_run(ASSIGN_RUN, request, moved, units)
        self._write_reserve(request)

    def _write_run(self, code: int, request: int, start: int, units: int) -> None:
        self._journal.make_room(_MOST_ENTRY_WORDS)
        if self._journal.wanted:
            put3(self._journal.kernel_state, code, request, start, units)

    def _write_reserve(self, request: int) -> None:
        if self._journal.wanted:
            put2(self._journal.kernel_state, RESERVE, request, self._blocks[request][1] * self.config.unit_tokens)

    def _make_room(self) -> None:
        """Be ready for one block more, which a relocation holds beside its old one."""
        needed = at.room_for_blocks(self.capacity_units, len(self._blocks) + 1, int(self.pool.tally[at.POLICY]))
        if needed > len(self.pool.starts):
            more = np.zeros(needed, np.int64)
            self.pool = at.RunPool(
                np.concatenate([self.pool.starts, more]), np.concatenate([self.pool.lengths, more]), self.pool.tally
            )


def _check_units(request: int, units: int) -> None:
    if request < 1:
        raise ConfigError(f"request {request} is no number from 1")
    if units < 1:
        raise ConfigError(f"{units} units is no allocation: ask for at least 1")

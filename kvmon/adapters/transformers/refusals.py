"""Refused stores: once a wait of a request, with what it needed, what there was, why, and what became of it.

The engine asks again in every step. A refusal is told when it is known what the engine does about it: before anything
that it leads to, else when the step closes. Earlier, pages that were granted a moment before would pass for reserved,
because what the step writes into them is not written yet. A request whose wait was told, and that is lost
because nobody can be scheduled any more, is told once more as aborted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Any

from kvmon.adapters.transformers.layout import Group, Layout
from kvmon.adapters.transformers.live import Live
from kvmon.events.kinds import Contiguity, FailureOutcome, FailureReason
from kvmon.probe import PoolProbe

__all__ = ["Refusals"]

_NONE = int(Contiguity.NONE)
_NOBODY = ""  # a request that holds nothing, to ask allocators with


@dataclass
class _Refusal:
    """Units: needed at once, free, evictable, and what could be granted to the groups that need any."""

    one: Live
    need: int
    free: int
    evictable: int
    largest: int
    reason: FailureReason


class Refusals:
    """Watches one cache; `need` can be asked for without anybody being refused."""

    def __init__(self, cache: Any, layout: Layout, pool: PoolProbe) -> None:
        self._cache, self._layout, self._pool = cache, layout, pool
        self._pending: list[_Refusal] = []
        self._refused: dict[int, tuple[Live, Any, int]] = {}

    def begin(self) -> None:
        """A batch is about to be prepared."""
        self._refused.clear()

    def refused(self, one: Live, state: Any, tokens: int) -> None:
        """A request was refused room for `tokens` more."""
        self._refused[one.number] = (one, state, tokens)
        if not one.refused:
            one.refused = True
            self._pending.append(self._look(one, state, tokens))

    def kept_out(self, one: Live, state: Any, tokens: int) -> None:
        """A waiting request was not even asked for, because of the safety margin."""
        if not one.refused:
            one.refused = True
            refusal = self._look(one, state, tokens)
            refusal.reason = FailureReason.WATERMARK
            self._pending.append(refusal)

    def tell(self, victims: frozenset[int] = frozenset()) -> None:
        """What is pending happened, and `victims` lose their memory for it."""
        pending, self._pending = self._pending, []
        for refusal in pending:
            outcome = FailureOutcome.WAITS
            if victims:
                itself = refusal.one.number in victims
                outcome = FailureOutcome.PREEMPTED_ITSELF if itself else FailureOutcome.PREEMPTED_ANOTHER
            self._say(refusal, outcome)

    def gave_up(self) -> None:
        """Nobody can be scheduled and nobody offloaded: the engine ends, and whoever was refused is lost."""
        self._pending.clear()
        for one, state, tokens in self._refused.values():
            self._say(self._look(one, state, tokens), FailureOutcome.ABORTED)
        self._refused.clear()

    def need(self, name: str, past: int, tokens: int) -> int:
        """Units that a request needs for so many tokens more."""
        return sum(self._blocks(group, name, past, tokens) * group.slices for group in self._layout.groups)

    def _blocks(self, group: Group, name: str, past: int, tokens: int) -> int:
        return int(group.allocator.needs_new_blocks(name, past, tokens))

    def _look(self, one: Live, state: Any, tokens: int) -> _Refusal:
        pool, groups = self._cache.pool, self._layout.groups
        past = int(state.current_len())
        needs = [self._blocks(group, state.request_id, past, tokens) for group in groups]
        spare = [int(pool.count_free_blocks(group.index)) for group in groups]
        sectors = len(pool.free_sectors)
        whole = [self._blocks(group, _NOBODY, 0, max(past + tokens, len(state.initial_tokens))) for group in groups]
        cached = [len(group.allocator.ledger.cached_blocks) for group in groups]
        unbound = sectors * self._layout.sector_units
        refusal = _Refusal(
            one,
            _units(groups, needs),
            self._layout.free_units(pool),
            _units(groups, cached),
            unbound + sum(n * g.slices for g, n, need in zip(groups, spare, needs, strict=True) if need),
            FailureReason.EXHAUSTED,
        )
        if (
            sum(ceil(n / group.blocks_per_sector) for group, n in zip(groups, whole, strict=True))
            > self._layout.sectors
        ):
            refusal.need, refusal.reason = _units(groups, whole), FailureReason.NEVER_FITS
        elif self._fits_after_eviction(needs, spare, cached, sectors):
            refusal.reason = FailureReason.EVICTABLE_NOT_RECLAIMED
        elif refusal.need <= refusal.free + refusal.evictable:
            refusal.reason = FailureReason.PARTITION_FULL  # free blocks in sectors that another group holds in part
        return refusal

    def _fits_after_eviction(self, needs: list[int], spare: list[int], cached: list[int], sectors: int) -> bool:
        """Whether there is room once all cached blocks are free and sectors without any other go back."""
        groups = self._layout.groups
        if len(groups) == 1:
            return needs[0] <= spare[0] + cached[0] + sectors * groups[0].blocks_per_sector
        left = []
        for group, loose, idle in zip(groups, spare, cached, strict=True):
            size = group.blocks_per_sector
            trees = self._cache.pool._free_blocks[group.index].trees
            there = Counter({root: len(leaves) for root, leaves in trees.items()})
            there.update(block // size for block in group.allocator.ledger.cached_blocks)
            whole = sum(1 for count in there.values() if count == size)
            sectors += whole
            left.append(loose + idle - whole * size)
        missing = (
            ceil(max(need - loose, 0) / group.blocks_per_sector)
            for group, need, loose in zip(groups, needs, left, strict=True)
        )
        return sum(missing) <= sectors

    def _say(self, refusal: _Refusal, outcome: FailureOutcome) -> None:
        if refusal.one.ended:
            return
        self._pool.failed(
            refusal.one.number,
            refusal.need,
            _NONE,
            refusal.free,
            refusal.evictable,
            refusal.largest,
            int(refusal.reason),
            int(outcome),
        )


def _units(groups: tuple[Group, ...], blocks: list[int]) -> int:
    return sum(group.slices * count for group, count in zip(groups, blocks, strict=True))

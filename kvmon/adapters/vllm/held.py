"""Blocks that no request holds any more and the pool does not have back yet: frees that wait for a transfer.

With a KV connector a request can end, or be preempted, while its blocks are still being read or written; they are given
back later. Without a connector none of this is reached. Units are those of `blocks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kvmon.probe import Patches, PoolProbe

__all__ = ["Held"]


class Held:
    """Which units are held for whom, and the hooks that learn it."""

    def __init__(self, scheduler: Any, pool: PoolProbe) -> None:
        self._scheduler, self._pool = scheduler, pool
        self.units: Counter[int] = Counter()  # unit -> frees that are still to come
        self.deferred: set[int] = set()  # those that nobody else refers to
        self._ended: set[str] = set()  # requests that the scheduler keeps for the sake of their blocks
        self._draining = False
        self._parked = len(getattr(scheduler, "deferred_frees", ()))

    @staticmethod
    def may_happen(scheduler: Any) -> bool:
        """Whether this scheduler can put a free off."""
        return getattr(scheduler, "connector", None) is not None or bool(getattr(scheduler, "defer_block_free", False))

    def install(self, patches: Patches) -> None:
        """Learn when what was put off is given back."""
        patches.hook(self._scheduler, "_free_blocks", before=self._before_free, after=self._after_drain)
        if hasattr(self._scheduler, "_drain_deferred_frees"):
            patches.hook(self._scheduler, "_drain_deferred_frees", before=self._before_drain, after=self._after_drain)

    def after_end(self, request: Any) -> None:
        """A request ended or was preempted: what of it the pool does not have back is held from now on."""
        rid = request.request_id
        if request.status.name.startswith("FINISHED") and rid in self._scheduler.requests:
            self._ended.add(rid)
            groups = self._scheduler.kv_cache_manager.coordinator.single_type_managers
            self._hold(block for group in groups for block in group.req_to_blocks.get(rid, ()))
        self._look_at_parked()

    def freed(self, blocks: Sequence[Any]) -> None:
        """The pool has these references back."""
        pool, units, deferred = self._pool, self.units, self.deferred
        for block in blocks:
            unit = block.block_id
            if not unit:
                continue
            if self._draining and units[unit]:
                units[unit] -= 1
            if unit not in deferred:
                pool.unshare_one(unit)
                self._defer(block)
            elif not units[unit]:  # the last of those that hold it
                deferred.discard(unit)
                pool.free_one(unit)
            if not units[unit]:
                del units[unit]

    def touched(self, units: Sequence[int]) -> None:
        """A hit revives units that were deferred: the references that are held count again, beside the new one."""
        revived = [unit for unit in units if unit in self.deferred]
        self.deferred.difference_update(revived)
        self._pool.share([unit for unit in revived for _ in range(self.units[unit])])

    def _hold(self, blocks: Iterable[Any]) -> None:
        for block in blocks:
            if block.block_id:
                self.units[block.block_id] += 1
                self._defer(block)

    def _defer(self, block: Any) -> None:
        """Nobody but transfers refers to it: one unit that waits, however many hold it."""
        unit, holds = block.block_id, self.units.get(block.block_id, 0)
        if holds and block.ref_cnt == holds and unit not in self.deferred:
            self.deferred.add(unit)
            self._pool.unshare([unit] * (holds - 1))
            self._pool.defer((unit,))

    def _look_at_parked(self) -> None:
        parked = getattr(self._scheduler, "deferred_frees", ())
        for fence in list(parked)[self._parked :]:
            self._hold(fence[1])
        self._parked = len(parked)

    def _before_free(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self._draining = request.request_id in self._ended
        self._ended.discard(request.request_id)

    def _before_drain(self, *args: Any, **kwargs: Any) -> None:
        self._draining = True

    def _after_drain(self, *args: Any, **kwargs: Any) -> None:
        self._draining = False
        self._look_at_parked()

"""Of an engine that is newer than kvmon knows, or shaped otherwise: steps, and how much is free. No unit, no request.

The recording says `counts`, so that nothing is concluded from what is not in it.
"""

from __future__ import annotations

import time
from typing import Any

from kvmon.adapters.transformers.layout import Layout
from kvmon.adapters.transformers.steps import CLAIMS_EVERY_NS
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["Counts"]


class Counts:
    """The steps of one processor."""

    def __init__(self, processor: Any, layout: Layout, probe: StreamProbe, pool: PoolProbe) -> None:
        self._scheduler, self._cache = processor.scheduler, processor.cache
        self._layout, self._probe, self._pool = layout, probe, pool
        self._begun = time.monotonic_ns()
        self._claims_at = 0
        self._rested = False

    def begin(self) -> None:
        """The engine looks what there is to do."""
        self._begun = time.monotonic_ns()

    def prepared(self, ready: object) -> None:
        """There is something, or not; that nobody is there is said once."""
        nobody = not (self._scheduler.active_requests or self._scheduler.waiting_requests)
        if not ready and not (nobody and self._rested):
            self._step()
        self._rested = nobody and not ready

    def updated(self, result: object = None, *args: Any, **kwargs: Any) -> None:
        """A step is over."""
        self._step()

    def _step(self) -> None:
        now = time.monotonic_ns()
        if now - self._claims_at >= CLAIMS_EVERY_NS:
            self._claims_at = now
            pool = self._cache.pool
            free = len(pool.free_sectors) * self._layout.sector_units
            free += sum(int(pool.count_free_blocks(group.index)) * group.slices for group in self._layout.groups)
            self._pool.claims(free)
        running, waiting = len(self._scheduler.active_requests), len(self._scheduler.waiting_requests)
        self._probe.step(self._begun, now - self._begun, 0, 0, 0, running, waiting)

"""Of an engine that is newer than kvmon knows, or shaped otherwise: steps, and how much is free. No unit, no request.

The recording says `counts`, so that nothing is concluded from what is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmon.adapters.counted import Counted
from kvmon.adapters.transformers.layout import Layout
from kvmon.adapters.transformers.steps import CLAIMS_EVERY_NS
from kvmon.probe import PoolProbe, StreamProbe

__all__ = ["Counts"]


class Counts:
    """The steps of one processor; `memory` is what an audit asks."""

    def __init__(
        self, processor: Any, layout: Layout, probe: StreamProbe, pool: PoolProbe, clock: Callable[[], int]
    ) -> None:
        self._scheduler, self._probe, self._pool, self._clock = processor.scheduler, probe, pool, clock
        self._layout, self._cache = layout, processor.cache
        self.memory = Counted(pool, layout.capacity_units, self._free)
        self._begun = clock()
        self._claims_at = 0
        self._rested = False

    def begin(self) -> None:
        """The engine looks what there is to do."""
        self._begun = self._clock()

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
        now = self._clock()
        self.memory.follow()
        if now - self._claims_at >= CLAIMS_EVERY_NS:
            self._claims_at = now
            self._pool.claims(self._layout.free_units(self._cache.pool))
        running, waiting = len(self._scheduler.active_requests), len(self._scheduler.waiting_requests)
        self._probe.step(self._begun, max(now - self._begun, 0), 0, 0, 0, running, waiting)

    def _free(self) -> int:
        """What could be handed out, or as soon as its content is evicted."""
        return self._layout.free_units(self._cache.pool) + self._layout.idle_units()

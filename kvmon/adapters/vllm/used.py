"""How many blocks are used, where nobody can see which: a reduced recording.

The first units stand for those that are used, so that a fold counts them right. Which they are means nothing, nor how
many came and went: the fidelity `counts` and the pool's attribute `net` keep every number back that would need it.
"""

from __future__ import annotations

from typing import Any

from kvmon.probe import PoolProbe

__all__ = ["Used"]


class Used:
    """Follows the number of used blocks of one scheduler's pool."""

    def __init__(self, scheduler: Any, pool: PoolProbe) -> None:
        self._blocks, self._pool = scheduler.kv_cache_manager.block_pool, pool
        self._capacity = int(self._blocks.num_gpu_blocks) - 1
        self._told = self._now()

    def read(self) -> int:
        """As far as it was told."""
        return self._told

    def after_update(self, *args: Any, **kwargs: Any) -> None:
        """A step is over: tell what changed in it."""
        now, told = self._now(), self._told
        if now > told:
            self._pool.alloc_run(told + 1, now - told)
        elif now < told:
            self._pool.free_run(now + 1, told - now)
        self._told = now

    def _now(self) -> int:
        return min(max(self._capacity - int(self._blocks.get_num_free_blocks()), 0), self._capacity)

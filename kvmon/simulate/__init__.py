"""Scheduler and allocators under a clock instead of a model.

Invariant: what is simulated is `kvmon.serving` itself, not a second implementation.
"""

from __future__ import annotations

from kvmon.simulate.block_cache import BlockCache, fifo_hits, lfu_hits, lru_hits
from kvmon.simulate.fitting import Fit, fit_step_time
from kvmon.simulate.infinite import InfiniteCache, infinite_cache
from kvmon.simulate.result import FullPool, Result
from kvmon.simulate.simulator import JournalSink, RecordedSteps, simulate

__all__ = [
    "BlockCache",
    "Fit",
    "FullPool",
    "InfiniteCache",
    "JournalSink",
    "RecordedSteps",
    "Result",
    "fifo_hits",
    "fit_step_time",
    "infinite_cache",
    "lfu_hits",
    "lru_hits",
    "simulate",
]

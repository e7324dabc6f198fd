"""Scheduler and allocators under a clock instead of a model.

Invariant: what is simulated is `kvmon.serving` itself, not a second implementation.
"""

from __future__ import annotations

from kvmon.simulate.infinite import InfiniteCache, infinite_cache
from kvmon.simulate.result import Result
from kvmon.simulate.simulator import JournalSink, simulate

__all__ = ["InfiniteCache", "JournalSink", "Result", "infinite_cache", "simulate"]

"""What the allocator did: units handed out, released, cached and evicted, failures by reason, lifetimes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.events import FAILURE_REASONS
from kvmon.events.totals import PoolTotal
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import Need, View
from kvmon.state.units import IDLE, LIFETIME, REUSE

__all__ = ["AllocatorCollector"]

_COUNTERS = {
    "kvmon_allocated_units_total": PoolTotal.ALLOC,
    "kvmon_cache_inserted_units_total": PoolTotal.CACHE_INSERT,
    "kvmon_cache_resets_total": PoolTotal.RESETS,
    "kvmon_migrated_tokens_total": PoolTotal.MOVED_TOKENS,
}
_HISTOGRAMS = {
    "kvmon_block_lifetime_seconds": LIFETIME,
    "kvmon_idle_before_eviction_seconds": IDLE,
    "kvmon_reuse_gap_seconds": REUSE,
}


class AllocatorCollector:
    """One pool's cumulative numbers."""

    name = "allocator"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        counters = [(CatalogFamily(name), slot) for name, slot in _COUNTERS.items()]
        failures = CatalogFamily("kvmon_allocation_failures_total")
        released, evicted = CatalogFamily("kvmon_released_units_total"), CatalogFamily("kvmon_evicted_units_total")
        histograms = [(CatalogFamily(name), which) for name, which in _HISTOGRAMS.items()]
        for rank in self._source().shown:
            counts, known, budget = rank.follower.counts, rank.follower.continuation, rank.budget
            for view in rank.pools:
                number, net = view.pool.number, view.pool.net
                for family, slot in counters if not net else ():
                    family.add(view.labels, counts.pool(number, slot), budget)
                for offset, reason in enumerate(FAILURE_REASONS):
                    failures.add((*view.labels, reason), counts.pool(number, PoolTotal.FAILED_FIRST, offset), budget)
                if known.known and not net:
                    released.add(view.labels, known.released(number), budget)
                    evicted.add(view.labels, known.evicted(number), budget)
                    for family, which in histograms:
                        family.add_histogram(view.labels, known.histogram(number, which), budget)
        yield from (*(family for family, _ in counters), failures, released, evicted)
        yield from (family for family, _ in histograms)

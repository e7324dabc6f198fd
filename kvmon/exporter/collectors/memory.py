"""Where the KV memory is: states, slots, owners, ages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import Need, PoolView, View

__all__ = ["MemoryCollector"]


class MemoryCollector:
    """One pool's memory by what it is used for."""

    name = "memory"
    needs: ClassVar[tuple[Need, ...]] = ("survey",)

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        families = {
            name: CatalogFamily(f"kvmon_{name}")
            for name in (
                "memory_bytes",
                "memory_capacity_bytes",
                "memory_used_high_bytes",
                "active_slots",
                "page_utilization_ratio",
                "owned_memory_bytes",
                "shared_memory_bytes",
                "oldest_allocation_age_seconds",
                "runs_per_sequence",
                "pool_info",
            )
        }
        for rank in self._source().shown:
            for view in rank.pools:
                pool, budget = view.pool, rank.budget
                families["memory_capacity_bytes"].add(view.labels, pool.capacity_units * pool.unit_bytes, budget)
                facts = (pool.layout, pool.contiguity, pool.tier, str(pool.unit_bytes), str(pool.unit_tokens))
                families["pool_info"].add((*view.labels, *facts), 1, budget)
            for view in rank.settled_pools:
                _states(families, view)
                if rank.follower.fidelity == "exact":
                    _owners(families, view)
        yield from families.values()


def _states(families: dict[str, CatalogFamily], view: PoolView) -> None:
    pool, labels, budget = view.pool, view.labels, view.rank.budget
    size = pool.unit_bytes
    for state, units in pool.units.items():
        families["memory_bytes"].add((*labels, state), units * size, budget)
    families["memory_used_high_bytes"].add(labels, view.marks.most_used * size, budget)
    families["shared_memory_bytes"].add(labels, pool.shared * size, budget)


def _owners(families: dict[str, CatalogFamily], view: PoolView) -> None:
    pool, labels, budget = view.pool, view.labels, view.rank.budget
    survey, slots = view.survey, view.slots
    for kind, count in (("written", slots.written), ("tail", slots.tail), ("reserved", slots.reserved)):
        families["active_slots"].add((*labels, kind), count, budget)
    families["page_utilization_ratio"].add(labels, slots.utilization, budget)
    for owner, units in survey.owners.items():
        families["owned_memory_bytes"].add((*labels, owner), units * pool.unit_bytes, budget)
    families["oldest_allocation_age_seconds"].add(labels, survey.oldest_active_seconds, budget)
    families["runs_per_sequence"].add(labels, survey.runs_per_sequence, budget)

"""Whether the books add up: the engine's claims against its capacity and against the fold, units without an owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import Need, View

__all__ = ["TrustCollector"]


class TrustCollector:
    """One pool's residual, drift and unowned units."""

    name = "trust"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        residual, drift = CatalogFamily("kvmon_residual_units"), CatalogFamily("kvmon_drift_units")
        unowned = CatalogFamily("kvmon_unowned_units")
        for rank in self._source().shown:
            state, budget = rank.follower.state, rank.budget
            for view in rank.pools:
                claims = state.claims.get(view.pool.number)
                if claims is not None:
                    residual.add(view.labels, claims.residual(view.pool.capacity_units), budget)
            for view in rank.settled_pools:
                drift.add(view.labels, state.drift.get(view.pool.number), budget)
                unowned.add(view.labels, rank.follower.unowned.get(view.pool.number), budget)
        yield from (residual, drift, unowned)

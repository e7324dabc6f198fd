"""What is wrong: the verdicts that hold in the last minute of event time, and the numbers that lead to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.diagnosis import HEALTHY, Minute
from kvmon.exporter.families import Budget, CatalogFamily
from kvmon.exporter.source import Need, View
from kvmon.state.watch import W

__all__ = ["DiagnosisCollector"]

_OF_RANK = ("recomputed_ratio", "forgotten_ratio", "stuck_seconds")


class DiagnosisCollector:
    """Verdicts by pool, and what requests paid."""

    name = "diagnosis"
    needs: ClassVar[tuple[Need, ...]] = ("diagnosis",)

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        verdict, waits = CatalogFamily("kvmon_verdict"), CatalogFamily("kvmon_memory_wait_ratio")
        lost = CatalogFamily("kvmon_memory_lost_requests")
        of_rank = {name: CatalogFamily(f"kvmon_{name}") for name in _OF_RANK}
        for rank in self._source().shown:
            now, budget = rank.diagnosis, rank.budget
            for view in rank.pools:
                minute = now.minutes.get(view.pool.number)
                if minute is None:
                    continue
                for name in now.holding[view.pool.number] or (HEALTHY,):
                    verdict.add((*view.labels, name), 1, budget)
                seconds = minute.seconds
                waits.add(view.labels, minute.waiting_s / seconds if seconds else None, budget)
                lost.add(view.labels, sum(refused.lost for refused in minute.refused.values()), budget)
                if view.pool.number == 1:
                    _of_rank(of_rank, rank.labels, minute, budget)
        yield from (verdict, waits, lost, *of_rank.values())


def _of_rank(families: dict[str, CatalogFamily], labels: tuple[str, ...], minute: Minute, budget: Budget) -> None:
    prefill, lookup = minute.total(W.PREFILL), minute.total(W.LOOKUP)
    recomputed = min(minute.total(W.LOST) / prefill, 1.0) if prefill else None
    families["recomputed_ratio"].add(labels, recomputed, budget)
    families["forgotten_ratio"].add(labels, minute.total(W.FORGOTTEN) / lookup if lookup else None, budget)
    families["stuck_seconds"].add(labels, minute.total(W.STUCK_NS) / 1e9, budget)

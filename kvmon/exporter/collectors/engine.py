"""Is each engine there, and can what is said about it be trusted: up, stalled, heartbeat, converging, lost, lag.

A dead engine keeps `kvmon_engine_up 0` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.follow.stream import Life
from kvmon.exporter.source import Need, View

__all__ = ["EngineCollector"]


class EngineCollector:
    """One rank's life and how well it is followed."""

    name = "engine"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        up = CatalogFamily("kvmon_engine_up")
        stalled = CatalogFamily("kvmon_engine_stalled")
        heartbeat = CatalogFamily("kvmon_heartbeat_age_seconds")
        converging = CatalogFamily("kvmon_converging")
        lag = CatalogFamily("kvmon_reader_lag_bytes")
        info = CatalogFamily("kvmon_engine_info")
        read = CatalogFamily("kvmon_events_read_total")
        lost = CatalogFamily("kvmon_events_lost_total")
        ranks = self._source().ranks
        for rank in ranks:  # on a page that is full, that an engine is down comes before anything about another one
            life = rank.life
            up.add(rank.labels, None if life is Life.UNKNOWN else float(life is not Life.DEAD), rank.budget)
        for rank in ranks:
            labels, budget, follower = rank.labels, rank.budget, rank.follower
            life = rank.life
            if life is Life.DEAD:
                continue
            age = follower.heartbeat_age_ns
            heartbeat.add(labels, None if age is None else age / 1e9, budget)
            lag.add(labels, follower.backlog_bytes, budget)
            if not rank.shown:
                continue
            stalled.add(labels, float(life is Life.STALLED), budget)
            converging.add(labels, float(not rank.converged), budget)
            config = follower.state.config
            facts = (str(config.get(name, "")) for name in ("engine_version", "adapter", "adapter_version"))
            info.add((*labels, *facts, follower.fidelity), 1, budget)
            read.add(labels, follower.continuation.records_read, budget)
            lost.add(labels, follower.lost_events, budget)
        yield from (up, stalled, heartbeat, converging, lag, info, read, lost)

"""What the traffic asked for and got: requests, tokens, preemptions, prefix hits, waits for memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np

from kvmon.catalog import ENUMERATIONS
from kvmon.events import RequestState
from kvmon.events.totals import StreamTotal
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import Need, RankView, View

__all__ = ["RequestsCollector"]

_REASONS = ENUMERATIONS["kvmon_requests_finished_total", "reason"]
_COUNTERS = {
    "kvmon_requests_arrived_total": StreamTotal.ARRIVED,
    "kvmon_preemptions_total": StreamTotal.PREEMPTED,
    "kvmon_recomputed_tokens_total": StreamTotal.LOST_TOKENS,
    "kvmon_prefix_lookup_tokens_total": StreamTotal.LOOKUP_TOKENS,
    "kvmon_prefix_hit_tokens_total": StreamTotal.HIT_TOKENS,
    "kvmon_prefill_tokens_total": StreamTotal.PREFILL_TOKENS,
    "kvmon_decode_tokens_total": StreamTotal.DECODE_TOKENS,
    "kvmon_steps_total": StreamTotal.STEPS,
}


class RequestsCollector:
    """One rank's demand and progress."""

    name = "requests"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, source: Callable[[], View]) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        requests, need = CatalogFamily("kvmon_requests"), CatalogFamily("kvmon_head_need_bytes")
        finished = CatalogFamily("kvmon_requests_finished_total")
        seconds, waits = CatalogFamily("kvmon_step_seconds_total"), CatalogFamily("kvmon_kv_wait_seconds")
        counters = {CatalogFamily(name): slot for name, slot in _COUNTERS.items()}
        for rank in self._source().shown:
            labels, budget, follower = rank.labels, rank.budget, rank.follower
            counts = follower.counts
            _now(requests, rank)
            for view in rank.pools:
                units = view.head_need
                need.add(view.labels, None if units is None else units * view.pool.unit_bytes, budget)
            for family, slot in counters.items():
                family.add(labels, counts.stream(slot), budget)
            seconds.add(labels, counts.stream(StreamTotal.STEP_NS) / 1e9, budget)
            for offset, reason in enumerate(_REASONS):
                finished.add((*labels, reason), counts.stream(StreamTotal.FINISHED_FIRST, offset), budget)
            if follower.continuation.known:
                waits.add_histogram(labels, follower.continuation.waits(), budget)
        yield from (requests, need, finished, seconds, waits, *counters)


def _now(requests: CatalogFamily, rank: RankView) -> None:
    state = rank.follower.state
    step = state.last_step
    if step is not None:
        requests.add((*rank.labels, "waiting"), step.waiting, rank.budget)
        requests.add((*rank.labels, "running"), step.running, rank.budget)
    if rank.converged and rank.follower.fidelity == "exact":
        live = state.requests
        preempted = np.count_nonzero((live.id > 0) & (live.state == RequestState.PREEMPTED))
        requests.add((*rank.labels, "preempted"), int(preempted), rank.budget)

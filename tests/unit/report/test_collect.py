"""From a folded stream to its view: the view says what the state says, and nothing that is not known."""

from __future__ import annotations

from kvmon.events import Contiguity, FailureOutcome, FailureReason
from kvmon.events.totals import PoolTotal, StreamTotal
from kvmon.report import Liveness, Rates, stream_view


class FixedTotals:
    """Counts that say which slot they are."""

    def stream(self, slot: StreamTotal, offset: int = 0) -> int:
        """Its number, in the thousands."""
        return 1000 + slot + offset

    def pool(self, number: int, slot: PoolTotal, offset: int = 0) -> int:
        """Only two reasons ever occurred."""
        return {1: 5, 2: 11}.get(offset, 0) if slot == PoolTotal.FAILED_FIRST else 0


def test_the_view_has_the_numbers_of_the_state(contiguous) -> None:  # type: ignore[no-untyped-def]
    """Units, placement, slots, failure and queue of the view are those of the pool and the last step."""
    for request, start in ((1, 1), (2, 6), (3, 11)):
        contiguous.probe.arrived(request, contiguous.time, 4, class_id=request)
        contiguous.probe.admitted(request)
        contiguous.pool.alloc_run(start, 5)
        contiguous.pool.assign_run(request, start, 5)
        contiguous.probe.progress(request, 4, False)
    contiguous.step(3)
    contiguous.probe.finished(2, 1, 1)
    contiguous.pool.free_run(6, 5)
    contiguous.probe.arrived(4, contiguous.time, 7)
    reason, outcome = FailureReason.NO_CONTIGUOUS_RUN, FailureOutcome.WAITS
    contiguous.pool.failed(4, 7, Contiguity.REQUIRED, 10, 0, 5, reason, outcome)
    contiguous.step(2, 1, 7)
    state = contiguous.step(2, 1, 7, seconds=2.0)
    view = stream_view("e", 3, state, Liveness("alive"), totals=FixedTotals(), rates=Rates(2.0, 3.0))
    (pool,) = view.pools
    assert (view.engine, view.rank, view.running, view.waiting, view.head_need) == ("e", 3, 2, 1, 7)
    assert pool.units == state.pools[1].units
    assert (pool.free, pool.largest_free, pool.external_fragmentation) == (10, 5, 0.5)
    assert (pool.lost_size, pool.lost) == (7, 1.0)
    assert pool.slots == {"written": 8, "tail": 0, "reserved": 2}
    assert pool.failures == {"exhausted": 5, "no_contiguous_run": 11}
    assert pool.last_failure is not None
    assert (pool.last_failure.age_seconds, pool.last_failure.request) == (2.0, 4)
    assert [(holder.request, holder.class_id, holder.units) for holder in pool.holders] == [(1, 1, 5), (3, 3, 5)]
    assert view.counters is not None
    assert view.counters["preempted"] == 1000 + StreamTotal.PREEMPTED
    assert view.prefix_hit_ratio == (1000 + StreamTotal.HIT_TOKENS) / (1000 + StreamTotal.LOOKUP_TOKENS)


def test_what_is_not_known_is_absent(paged) -> None:  # type: ignore[no-untyped-def]
    """Without totals there are no counters; a paged pool has no external fragmentation and no lost(s)."""
    state = paged.step(0)
    view = stream_view("e", 0, state, Liveness("idle"))
    (pool,) = view.pools
    assert view.counters is view.prefix_hit_ratio is pool.failures is None
    assert pool.external_fragmentation is pool.lost is pool.last_failure is pool.page_utilization is None


def test_a_converging_stream_shows_no_pool(paged) -> None:  # type: ignore[no-untyped-def]
    """After a gap nothing that depends on the past is shown."""
    paged.hold(1, [1, 2], 8)
    state = paged.step()
    state.gap(frames=3)
    view = stream_view("e", 0, state, Liveness("alive"))
    assert view.pools == ()
    assert not view.converged
    assert view.notes == ("0 frames damaged, 3 missing",)


def test_holders_are_the_largest_first(paged) -> None:  # type: ignore[no-untyped-def]
    """Of many requests the ones with the most units are named, the older of two equals first."""
    paged.hold(1, [1], 4)
    paged.hold(2, [2, 3, 4], 12)
    paged.hold(3, [5, 6], 8)
    paged.hold(4, [7, 8, 9], 12, class_id=6)
    state = paged.step(4)
    (pool,) = stream_view("e", 0, state, Liveness("alive"), holders=3).pools
    assert [(holder.request, holder.units) for holder in pool.holders] == [(2, 3), (4, 3), (3, 2)]
    assert (pool.holders[1].class_id, pool.holders[1].age_seconds, pool.holders[1].written_tokens) == (6, 1.0, 12)


def test_a_device_is_divided_as_its_engine_saw_it(paged) -> None:  # type: ignore[no-untyped-def]
    """Parts sum to what the driver told the engine; the difference is there whatever its sign, and so is its age."""
    paged.probe.device_sample(0, 60, 20, 80, 65, 50, 5, largest_free=4, kv_pool=30, weights=15, uuid="GPU-1")
    paged.probe.device_sample(1, 0, 0, 0, 9, 9, 0)
    paged.step()
    view = stream_view("e", 0, paged.step(seconds=2.0), Liveness("alive"))
    told, bare = view.devices
    assert told.parts == {"kv_pool": 30, "weights": 15, "torch_other": 5, "torch_slack": 15, "rest": -5}
    assert sum(told.parts.values()) == told.used == 60 and told.overclaimed == 5
    assert (told.name, told.age_seconds, told.total, told.largest_free) == ("GPU-1", 2.0, 80, 4)
    assert (bare.name, bare.used, bare.total, bare.parts) == (
        "cuda:1",
        None,
        None,
        {"torch_other": 9, "torch_slack": 0},
    )

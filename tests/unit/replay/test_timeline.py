"""Timelines against the naive model: the extremes of every bucket, counts, the worst moment; for every allocator."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.events import FAILURE_REASONS
from kvmon.replay.timeline import edges_between, read_timelines
from kvmon.replay.timeline_model import POOL_CURVES, STREAM_CURVES, Timeline
from tests.naive.timeline import NaiveTimeline
from tests.unit.adapters.driven import OPTIONS, Options
from tests.unit.replay.recorded import Recorded
from tests.unit.serving.option_sets import contiguous_pools, option_sets, paged_pools

POOL_COUNTED = ("steps", "prefill_tokens", "decode_tokens", "arrived", "finished", "preemptions", "recomputed_tokens")
ABSENT = {"residual", "drift"}  # what the engine says of itself is compared where it is told


def compare(timeline: Timeline, naive: NaiveTimeline) -> None:
    """Every number of every bucket is the naive one."""
    edges = timeline.edges_ns.tolist()
    for name in set(STREAM_CURVES) - {"step_seconds"}:
        same(timeline.curves[name], naive, f"0 {name}", edges)
    for pool in timeline.pools:
        for name in set(POOL_CURVES) - ABSENT:
            same(pool.curves[name], naive, f"{pool.number} {name}", edges)
        failures: dict[str, list[int]] = {}
        for time_ns, number, reason in naive.failures:
            if number == pool.number:
                bucket = int(np.searchsorted(timeline.edges_ns, time_ns)) - 1
                failures.setdefault(FAILURE_REASONS[reason], [0] * timeline.buckets)[bucket] += 1
        assert {reason: counts.tolist() for reason, counts in pool.failures.items()} == failures
    for name in (*POOL_COUNTED, "lookup_tokens", "hit_tokens"):
        assert timeline.counts[name].tolist() == naive.counted(name, edges), name
    assert timeline.failure_count == len(naive.failures)
    assert timeline.worst_ns == naive.worst[2]
    took = [[ns / 1e9 for time_ns, ns in naive.steps_taken if a < time_ns <= b] for a, b in itertools.pairwise(edges)]
    assert np.allclose(
        timeline.curves["step_seconds"].most, [max(some, default=np.nan) for some in took], equal_nan=True
    )


def same(curve: object, naive: NaiveTimeline, name: str, edges: list[int]) -> None:
    """One curve."""
    for bucket, picture in enumerate(naive.picture(name, edges)):
        for part in ("least", "most", "last", "mean"):
            mine, theirs = float(getattr(curve, part)[bucket]), getattr(picture, part)
            assert np.isclose(mine, theirs, equal_nan=True), f"{name}: {part} of bucket {bucket}: {mine}, not {theirs}"


@pytest.mark.parametrize("name", OPTIONS)
def test_curves_of_every_allocator_are_the_naive_ones(name: str, tmp_path: Path) -> None:
    """Least, most, last and mean of each bucket, counts, failures by reason, the worst moment."""
    recorded = Recorded(OPTIONS[name], 3, 90)
    (timeline,) = read_timelines(recorded.capture(tmp_path / "x.kvmon"), buckets=23, columns=7, cells=11)
    assert timeline.buckets == 23 and (timeline.known == 1).all()
    compare(timeline, recorded.followed())


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())),
    st.integers(0, 10_000),
    st.integers(1, 300),
)
def test_any_options_and_any_number_of_buckets(tmp_path: Path, options: tuple, seed: int, buckets: int) -> None:
    """The same for options drawn at random."""
    recorded = Recorded(Options(*options), seed, 30)
    (timeline,) = read_timelines(recorded.capture(tmp_path / "x.kvmon"), buckets=buckets)
    compare(timeline, recorded.followed())


def test_edges() -> None:
    """They divide the time evenly, hold all of it, and are never closer than a nanosecond."""
    assert edges_between(0, 10, 4).tolist() == [0, 2, 5, 7, 10]
    assert edges_between(5, 7, 1000).tolist() == [5, 6, 7]
    begin = 1_800_000_000_000_000_000
    edges = edges_between(begin, begin + 3_600_000_000_007, 1000)
    assert len(edges) == 1001 and edges[0] == begin and edges[-1] == begin + 3_600_000_000_007
    assert set(np.diff(edges).tolist()) == {3_600_000_000, 3_600_000_001}

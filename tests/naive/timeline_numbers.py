"""Whether a timeline has the numbers of the naive model: every curve in every bucket, counts, the worst moment."""

from __future__ import annotations

import itertools

import numpy as np

from kvmon.events import FAILURE_REASONS
from kvmon.replay.timeline_model import POOL_CURVES, STREAM_CURVES, Curve, Timeline
from tests.naive.timeline import NaiveTimeline

COUNTED = ("steps", "prefill_tokens", "decode_tokens", "arrived", "finished", "preemptions", "recomputed_tokens")
ABSENT = {"residual", "drift"}  # what the engine says of itself is compared where it is told
SLOTS = frozenset({"written", "tail", "reserved", "page_utilization"})
"""Where a request has block tables in several groups, a look at them all may wait until frames have paid for it."""


def assert_same_numbers(timeline: Timeline, naive: NaiveTimeline, *, but: frozenset[str] = frozenset()) -> None:
    """Every number of every bucket is the naive one, those of the pool curves `but` left out."""
    edges = timeline.edges_ns.tolist()
    for name in set(STREAM_CURVES) - {"step_seconds"}:
        _same(timeline.curves[name], naive, f"0 {name}", edges)
    for pool in timeline.pools:
        for name in set(POOL_CURVES) - ABSENT - but:
            _same(pool.curves[name], naive, f"{pool.number} {name}", edges)
        failures: dict[str, list[int]] = {}
        for time_ns, number, reason in naive.failures:
            if number == pool.number:
                bucket = int(np.searchsorted(timeline.edges_ns, time_ns)) - 1
                failures.setdefault(FAILURE_REASONS[reason], [0] * timeline.buckets)[bucket] += 1
        assert {reason: counts.tolist() for reason, counts in pool.failures.items()} == failures
    for name in (*COUNTED, "lookup_tokens", "hit_tokens"):
        assert timeline.counts[name].tolist() == naive.counted(name, edges), name
    assert timeline.failure_count == len(naive.failures)
    assert timeline.worst_ns == naive.worst[2]
    took = [[ns / 1e9 for time_ns, ns in naive.steps_taken if a < time_ns <= b] for a, b in itertools.pairwise(edges)]
    assert np.allclose(
        timeline.curves["step_seconds"].most, [max(some, default=np.nan) for some in took], equal_nan=True
    )


def _same(curve: Curve, naive: NaiveTimeline, name: str, edges: list[int]) -> None:
    """One curve."""
    for bucket, picture in enumerate(naive.picture(name, edges)):
        for part in ("least", "most", "last", "mean"):
            mine, theirs = float(getattr(curve, part)[bucket]), getattr(picture, part)
            assert np.isclose(mine, theirs, equal_nan=True), f"{name}: {part} of bucket {bucket}: {mine}, not {theirs}"

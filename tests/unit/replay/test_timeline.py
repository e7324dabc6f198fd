"""Timelines against the naive model: the extremes of every bucket, counts, the worst moment; for every allocator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.replay.timeline import edges_between, read_timelines
from tests.naive.timeline_numbers import assert_same_numbers
from tests.unit.adapters.driven import OPTIONS, Options
from tests.unit.replay.recorded import Recorded
from tests.unit.serving.option_sets import contiguous_pools, option_sets, paged_pools


@pytest.mark.parametrize("name", OPTIONS)
def test_curves_of_every_allocator_are_the_naive_ones(name: str, tmp_path: Path) -> None:
    """Least, most, last and mean of each bucket, counts, failures by reason, the worst moment."""
    recorded = Recorded(OPTIONS[name], 3, 90)
    (timeline,) = read_timelines(recorded.capture(tmp_path / "x.kvmon"), buckets=23, columns=7, cells=11)
    assert timeline.buckets == 23 and (timeline.known == 1).all()
    assert_same_numbers(timeline, recorded.followed())


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
    assert_same_numbers(timeline, recorded.followed())


def test_edges() -> None:
    """They divide the time evenly, hold all of it, and are never closer than a nanosecond."""
    assert edges_between(0, 10, 4).tolist() == [0, 2, 5, 7, 10]
    assert edges_between(5, 7, 1000).tolist() == [5, 6, 7]
    begin = 1_800_000_000_000_000_000
    edges = edges_between(begin, begin + 3_600_000_000_007, 1000)
    assert len(edges) == 1001 and edges[0] == begin and edges[-1] == begin + 3_600_000_000_007
    assert set(np.diff(edges).tolist()) == {3_600_000_000, 3_600_000_001}

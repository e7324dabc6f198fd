"""Timelines and moments of recordings of transformers' continuous batching, against a naive reading of their events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.transformers_watched import followed
from tests.naive.timeline_numbers import SLOTS
from tests.naive.timeline_truth import Recorded

pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize(
    ("name", "host_sectors"), [("llama", 0), ("llama", 12), ("gemma3", 0), ("gemma3-slices", 0), ("gemma3-window", 0)]
)
def test_timeline_and_moments_are_the_naive_ones(name: str, host_sectors: int, tmp_path: Path) -> None:
    """Blocks of one or of several slices, windows, a swap pool: from the directory and from a capture."""
    options = {"host_sectors": host_sectors} if host_sectors else {}
    (tmp_path / "kv").mkdir()
    followed(tmp_path / "kv", name, 5, 90, **options)
    recorded = Recorded(tmp_path / "kv")
    capture = recorded.capture(tmp_path / "x.kvmon")
    for source in (tmp_path / "kv", capture):
        assert recorded.compare_instants(source, 1, 30) > 30
        recorded.compare_curves(source, 31, but=SLOTS if name.startswith("gemma3") else frozenset())

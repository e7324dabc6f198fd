"""Timelines and moments of recordings of vLLM's own scheduler, against a naive reading of their events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvmon
from tests.engines.vllm_alone import Driver
from tests.naive.timeline_truth import Recorded


@pytest.mark.parametrize("kind", [{}, {"window": 40}, {"hybrid": True}, {"caching": False}], ids=str)
def test_timeline_and_moments_are_the_naive_ones(
    build: Callable[..., Any], tmp_path: Path, kind: dict[str, Any]
) -> None:
    """Pages under pressure, windows, groups of layers, a prefix cache: from the directory and from a capture."""
    scheduler = build(blocks=30, **kind)
    driver = Driver(scheduler, 3)
    with kvmon.attach(scheduler, directory=tmp_path / "kv"):
        for turn in range(220):
            if turn % 3 == 0:
                driver.add(1 + turn * 37 % 190, 1 + turn * 11 % 40, family=turn % 4)
            driver.step()
    recorded = Recorded(tmp_path / "kv")
    capture = recorded.capture(tmp_path / "x.kvmon")
    for source in (tmp_path / "kv", capture):
        assert recorded.compare_instants(source, 1, 40) > 40
        recorded.compare_curves(source, 31)

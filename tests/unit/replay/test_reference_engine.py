"""Timelines and moments of recordings of the reference engine, against a naive reading of their events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmon.adapters.attach import attach
from kvmon.engine.drive import build_driver
from kvmon.serving.scenarios import find
from tests.naive.timeline_truth import Recorded

FEW = 600  # units: counting all of them anew after every event takes a while


@pytest.mark.parametrize("name", ["server-failures", "post-incident", "preemption-storm"])
def test_timeline_and_moments_are_the_naive_ones(name: str, tmp_path: Path) -> None:
    """An engine that computes, with blocks in one piece and with pages: from the directory and from a capture."""
    setup = find(name).setups(0)[0][""]
    work = setup.workload.first(min(12, len(setup.workload)))
    small = replace(setup.allocator, capacity_units=min(FEW, setup.allocator.capacity_units))
    driver = build_driver(replace(setup, workload=work, allocator=small))
    (tmp_path / "kv").mkdir()
    clock = driver.clock
    recording, steps = attach(driver.engine, tmp_path / "kv", time_base_ns=1, clock=lambda: 1 + clock.now_ns), 0
    while not driver.run(clock.now_ns + 1) and steps < 70:
        steps += 1
    recording.close()
    recorded = Recorded(tmp_path / "kv")
    capture = recorded.capture(tmp_path / "x.kvmon")
    for source in (tmp_path / "kv", capture):
        assert recorded.compare_instants(source, 1, 20) >= 20
    recorded.compare_curves(capture, 17)

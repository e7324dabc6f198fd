"""The verdict on a page of metrics is the one that a replay of the same recording comes to."""

from __future__ import annotations

import re
from pathlib import Path

from kvmon.diagnosis import HEALTHY
from kvmon.exporter.follow import DirectoryFollower
from kvmon.replay import diagnose_path
from tests.toy_engine import FakeClock, ToyEngine
from tests.unit.exporter.test_page import page_of, series


def verdicts(directory: Path, clock: FakeClock) -> dict[str, set[str]]:
    """Verdicts by pool on the page of a directory."""
    found: dict[str, set[str]] = {}
    for line in series(page_of(directory, clock)):
        match = re.match(r'kvmon_verdict\{.*pool="(\w+)".*verdict="(\w+)"\}', line)
        if match:
            found.setdefault(match[1], set()).add(match[2])
    return found


def test_a_page_says_what_a_replay_says(tmp_path: Path) -> None:
    """At any moment, in each pool; healthy where nothing holds."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, "chat", clock=clock)
    seen = set()
    for _ in range(8):
        engine.run(200, seconds=0.05)
        replayed = diagnose_path(tmp_path)[0]
        holding = replayed.diagnosis.as_of_now().holding
        expected = {pool.name: set(holding[number]) or {HEALTHY} for number, pool in replayed.state.pools.items()}
        assert verdicts(tmp_path, clock) == expected
        seen |= expected["kv"]
    assert seen


def test_numbers_that_lead_to_it(tmp_path: Path) -> None:
    """What waited, what was lost and what was thrown away in the last minute stand beside it."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, "chat", clock=clock)
    engine.run(600, seconds=0.05)
    shown = {name.partition("{")[0]: value for name, value in series(page_of(tmp_path, clock)).items()}
    follower = DirectoryFollower(tmp_path, fold_dead=True, clock=clock)
    follower.catch_up()
    minute = follower.streams[0].diagnose().minutes[1]
    assert shown["kvmon_memory_lost_requests"] == sum(refused.lost for refused in minute.refused.values())
    assert 0 <= shown["kvmon_memory_wait_ratio"] <= 1 and shown["kvmon_stuck_seconds"] >= 0
    assert 0 <= shown["kvmon_forgotten_ratio"] <= 1 and 0 <= shown["kvmon_recomputed_ratio"] <= 1
    follower.close()

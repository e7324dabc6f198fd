"""What changes about engines is told in the log once each time."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvmon.exporter.follow import DirectoryFollower
from kvmon.exporter.news import News
from tests.toy_engine import FakeClock, ToyEngine


def test_engines_that_come_go_and_come_back_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each life begins and ends with a line that says who; in between, and afterwards, nothing is said."""
    caplog.set_level(logging.INFO, "kvmon")
    clock, news = FakeClock(), News()
    followers = DirectoryFollower(tmp_path, fold_dead=False, clock=clock)

    def told() -> list[tuple[str, object, object]]:
        caplog.clear()
        for _ in range(3):
            followers.catch_up()
            news.tell(followers)
        return [(entry.getMessage(), entry.engine, entry.rank) for entry in caplog.records]  # type: ignore[attr-defined]

    assert told() == []
    first, other = ToyEngine(tmp_path, clock=clock), ToyEngine(tmp_path, "b", rank=3, clock=clock)
    first.run(2)
    other.run(2)
    assert sorted(told()) == [("an engine is followed", "b", 3), ("an engine is followed", "toy", 0)]
    first.close()
    assert told() == [("an engine is gone", "toy", 0)]
    ToyEngine(tmp_path, clock=clock).run(2)
    assert told() == [("an engine is followed", "toy", 0)]
    assert told() == []
    other.close()
    ToyEngine(tmp_path, "b", rank=3, clock=clock).run(2)  # back before anybody looked
    assert told() == [("an engine is gone", "b", 3), ("an engine is followed", "b", 3)]

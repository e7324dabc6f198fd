"""What transformers refused, and why; what `kvmon status` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import kvmon
from kvmon.adapters.transformers import recorder
from kvmon.cli.main import cli
from kvmon.events import FailureOutcome, FailureReason, FinishReason, Kind
from tests.engines.transformers_driven import Driven, Traffic
from tests.engines.transformers_truth import events_of
from tests.toy_engine import FakeClock

pytestmark = pytest.mark.usefixtures("transformers_alone")


class Clocked:
    """An engine whose steps take a time that a test says, and its recording."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path, name: str, **options: Any) -> None:
        self.clock = FakeClock()
        monkeypatch.setattr(recorder, "CLOCK", self.clock)
        self.driven = Driven(name, **options)
        self.directory = directory
        kvmon.attach(self.driven.processor, directory=directory)

    def turn(self, turns: int, seconds: float = 0.1) -> None:
        """So many steps."""
        for _ in range(turns):
            self.driven.step()
            self.clock.advance(seconds)

    def refusals(self) -> list[tuple[int, str, str, int, int, int]]:
        """(request, reason, outcome, need, free, evictable) of every refusal."""
        return [
            (
                event.fields["request"],
                FailureReason(event.fields["reason"]).name,
                FailureOutcome(event.fields["outcome"]).name,
                *(event.fields[name] for name in ("need", "free", "evictable")),
            )
            for event in events_of(self.directory)
            if event.kind is Kind.ALLOC_FAILED
        ]

    def status(self) -> str:
        """What `kvmon status` says of it."""
        return CliRunner().invoke(cli, ["status", str(self.directory)]).output


def test_evictable_memory_that_is_not_reclaimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """prefill_first never evicts while somebody can be scheduled: a request waits for memory that is only cached."""
    monkeypatch.setattr("tests.engines.transformers_driven._next", lambda state: 7)
    engine = Clocked(monkeypatch, tmp_path, "llama", scheduler_type="prefill_first", blocks=8, page=16, budget=80)
    engine.driven.add("gone", list(range(3, 67)), 2)  # leaves four blocks of content
    engine.turn(4)
    engine.driven.add("long", [5] * 4, 60)  # grows to four blocks
    engine.driven.add("kept out", list(range(60, 120)), 4)  # four blocks, with three free
    engine.turn(40, 0.4)
    refusals = engine.refusals()
    assert refusals[0][0] == 3 and refusals[0][1:] == ("EVICTABLE_NOT_RECLAIMED", "WAITS", 4, 3, 4)
    assert [one[0] for one in refusals] == [3], "once a wait"
    assert "reclaim_failed" in engine.status()


def test_a_prompt_larger_than_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the generation loop, and the recording says which request it was, and why."""
    monkeypatch.setattr("tests.engines.transformers_driven._next", lambda state: 7)
    engine = Clocked(monkeypatch, tmp_path, "llama", blocks=8, page=4, budget=16)
    engine.driven.add("fits", [3, 4, 5, 6, 7], 10)
    engine.turn(2)
    engine.driven.add("never", list(range(3, 60)), 4)
    engine.turn(40, 0.5)
    assert isinstance(engine.driven.died, RuntimeError)
    lost = [one for one in engine.refusals() if one[2] == "ABORTED"]
    assert [(one[0], one[1], one[3]) for one in lost] == [(2, "NEVER_FITS", 15)]
    events = events_of(tmp_path)
    ended = {one.fields["request"]: one.fields["reason"] for one in events if one.kind is Kind.REQUEST_FINISHED}
    assert ended == {1: int(FinishReason.LENGTH), 2: int(FinishReason.ERROR)}
    assert "never_fits" in engine.status()


def test_free_blocks_in_sectors_of_another_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hybrid models: memory is free, but bound to sectors that the other group holds in part."""
    engine = Clocked(monkeypatch, tmp_path, "gemma3-deep", blocks=16, page=4, budget=64, safety_margin=0.0)
    traffic = Traffic(engine.driven, 2)
    for _ in range(60):
        traffic.arrive()
        engine.turn(1, 0.5)
    bound = [one for one in engine.refusals() if one[1] == "PARTITION_FULL"]
    assert bound and all(need <= free for *_, need, free, _ in bound)
    short = [one for one in engine.refusals() if one[1] == "EXHAUSTED"]
    assert short and all(need > free for *_, need, free, _ in short)
    assert "partition" in engine.status()


def test_unfilled_pages_are_not_taken_for_reserved_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short requests in large pages: the tails of pages keep the next one out, even in their first step."""
    monkeypatch.setattr("tests.engines.transformers_driven._next", lambda state: 7)
    engine = Clocked(monkeypatch, tmp_path, "llama", blocks=8, page=64, budget=80, safety_margin=0.0)
    for number in range(10):
        engine.driven.add(f"one {number}", [5 + number] * 5, 40)
    engine.turn(20, 0.5)
    assert [one[:2] for one in engine.refusals()] == [(9, "EXHAUSTED"), (10, "EXHAUSTED")]
    assert "tail_waste" in engine.status()


def test_a_pool_that_is_full_and_a_margin_that_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything to evict it is exhausted; with the margin not met a request is not even asked for."""
    monkeypatch.setattr("tests.engines.transformers_driven._next", lambda state: 7)
    engine = Clocked(monkeypatch, tmp_path, "llama", blocks=10, page=4, allow_block_sharing=False, safety_margin=0.4)
    engine.driven.add("first", [5] * 22, 40)
    engine.turn(2)
    engine.driven.add("margin", [6] * 5, 4)
    engine.turn(12)
    engine.driven.add("second", [6] * 12, 4)
    engine.turn(6)
    assert ("WATERMARK", "WAITS") in {one[1:3] for one in engine.refusals()}
    engine.driven.run()
    kvmon.detach()
    other = tmp_path / "other"
    other.mkdir()
    engine = Clocked(monkeypatch, other, "llama", blocks=10, page=4, allow_block_sharing=False, safety_margin=0.0)
    for number in range(4):
        engine.driven.add(f"one {number}", [5] * 10, 20)
    engine.turn(30)
    refusals = engine.refusals()
    assert {one[1] for one in refusals} == {"EXHAUSTED"}
    assert {"PREEMPTED_ANOTHER", "PREEMPTED_ITSELF", "WAITS"} & {one[2] for one in refusals}

"""Recordings of transformers' continuous batching: how far a replay is from them, and what-ifs against the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmon.replay.calibration import calibrate
from kvmon.replay.whatif import begin_comparison
from tests.engines.calibration import ENGINES, Kind, Question, asked_and_done, calibration_row, is_stated, what_if_row

TRANSFORMERS = ENGINES["transformers"]
pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize("kind", TRANSFORMERS.kinds.values(), ids=lambda kind: kind.name)
def test_a_replay_without_a_change_is_as_near_as_the_docs_say(kind: Kind, tmp_path: Path) -> None:
    """Near while memory suffices; where it does not, transformers does something else, and that is said."""
    recording = TRANSFORMERS.run(tmp_path / "kv", kind)
    found = calibrate(recording)
    assert found.curve_mean_ratio is not None and found.curve_mean_ratio <= kind.curve
    assert found.quality == ("poor" if kind.poor else "good")
    assert (found.other_memory_steps == 0) == (kind.curve == 0)
    comparison = begin_comparison(recording)
    assert bool(comparison.doubts) == kind.poor
    assert "its allocator 'sectors' is run as pages" in comparison.assumptions
    assert "its eviction 'all-at-once' is run as lru" in comparison.assumptions
    assert is_stated(TRANSFORMERS, calibration_row(kind, found)), "run python -m tests.engines.calibration transformers"


@pytest.mark.parametrize("question", TRANSFORMERS.questions, ids=lambda one: f"{one.kind} {one.what_if}")
def test_what_transformers_then_really_does(question: Question, tmp_path: Path) -> None:
    """Its own classes with the pool that was predicted, under the same traffic and the same clock."""
    recorded, answer, really = asked_and_done(TRANSFORMERS, question, tmp_path)
    predicted = answer.most
    assert recorded.capacity_units != really.capacity_units == predicted.capacity_units
    assert abs(predicted.peak_units - really.peak_units) <= 0.06 * really.capacity_units
    assert (predicted.preemptions, predicted.hit_tokens) == (really.preemptions, really.hit_tokens)
    assert (predicted.finished, predicted.lost) == (really.finished, really.lost)
    assert is_stated(TRANSFORMERS, what_if_row(question, recorded, answer, really)), (
        "run python -m tests.engines.calibration transformers"
    )

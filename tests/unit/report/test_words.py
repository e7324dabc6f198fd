"""Sentences: the same event reads the same everywhere, with its numbers."""

from __future__ import annotations

import pytest

from kvmon.events import Contiguity, FailureOutcome
from kvmon.report.words import condition_words, failure_sentence, wall_time
from kvmon.state import Failure


def failure(**changes: object) -> Failure:
    """A refused allocation of 300 units."""
    values: dict[str, object] = {
        "time_ns": 1,
        "request": 214,
        "need": 300,
        "contiguity": Contiguity.NONE,
        "free": 912,
        "evictable": 0,
        "largest": None,
        "reason": "exhausted",
        "outcome": FailureOutcome.WAITS,
        **changes,
    }
    return Failure(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"contiguity": Contiguity.REQUIRED, "largest": 130, "reason": "no_contiguous_run"},
            "request 214 needed 300 adjacent units: 912 were free, but the largest free block was 130; it waits",
        ),
        (
            {"free": 12, "evictable": 1800, "reason": "all_pinned", "outcome": FailureOutcome.REFUSED},
            "request 214 needed 300 units: 12 were free and 1,800 evictable (all_pinned); it was refused",
        ),
        (
            {"free": 0, "outcome": FailureOutcome.PREEMPTED_ANOTHER},
            "request 214 needed 300 units: none was free; another request was preempted for it",
        ),
        (
            {"request": None, "need": 5000, "reason": "never_fits", "outcome": FailureOutcome.UNKNOWN},
            "a request needed 5,000 units: the pool has 2,048, so it can never fit",
        ),
        (
            {"need": 1, "free": 0, "outcome": FailureOutcome.UNKNOWN},
            "request 214 needed 1 unit: none was free",
        ),
    ],
)
def test_a_failure_is_a_sentence_with_its_numbers(changes: dict[str, object], sentence: str) -> None:
    """What was asked, what there was, why it was not enough, what came of it."""
    assert failure_sentence(failure(**changes), 2048) == sentence


def test_conditions_in_words() -> None:
    """A dead engine is dated, a stalled one says for how long, an unseen one what to do."""
    wall = 1_767_323_045_000_000_000
    assert wall_time(wall) == "2026-01-02 03:04:05 UTC"
    assert condition_words("alive", 0.1, wall) == "alive"
    assert condition_words("dead", 0.1, wall) == "dead since 2026-01-02 03:04:05 UTC, last state"
    assert condition_words("ended", 0.1, None) == "ended, last state"
    assert condition_words("stalled", 75.0, wall) == "stalled: work pending, silent for 1 min 15 s"
    assert "run as the engine's user" in condition_words("unseen", None, None)

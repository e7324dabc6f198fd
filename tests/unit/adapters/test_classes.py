"""Classes of requests: by length, or numbered as they come."""

from __future__ import annotations

from kvmon.adapters.classes import MOST_CLASSES, class_rule


def test_lengths() -> None:
    """Class k has prompts below 2**k tokens."""
    rule = class_rule("length", {"length": len})
    assert [rule(range(tokens)) for tokens in (0, 1, 2, 3, 4, 7, 8)] == [0, 1, 2, 2, 3, 3, 4]


def test_what_is_numbered() -> None:
    """From 1 in the order they come; nothing is 0, and so is what comes when the numbers are used up."""
    rule = class_rule("priority", {"priority": lambda request: request})
    assert [rule(value) for value in (5, None, 0, 5)] == [1, 0, 2, 1]
    for value in range(100, 100 + MOST_CLASSES):
        rule(value)
    assert rule(-1) == 0 and rule(5) == 1 and rule(100 + MOST_CLASSES - 3) == MOST_CLASSES


def test_a_rule_that_requests_have_nothing_for() -> None:
    """All of one class."""
    assert class_rule("none", {"length": len})([1, 2]) == class_rule("lora", {})([1, 2]) == 0

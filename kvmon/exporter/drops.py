"""Series that had no room: counted for as long as the exporter lives, and told in the log.

A line in the log for each collector and limit at the scrape in which it first drops something, naming those who lack
it; who was told of once is not told of again, so that a page that is full does not fill the log. Invariant: the count
never falls. Nothing is dropped here.
"""

from __future__ import annotations

import logging

from kvmon.exporter.families import Budget

__all__ = ["Drops"]

_LOG = logging.getLogger(__name__)
_MOST_NAMED = 5
_MOST_TOLD = 1000  # engines come and go under new names


class Drops:
    """What the budgets of one page after the other kept out."""

    def __init__(self) -> None:
        self.total = 0
        self._told: set[tuple[str, str, str]] = set()
        self._before: dict[str, int] = {}

    def begin(self) -> None:
        """A new scrape, whose budgets are fresh."""
        self._before = {}

    def note(self, collector: str, budgets: dict[str, Budget]) -> None:
        """Count and tell what `collector`, which has just run, had no room for; `budgets` by their owner's name."""
        news: dict[str, list[str]] = {}
        for owner, budget in budgets.items():
            known = self._before.get(owner, 0)
            if budget.dropped == known:
                continue
            self.total += budget.dropped - known
            self._before[owner] = budget.dropped
            option = "--series-budget" if budget.left == 0 else "--max-series"
            key = (collector, option, owner)
            if key not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(key)
                news.setdefault(option, []).append(owner)
        for option, owners in news.items():
            more = f" and {len(owners) - _MOST_NAMED} more" if len(owners) > _MOST_NAMED else ""
            _LOG.warning(
                "series have no room and are dropped: raise %s, or turn collectors off",
                option,
                extra={"collector": collector, "of": ", ".join(owners[:_MOST_NAMED]) + more},
            )

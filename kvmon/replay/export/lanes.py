"""Tracks for requests: each has one from its arrival to its end, and no two have one at the same time.

Invariant: the track that is given is the lowest that was left by the time the request came.
"""

from __future__ import annotations

from bisect import insort

__all__ = ["Lanes"]


class Lanes:
    """Tracks by number, from 0."""

    def __init__(self) -> None:
        self.count = 0
        self._left: list[tuple[int, int]] = []  # (track, ns when it was left), by track

    def take(self, time_ns: int) -> int:
        """A track for who comes at this time; a new one (`count` grows) where all are taken."""
        for place, (lane, left_ns) in enumerate(self._left):
            if left_ns <= time_ns:
                del self._left[place]
                return lane
        self.count += 1
        return self.count - 1

    def leave(self, lane: int, time_ns: int) -> None:
        """Who had it has gone."""
        insort(self._left, (lane, time_ns))

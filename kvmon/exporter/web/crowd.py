"""Notices that a crowd has gone: thousands of connections leave a process that was small larger for good."""

from __future__ import annotations

__all__ = ["Crowd"]

_CROWD = 32  # connections at once that are worth the few milliseconds of giving back


class Crowd:
    """Notices that many came and went."""

    def __init__(self) -> None:
        self._most = 0

    def has_gone(self, present: int) -> bool:
        """Told how many are there now, now and then: True once, after many were there and most have gone."""
        self._most = max(self._most, present)
        if self._most < _CROWD or present > self._most // 4:
            return False
        self._most = present
        return True

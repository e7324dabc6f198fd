"""Gives memory back to the system once a crowd has gone: the allocator of glibc keeps it otherwise.

Thousands of connections leave a process that was small larger for good. Elsewhere than with glibc this does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

__all__ = ["Crowd", "give_back"]

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


def give_back() -> None:
    """Return to the system what is free, or hangs together in circles that nobody holds; tens of milliseconds."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

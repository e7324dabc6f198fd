"""A lock that is handed on in order: who waits gets it before who had it last can take it again.

A plain lock has no order: a thread that lets it go and takes it again in a loop keeps others out for the whole loop.
"""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """Mutual exclusion for short stretches of work of a few threads; a context manager, not reentrant."""

    def __init__(self) -> None:
        self._waiting = threading.Lock()
        self._working = threading.Lock()

    def __enter__(self) -> None:
        """Wait for the turn; while one thread waits here for its turn, nobody else can overtake it."""
        with self._waiting:
            self._working.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hand it on."""
        self._working.release()

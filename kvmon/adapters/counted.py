"""Memory of which only the amount is known: so many units are used, and nobody can see which.

The first units stand for those that are used, so that a fold counts them right. Which they are means nothing, nor how
many came and went: the fidelity `counts` and the pool's attribute `net` (`NET`) keep every number back that would need
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvmon.events.wire import STATUS
from kvmon.probe import PoolProbe, RequestPicture

__all__ = ["NET", "Counted"]

NET: Mapping[str, Any] = {"net": True}
"""What the attributes of such a pool have."""


class Counted:
    """Follows how many units of a pool are used; `free` reads how many are not.

    An `AuditSource` of units alone, for a recording that knows no requests. `used` is what was told last.
    """

    def __init__(self, pool: PoolProbe, capacity: int, free: Callable[[], int]) -> None:
        self._pool, self._capacity, self._free = pool, capacity, free
        self.used = self._now()

    def follow(self, *args: object, **kwargs: object) -> None:
        """Tell what changed since; takes whatever a hook is called with."""
        now, told = self._now(), self.used
        if now > told:
            self._pool.alloc_run(told + 1, now - told)
        elif now < told:
            self._pool.free_run(now + 1, told - now)
        self.used = now

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        return [STATUS | (unit <= self.used) for unit in range(first, first + count)]

    def live_requests(self) -> Sequence[int]:
        """None is known."""
        return ()

    def picture(self, request: int) -> RequestPicture | None:
        """None is known."""
        return None

    def _now(self) -> int:
        return min(max(self._capacity - int(self._free()), 0), self._capacity)

"""An allocator as a person would keep it on paper: dictionaries and loops over decoded events.

Slow on purpose. It shares no code with the fold or the allocators, so that the three can only agree by being right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any


class ReplayedPool:
    """References, contents and block tables after a list of events (kind, fields), by unit and by request."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.references: dict[int, int] = defaultdict(int)
        self.cached: set[int] = set()
        self.tables: dict[int, list[int]] = defaultdict(list)
        self.computed: dict[int, int] = {}
        self.decoding: set[int] = set()
        self.said: set[int] = set()
        self.running: set[int] = set()
        self.live: set[int] = set()
        self.evictions = 0

    def apply(self, events: Iterable[Any]) -> None:
        """Take the events one by one, as they came."""
        for event in events:
            handler = getattr(self, f"on_{event.kind.name.lower()}", None)
            if handler is not None:
                handler(event.units, event.fields)

    def state_sums(self) -> dict[str, int]:
        """Units by state, counted one by one."""
        sums = {"active": 0, "cached": 0, "free": 0}
        for unit in range(1, self.capacity + 1):
            state = "active" if self.references[unit] else "cached" if unit in self.cached else "free"
            sums[state] += 1
        return sums

    def free_runs(self) -> list[int]:
        """Lengths of the stretches of free units, in order of address."""
        runs, length = [], 0
        for unit in range(1, self.capacity + 2):
            if unit <= self.capacity and not self.references[unit] and unit not in self.cached:
                length += 1
            elif length:
                runs.append(length)
                length = 0
        return runs

    def on_alloc(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        for unit in units:
            assert not self.references[unit]
            self.references[unit] = 1
            if unit in self.cached:
                self.cached.discard(unit)
                self.evictions += 1

    def on_share(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        for unit in units:
            assert self.references[unit] or unit in self.cached
            self.references[unit] += 1

    def on_unshare(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        for unit in units:
            assert self.references[unit] > 0
            self.references[unit] -= 1

    def on_free(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        for unit in units:
            assert self.references[unit] == 1
            self.references[unit] = 0

    def on_cache_insert(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.cached.update(units)

    def on_pool_reset(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.cached.clear()

    def on_assign(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        assert all(self.references[unit] for unit in units)
        self.tables[fields["request"]] += units

    on_assign_run = on_assign

    def on_migrated(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.tables[fields["request"]] = []

    def on_request_arrived(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.live.add(fields["request"])
        self.computed[fields["request"]] = 0

    def on_request_admitted(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        self.running.add(fields["request"])

    def on_request_progress(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        request = fields["request"]
        self.computed[request] = fields["computed"]
        self.said.add(request)
        (self.decoding.add if fields["decoding"] else self.decoding.discard)(request)

    def on_preempted(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        request = fields["request"]
        self.tables.pop(request, None)
        self.computed[request] = 0
        self.decoding.discard(request)
        self.running.discard(request)

    def on_request_finished(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        request = fields["request"]
        self.tables.pop(request, None)
        self.computed.pop(request)
        self.decoding.discard(request)
        self.running.discard(request)
        self.live.discard(request)

    def on_step(self, units: tuple[int, ...], fields: dict[str, Any]) -> None:
        for request in self.decoding - self.said:
            self.computed[request] += 1
        self.said = set()

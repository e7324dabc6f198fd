"""An engine's memory as a person would keep it on paper: dictionaries and loops over decoded events.

Slow on purpose. It shares no code with the fold or the allocators, so that they can only agree by being right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

Fields = dict[str, Any]
Units = Iterable[int]


class Claim(NamedTuple):
    """What the engine said of a pool, and what was the case then."""

    said: Fields
    units: dict[str, int]
    unowned: int
    freed_twice: int


class ReplayedPool:
    """Of one pool: references, contents, pins and transfers by unit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.references: dict[int, int] = defaultdict(int)
        self.cached: set[int] = set()
        self.pinned: set[int] = set()
        self.deferred: set[int] = set()
        self.evictions = 0
        self.freed_twice: list[int] = []

    def state(self, unit: int) -> str:
        """Which of the five states a unit is in."""
        if self.references[unit]:
            return "active"
        if unit in self.deferred:
            return "deferred"
        if unit in self.cached:
            return "pinned" if unit in self.pinned else "cached"
        return "free"

    def state_sums(self) -> dict[str, int]:
        """Units by state, counted one by one."""
        sums = dict.fromkeys(("active", "cached", "pinned", "deferred", "free"), 0)
        for unit in range(1, self.capacity + 1):
            sums[self.state(unit)] += 1
        return sums

    def free_runs(self) -> list[int]:
        """Lengths of the stretches of free units, in order of address."""
        runs, length = [], 0
        for unit in range(1, self.capacity + 2):
            if unit <= self.capacity and self.state(unit) == "free":
                length += 1
            elif length:
                runs.append(length)
                length = 0
        return runs

    def release(self, unit: int) -> bool:
        """One reference fewer; whether it was the last one. A unit without one was given back twice."""
        if not self.references[unit]:
            self.freed_twice.append(unit)
            return False
        self.references[unit] -= 1
        return not self.references[unit]


class ReplayedEngine:
    """Pools by number, and the requests: which units they hold, and how many of their tokens are computed.

    `tables` holds the units of (request, pool, group) in the order of the sequence; a unit that goes back to its pool
    leaves every table.
    """

    def __init__(self, capacities: dict[int, int]) -> None:
        self.pools = {number: ReplayedPool(capacity) for number, capacity in capacities.items()}
        self.tables: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self.computed: dict[int, int] = {}
        self.reserved: dict[int, int] = defaultdict(int)
        self.decoding: set[int] = set()
        self.said: set[int] = set()
        self.running: set[int] = set()
        self.live: set[int] = set()
        self.claims: list[Claim] = []
        self.seen: dict[str, int] = defaultdict(int)

    def apply(self, events: Iterable[Any]) -> None:
        """Take the events one by one, as they came."""
        for event in events:
            self.seen[event.kind.name] += 1
            handler = getattr(self, f"on_{event.kind.name.lower()}", None)
            if handler is not None:
                handler(event.pool, event.units, event.fields)

    def table(self, request: int, pool: int = 1, group: int = 0) -> list[int]:
        """Units of a request; empty when it holds none."""
        return self.tables.get((request, pool, group), [])

    def unowned(self, pool: int) -> list[int]:
        """Units that somebody refers to and no live request has in its table."""
        named = {unit for (_, number, _), units in self.tables.items() if number == pool for unit in units}
        return [unit for unit, count in self.pools[pool].references.items() if count and unit not in named]

    def _gone(self, number: int, unit: int) -> None:
        for (_, pool, _), units in self.tables.items():
            if pool == number and unit in units:
                units.remove(unit)

    # -- units --

    def on_alloc(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        for unit in units:
            assert pool.state(unit) in ("free", "cached")
            pool.references[unit] = 1
            if unit in pool.cached:
                pool.cached.discard(unit)
                pool.evictions += 1

    def on_share(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        for unit in units:
            assert pool.references[unit] or unit in pool.cached or unit in pool.deferred
            pool.deferred.discard(unit)
            pool.references[unit] += 1

    def on_unshare(self, number: int, units: Units, fields: Fields) -> None:
        for unit in units:
            assert unit not in self.pools[number].deferred
            if self.pools[number].release(unit):
                self._gone(number, unit)

    def on_free(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        for unit in units:
            assert pool.references[unit] == (0 if unit in pool.deferred else 1)
            pool.deferred.discard(unit)
            if pool.references[unit]:
                pool.references[unit] = 0
                self._gone(number, unit)

    def on_defer(self, number: int, units: Units, fields: Fields) -> None:
        for unit in units:
            assert self.pools[number].references[unit] == 1
            self.pools[number].release(unit)
            self.pools[number].deferred.add(unit)
            self._gone(number, unit)

    def on_cache_insert(self, number: int, units: Units, fields: Fields) -> None:
        assert all(self.pools[number].references[unit] for unit in units)
        self.pools[number].cached.update(units)

    def on_pin(self, number: int, units: Units, fields: Fields) -> None:
        assert self.pools[number].cached.issuperset(units)
        self.pools[number].pinned.update(units)

    def on_unpin(self, number: int, units: Units, fields: Fields) -> None:
        self.pools[number].pinned.difference_update(units)

    def on_evict(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        for unit in units:
            assert unit in pool.cached and not pool.references[unit]
            pool.evictions += 1
        pool.cached.difference_update(units)
        pool.pinned.difference_update(units)

    def on_pool_reset(self, number: int, units: Units, fields: Fields) -> None:
        self.pools[number].cached.clear()
        self.pools[number].pinned.clear()

    # -- who holds them --

    def on_assign(self, number: int, units: Units, fields: Fields) -> None:
        assert all(self.pools[number].references[unit] for unit in units)
        self.tables[fields["request"], number, fields["group"]] += units

    on_assign_run = on_assign

    def on_reserve(self, number: int, units: Units, fields: Fields) -> None:
        self.reserved[fields["request"]] = fields["tokens"]

    def on_migrated(self, number: int, units: Units, fields: Fields) -> None:
        request, pool = fields["request"], self.pools[number]
        old = set(range(fields["old_start"], fields["old_start"] + fields["old_units"]))
        new = set(range(fields["new_start"], fields["new_start"] + fields["new_units"]))
        assert not old & new and all(pool.references[unit] for unit in old | new)
        assert set(self.table(request, number)) == old
        assert fields["copied_tokens"] == self.computed[request]
        self.tables[request, number, 0] = []

    def on_compacted(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        held = [unit for unit in range(1, pool.capacity + 1) if pool.references[unit]]
        assert held == list(range(1, len(held) + 1)), "a compaction leaves one free run behind all blocks"
        assert fields["moved_units"] <= len(held)

    def on_offloaded(self, number: int, units: Units, fields: Fields) -> None:
        assert fields["to_pool"] == 2 and list(units) == self.table(fields["request"], number)[: len(list(units))]

    def on_onboarded(self, number: int, units: Units, fields: Fields) -> None:
        """The copy comes before the host block goes back."""
        assert fields["from_pool"] == 2 and len(self.table(fields["request"], 2)) == len(list(units))
        assert list(units) == self.table(fields["request"], number)[: len(list(units))]

    # -- requests --

    def on_request_arrived(self, number: int, units: Units, fields: Fields) -> None:
        self.live.add(fields["request"])
        self.computed[fields["request"]] = 0

    def on_request_admitted(self, number: int, units: Units, fields: Fields) -> None:
        self.running.add(fields["request"])

    def on_request_progress(self, number: int, units: Units, fields: Fields) -> None:
        request = fields["request"]
        self.computed[request] = fields["computed"]
        self.said.add(request)
        (self.decoding.add if fields["decoding"] else self.decoding.discard)(request)

    def on_preempted(self, number: int, units: Units, fields: Fields) -> None:
        self._let_go(fields["request"])
        self.computed[fields["request"]] = 0

    def on_commit(self, number: int, units: Units, fields: Fields) -> None:
        self.computed[fields["request"]] = fields["tokens"]

    def on_request_finished(self, number: int, units: Units, fields: Fields) -> None:
        self._let_go(fields["request"])
        self.computed.pop(fields["request"])
        self.live.discard(fields["request"])

    def _let_go(self, request: int) -> None:
        for key in [key for key in self.tables if key[0] == request]:
            del self.tables[key]
        self.reserved.pop(request, None)
        self.decoding.discard(request)
        self.running.discard(request)

    # -- the engine --

    def on_claims(self, number: int, units: Units, fields: Fields) -> None:
        pool = self.pools[number]
        self.claims.append(Claim(fields, pool.state_sums(), len(self.unowned(number)), len(pool.freed_twice)))

    def on_step(self, number: int, units: Units, fields: Fields) -> None:
        for request in self.decoding - self.said:
            self.computed[request] += 1
        self.said = set()

"""A toy engine that keeps its truth in dictionaries and tells a probe what it does, for tests of the fold.

Independent of the fold on purpose: no arrays, no generations, no counters kept up to date; every number is counted
anew. It does only what an allocator that keeps its own rules does, so a fold of what it says must find no fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from kvmon.events import FinishReason, RequestState, status_word
from kvmon.probe import PoolInfo, PoolProbe, RequestPicture, StreamProbe
from kvmon.state import StreamState


@dataclass
class Unit:
    """One unit: references, content, and who named it last since it was last free."""

    references: int = 0
    cached: bool = False
    pinned: bool = False
    deferred: bool = False
    named_last: int = 0
    sharers: set[int] = field(default_factory=set)

    @property
    def state(self) -> str:
        """One of the five states."""
        if self.references:
            return "active"
        if self.deferred:
            return "deferred"
        if self.cached:
            return "pinned" if self.pinned else "cached"
        return "free"


@dataclass
class Request:
    """One live request; `tables` by pool and in the order of the sequence."""

    state: RequestState
    arrived_ns: int
    prompt: int
    limit: int | None
    class_id: int
    computed: int = 0
    decoding: bool = False
    said: bool = False
    reserved: int | None = None
    tables: dict[int, list[int]] = field(default_factory=dict)


class Engine:
    """Pools by number, requests by id; `act` does one random thing, `step` closes an engine step."""

    def __init__(self, probe: StreamProbe, pools: Sequence[PoolInfo]) -> None:
        self.probe = probe
        self.pools: dict[int, dict[int, Unit]] = {}
        self.probes: dict[int, PoolProbe] = {}
        self.requests: dict[int, Request] = {}
        self.arrivals = 0
        self.clock = 0
        for info in pools:
            self.attach(info)
        probe.audit_from(self)

    def attach(self, info: PoolInfo) -> None:
        """Another pool, all of it free."""
        number = len(self.pools) + 1
        self.probes[number] = self.probe.attach_pool(info)
        self.pools[number] = {unit: Unit() for unit in range(1, info.capacity_units + 1)}

    # -- what the audit reads --

    def status(self, pool: int, first: int, count: int) -> list[int]:
        """Status words of the units from `first` on."""
        units = self.pools[pool]
        return [
            status_word(u.references, cached=u.cached, pinned=u.pinned, deferred=u.deferred)
            for u in (units[number] for number in range(first, first + count))
        ]

    def live_requests(self) -> list[int]:
        """Ids of the requests that wait or run."""
        return list(self.requests)

    def picture(self, request: int) -> RequestPicture | None:
        """The request as it is now."""
        known = self.requests.get(request)
        if known is None:
            return None
        tables = [(pool, 0, list(units)) for pool, units in known.tables.items()]
        return RequestPicture(
            int(known.state),
            known.class_id,
            known.arrived_ns,
            known.prompt,
            known.limit,
            known.computed,
            known.decoding,
            known.reserved,
            tables,
        )

    # -- what it does --

    def act(self, name: str, seed: int) -> None:
        """Do one thing, chosen by `seed` among what the rules allow now; nothing where they allow nothing."""
        getattr(self, f"_{name}")(Random(seed))

    def step(self) -> None:
        """Close an engine step: running decodes that nothing was said about write one token."""
        self.clock += 1_000_000
        for request in self.requests.values():
            if request.decoding and not request.said:
                request.computed += 1
            request.said = False
        running = sum(r.state is RequestState.RUNNING for r in self.requests.values())
        self.probe.step(self.clock, 900_000, 1, 2, 3, running, len(self.requests) - running, None)

    def _pick(self, rng: Random, pool: int, rule: object, most: int = 6) -> list[int]:
        assert callable(rule)
        fit = [number for number, unit in self.pools[pool].items() if rule(unit)]
        return rng.sample(fit, min(len(fit), rng.randint(1, most))) if fit else []

    def _pool(self, rng: Random) -> int:
        return rng.choice(list(self.pools))

    def _no_reference_left(self, pool: int, number: int) -> None:
        for request in self.requests.values():
            table = request.tables.get(pool, [])
            request.tables[pool] = [unit for unit in table if unit != number]

    def _alloc(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.state in ("free", "cached"))
        for number in units:
            self.pools[pool][number] = Unit(references=1)
        self._tell(pool, "alloc", units, rng)

    def _tell(self, pool: int, verb: str, units: list[int], rng: Random) -> None:
        probe = self.probes[pool]
        if len(units) == 1 and hasattr(probe, f"{verb}_one") and rng.random() < 0.7:
            getattr(probe, f"{verb}_one")(units[0])
        else:
            getattr(probe, verb)(units)

    def _alloc_run(self, rng: Random) -> None:
        pool = self._pool(rng)
        runs = self.free_runs(pool)
        if runs:
            start, length = rng.choice(runs)
            count = rng.randint(1, length)
            start += rng.randint(0, length - count)
            for number in range(start, start + count):
                self.pools[pool][number] = Unit(references=1)
            self.probes[pool].alloc_run(start, count)

    def _free_run(self, rng: Random) -> None:
        pool = self._pool(rng)
        first = self._pick(rng, pool, lambda u: u.references == 1, 1)
        if first:
            end = first[0]
            while end in self.pools[pool] and self.pools[pool][end].references == 1 and end - first[0] < 20:
                end += 1
            for number in range(first[0], end):
                self._drop(pool, number)
            self.probes[pool].free_run(first[0], end - first[0])

    def _drop(self, pool: int, number: int) -> None:
        unit = self.pools[pool][number]
        unit.references -= 1
        if unit.references == 0:
            unit.named_last = 0
            unit.sharers = set()
            self._no_reference_left(pool, number)

    def _share(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.state in ("active", "cached", "pinned"))
        for number in units:
            self.pools[pool][number].references += 1
        self._tell(pool, "share", units, rng)

    def _unshare(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.references > 0, 9)
        for number in units:
            self._drop(pool, number)
        self._tell(pool, "unshare", units, rng)

    def _free(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.references == 1 or u.state == "deferred")
        for number in units:
            unit = self.pools[pool][number]
            if unit.references:
                self._drop(pool, number)
            unit.deferred = False
        self._tell(pool, "free", units, rng)

    def _cache(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.references > 0)
        for number in units:
            self.pools[pool][number].cached = True
        self._tell(pool, "cache", units, rng)

    def _evict(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.cached and not u.pinned)
        for number in units:
            self.pools[pool][number].cached = False
        self._tell(pool, "evict", units, rng)

    def _pin(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.cached and not u.pinned)
        for number in units:
            self.pools[pool][number].pinned = True
        self._tell(pool, "pin", units, rng)

    def _unpin(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.pinned)
        for number in units:
            self.pools[pool][number].pinned = False
        self._tell(pool, "unpin", units, rng)

    def _defer(self, rng: Random) -> None:
        pool = self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.references == 1)
        for number in units:
            self.pools[pool][number].deferred = True
            self._drop(pool, number)
        self._tell(pool, "defer", units, rng)

    def _reset(self, rng: Random) -> None:
        pool = self._pool(rng)
        for unit in self.pools[pool].values():
            unit.cached = unit.pinned = False
        self.probes[pool].reset()

    def _arrive(self, rng: Random) -> None:
        self.arrivals += 1
        limit = rng.choice((None, 7))
        request = Request(RequestState.WAITING, self.clock, rng.randint(1, 99), limit, rng.randint(0, 3))
        self.requests[self.arrivals] = request
        self.probe.arrived(
            self.arrivals, request.arrived_ns, request.prompt, class_id=request.class_id, limit=request.limit
        )

    def _request(self, rng: Random, *states: RequestState) -> tuple[int, Request] | None:
        fit = [(number, request) for number, request in self.requests.items() if request.state in states]
        return rng.choice(fit) if fit else None

    def _admit(self, rng: Random) -> None:
        found = self._request(rng, RequestState.WAITING, RequestState.PREEMPTED)
        if found:
            found[1].state = RequestState.RUNNING
            self.probe.admitted(found[0])

    def _assign(self, rng: Random) -> None:
        found, pool = self._request(rng, RequestState.RUNNING), self._pool(rng)
        units = self._pick(rng, pool, lambda u: u.references > 0)
        if found and units:
            number, request = found
            if rng.random() < 0.3:
                units = units[:1]
                self.probes[pool].assign_run(number, units[0], 1)
            else:
                self.probes[pool].assign(number, units)
            request.tables.setdefault(pool, []).extend(units)
            for unit in units:
                self.pools[pool][unit].named_last = number
                self.pools[pool][unit].sharers.add(number)

    def _progress(self, rng: Random) -> None:
        found = self._request(rng, RequestState.RUNNING)
        if found:
            number, request = found
            request.computed += rng.randint(0, 40)
            request.decoding, request.said = rng.random() < 0.7, True
            self.probe.progress(number, request.computed, request.decoding)

    def _reserve(self, rng: Random) -> None:
        found = self._request(rng, RequestState.RUNNING)
        if found:
            found[1].reserved = rng.randint(1, 500)
            self.probes[1].reserve(found[0], found[1].reserved)

    def _preempt(self, rng: Random) -> None:
        found = self._request(rng, RequestState.RUNNING)
        if found:
            number, request = found
            self.probe.preempted(number, request.computed)
            request.state, request.computed, request.reserved = RequestState.PREEMPTED, 0, 0
            request.decoding, request.tables = False, {}

    def _finish(self, rng: Random) -> None:
        found = self._request(rng, RequestState.RUNNING, RequestState.WAITING)
        if found:
            del self.requests[found[0]]
            self.probe.finished(found[0], FinishReason.STOP, 5)

    # -- what is true --

    def free_runs(self, pool: int) -> list[tuple[int, int]]:
        """(start, length) of the maximal runs of free units."""
        runs: list[tuple[int, int]] = []
        for number, unit in self.pools[pool].items():
            if unit.state != "free":
                continue
            if runs and sum(runs[-1]) == number:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((number, 1))
        return runs


UNIT_ACTS = ("alloc", "share", "unshare", "free", "cache", "evict", "pin", "unpin", "defer", "reset")
RUN_ACTS = ("alloc_run", "free_run")
REQUEST_ACTS = ("arrive", "admit", "assign", "progress", "reserve", "preempt", "finish")
OFTEN = ("alloc", "alloc", "unshare", "share", "cache", "arrive", "admit", "assign", "assign", "progress")


def check(state: StreamState, engine: Engine) -> None:
    """Everything the fold knows is what the engine knows; called between steps."""
    for number, units in engine.pools.items():
        pool = state.pools[number]
        expected = engine.status(number, 1, len(units))
        assert [word | 1 << 31 for word in pool.status.tolist()] == expected
        states = [unit.state for unit in units.values()]
        assert pool.units == {name: states.count(name) for name in pool.units}
        assert sum(pool.units.values()) == len(units)
        assert pool.shared == sum(unit.references > 1 for unit in units.values())
        named = [unit for request in engine.requests.values() for unit in request.tables.get(number, [])]
        active = [unit for unit in units if units[unit].references]
        assert pool.owners.tolist() == [named.count(unit) for unit in units]
        for unit in active:
            last = int(pool.owner[unit - 1])
            assert last or unit not in named
            # an audit names owners again in its own order, so of several that ever shared a unit any may be the last
            if last not in (0, units[unit].named_last):
                assert units[unit].sharers >= {last, units[unit].named_last}
        if pool.unowned is not None:
            assert pool.unowned == sum(unit not in named for unit in active)
        if pool.contiguity != "none":
            lengths = [length for _, length in engine.free_runs(number)]
            assert pool.largest_free == max(lengths, default=0)
            assert state._runs is not None
            assert state._runs.count[number] == len(lengths)
            assert pool.free_runs().tolist() == lengths
    rows = state.requests
    live = {int(rows.id[row]): row for row in np.flatnonzero(rows.id).tolist()}
    assert set(live) == set(engine.requests)
    for name, request in engine.requests.items():
        row = live[name]
        since = int(rows.decoding[row])
        computed = int(rows.computed[row]) + (state.steps - since if since >= 0 else 0)
        assert computed == request.computed
        assert (rows.state[row], rows.class_id[row]) == (request.state, request.class_id)
        assert (rows.arrived[row], rows.prompt[row]) == (request.arrived_ns, request.prompt)
        assert rows.limit[row] == (-1 if request.limit is None else request.limit)
        assert rows.reserved[row] == (request.reserved or 0)
        for number in engine.pools:
            assert state.table(row, number).tolist() == request.tables.get(number, [])
            assert rows.units[row, number] == len(request.tables.get(number, []))

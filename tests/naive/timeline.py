"""A timeline as a person would draw it: after every single event everything is counted anew and written down.

Slow on purpose; it shares no code with the kernels. Buckets are cut out of the whole list afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from kvmon.events import Event, RequestState, decode
from tests.naive.replayed import ReplayedEngine


@dataclass(frozen=True)
class PoolFacts:
    """What the naive model has to be told of a pool."""

    unit_tokens: int
    contiguous: bool = False
    buddy: bool = False
    windowed: bool = False


@dataclass
class Moment:
    """What held after an event (`whole` False), or after a frame."""

    time_ns: int
    whole: bool
    values: dict[str, float]


@dataclass
class NaivePicture:
    """The least, the most, the last and the mean by time of one curve in one bucket; NaN where nothing was known."""

    least: float = nan
    most: float = nan
    last: float = nan
    mean: float = nan


class NaiveTimeline(ReplayedEngine):
    """Follows frames; `pools_facts` by number."""

    def __init__(self, capacities: dict[int, int], facts: dict[int, PoolFacts]) -> None:
        super().__init__(capacities)
        self.facts = facts
        self.moments: list[Moment] = []
        self.failures: list[tuple[int, int, int]] = []  # (ns, pool, reason)
        self.counts: list[tuple[int, str, int]] = []  # (ns, what, how many)
        self.steps_taken: list[tuple[int, int]] = []  # (ns, duration)
        self.was_preempted: set[int] = set()
        self.starving: set[int] = set()
        self.step_said: dict[str, int] = {}
        self.time_ns = 0
        self.named: set[int] = set()  # pools in which a live request was given units by name
        self.lost_here = 0
        self.worst: tuple[int, float, int] = (-1, 0.0, 0)

    def frame(self, time_ns: int, events: Iterable[Event]) -> None:
        """All events of one frame, one by one."""
        self.time_ns = time_ns
        self.lost_here = 0
        for event in events:
            self.apply([event])
            self._note(event)
            self.moments.append(Moment(time_ns, False, self._after_event()))
        self.moments.append(Moment(time_ns, True, {**self._after_event(), **self._after_frame()}))
        pain = len(self.starving) + self.lost_here
        share = max(1 - self._available(number) / pool.capacity for number, pool in self.pools.items())
        if (pain, share) > self.worst[:2] or self.worst[0] < 0:
            self.worst = (pain, share, time_ns)

    # -- what is heard --

    def on_evict(self, number: int, units: Iterable[int], fields: dict[str, Any]) -> None:
        """Real engines also forget the content of pages that somebody holds."""
        pool = self.pools[number]
        pool.evictions += sum(1 for _ in units)
        pool.cached.difference_update(units)
        pool.pinned.difference_update(units)

    def on_audit_request(self, number: int, units: Iterable[int], fields: dict[str, Any]) -> None:
        """A live request is said once more; its tables follow."""
        request, state = fields["request"], fields["state"]
        self._let_go(request)
        self.live.add(request)
        self.computed[request] = fields["computed"]
        self.said.add(request)
        if fields["decoding"]:
            self.decoding.add(request)
        if fields["reserved"]:
            self.reserved[request] = fields["reserved"]
        if state == RequestState.RUNNING:
            self.running.add(request)
        if state == RequestState.PREEMPTED:
            self.was_preempted.add(request)

    def on_truncate(self, number: int, units: Iterable[int], fields: dict[str, Any]) -> None:
        """A table loses its end."""
        self.computed[fields["request"]] = fields["tokens"]
        self.said.add(fields["request"])
        for (request, pool, _), table in self.tables.items():
            if (request, pool) == (fields["request"], number):
                table[:] = [unit for unit in table if unit not in set(units)]

    def on_offloaded(self, number: int, units: Iterable[int], fields: dict[str, Any]) -> None:
        """Traffic between pools is no part of the state."""

    on_onboarded = on_offloaded

    def _note(self, event: Event) -> None:
        kind, fields = event.kind.name, event.fields
        request = fields.get("request")
        if kind == "ALLOC_FAILED":
            self.failures.append((self.time_ns, event.pool, fields["reason"]))
            self.lost_here += fields["outcome"] in (3, 5)
            if request in self.live:
                self.starving.add(request)
        elif kind in ("REQUEST_ADMITTED", "REQUEST_FINISHED"):
            self.starving.discard(request)
            self.was_preempted.discard(request)
        elif kind in ("ASSIGN", "ASSIGN_RUN"):
            self.named.add(event.pool)
            if request in self.running:
                self.starving.discard(request)
        elif kind == "PREEMPTED":
            self.was_preempted.add(request)
            self.counts += [
                (self.time_ns, "preemptions", 1),
                (self.time_ns, "recomputed_tokens", fields["lost_tokens"]),
            ]
        elif kind == "CACHE_HIT":
            self.counts += [(self.time_ns, name, fields[name]) for name in ("lookup_tokens", "hit_tokens")]
        elif kind == "STEP":
            self.step_said = {"running": fields["running"], "waiting": fields["waiting"]}
            self.step_said["head_need"] = fields["head_need"] or 0
            self.steps_taken.append((self.time_ns, fields["duration"]))
            self.counts += [(self.time_ns, "steps", 1), (self.time_ns, "prefill_tokens", fields["prefill"])]
            self.counts.append((self.time_ns, "decode_tokens", fields["decode"]))
        if kind == "REQUEST_ARRIVED":
            self.counts.append((self.time_ns, "arrived", 1))
        if kind == "REQUEST_FINISHED":
            self.counts.append((self.time_ns, "finished", 1))

    # -- what is so --

    def _runs(self, number: int, free: Sequence[str]) -> list[tuple[int, int]]:
        """(offset, length) of the stretches of units in these states."""
        pool, runs, length = self.pools[number], [], 0
        for unit in range(1, pool.capacity + 2):
            if unit <= pool.capacity and pool.state(unit) in free:
                length += 1
            elif length:
                runs.append((unit - 1 - length, length))
                length = 0
        return runs

    def _places(self, size: int, offset: int, length: int, buddy: bool) -> int:
        """Blocks of `size` in a run, those of buddies at multiples of it."""
        if not buddy:
            return length // size
        return sum(offset <= at and at + size <= offset + length for at in range(0, offset + length, size))

    def _largest(self, number: int, free: Sequence[str]) -> int:
        runs = self._runs(number, free)
        if not self.facts[number].buddy:
            return max((length for _, length in runs), default=0)
        size = 1
        while any(self._places(size, offset, length, True) for offset, length in runs):
            size *= 2
        return size // 2

    def _available(self, number: int) -> int:
        sums = self.pools[number].state_sums()
        return sums["free"] + sums["cached"]

    def _after_event(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for number, pool in self.pools.items():
            sums = pool.state_sums()
            available = sums["free"] + sums["cached"]
            said: dict[str, float] = {**sums, "available": available, "capacity": pool.capacity}
            if self.facts[number].contiguous:
                runs = self._runs(number, ["free"])
                said["free_runs"] = len(runs)
                said["largest_free"] = self._largest(number, ["free"])
                longest = max((length for _, length in runs), default=0)
                if sums["free"]:
                    said["external_fragmentation"] = 1 - longest / sums["free"]
                if not sums["cached"]:
                    said["largest_after_eviction"] = said["largest_free"]
            else:
                said["largest_free"], said["largest_after_eviction"] = sums["free"], available
            values |= {f"{number} {name}": float(value) for name, value in said.items()}
        return values

    def _after_frame(self) -> dict[str, float]:
        said: dict[str, float] = {f"0 {name}": value for name, value in self.step_said.items()}
        said["0 preempted"] = len(self.was_preempted)
        said["0 waiting_for_memory"] = len(self.starving)
        for number in self.pools:
            slots = self.slots(number)
            if number in self.named:
                said[f"{number} unowned"] = len(self.unowned(number))
            said |= {f"{number} {name}": float(count) for name, count in slots.items()}
            if sum(slots.values()):
                said[f"{number} page_utilization"] = slots["written"] / sum(slots.values())
            if self.facts[number].contiguous:
                said[f"{number} largest_after_eviction"] = self._largest(number, ["free", "cached"])
        need = self.step_said.get("head_need", 0)
        facts = self.facts[1]
        if need and facts.contiguous:
            while facts.buddy and need & (need - 1):
                need += 1
            runs = self._runs(1, ["free"])
            free = sum(length for _, length in runs)
            if free >= need:
                placed = sum(self._places(need, offset, length, facts.buddy) for offset, length in runs)
                said["1 lost_at_head"] = 1 - placed / (free // need)
        return said

    def slots(self, number: int) -> dict[str, int]:
        """Token slots of the units that somebody refers to: written, the rest of a last unit, reserved."""
        tokens, facts = self.facts[number].unit_tokens, self.facts[number]
        filled: dict[int, int] = {}
        for (request, pool, _), units in self.tables.items():
            if pool != number:
                continue
            ends = [len(units)]
            if facts.windowed:
                ends += [
                    len(table)
                    for (owner, other, _), table in self.tables.items()
                    if owner == request and (other == number or not self.facts[other].windowed)
                ]
            ends.append(-(-self.computed[request] // tokens))  # what is computed is there, or was and the window moved
            for place, unit in enumerate(units, max(ends) - len(units)):
                here = min(max(self.computed[request] - place * tokens, 0), tokens)
                filled[unit] = max(filled.get(unit, 0), here)
        used = [unit for unit, count in self.pools[number].references.items() if count]
        return {
            "written": sum(filled.get(unit, tokens) for unit in used),
            "tail": sum(tokens - filled[unit] for unit in used if filled.get(unit, 0) > 0),
            "reserved": sum(tokens for unit in used if filled.get(unit) == 0),
        }

    # -- buckets --

    def picture(self, curve: str, edges: Sequence[int]) -> list[NaivePicture]:
        """The curve `pool name` (0 = of the stream) in each bucket."""
        pictures = []
        held, since, at = nan, 0, 0
        for begin, end in itertools.pairwise(edges):
            seen: list[float] = [held]
            area, known, since = 0.0, 0, max(since, begin)
            while at < len(self.moments) and self.moments[at].time_ns <= end:
                moment = self.moments[at]
                value = moment.values.get(curve, nan)
                seen.append(value)
                if moment.whole:
                    if not isnan(held):
                        area, known = area + held * (moment.time_ns - since), known + moment.time_ns - since
                    held, since = value, moment.time_ns
                at += 1
            if not isnan(held):
                area, known = area + held * (end - since), known + end - since
            since = end
            real = [value for value in seen if not isnan(value)]
            mean = area / known if known else nan
            pictures.append(NaivePicture(min(real, default=nan), max(real, default=nan), held, mean))
        return pictures

    def counted(self, what: str, edges: Sequence[int]) -> list[int]:
        """How many of something each bucket has."""
        return [
            sum(count for time_ns, name, count in self.counts if name == what and begin < time_ns <= end)
            for begin, end in itertools.pairwise(edges)
        ]


def frames_of(words: Any, table: Any) -> Iterable[tuple[int, list[Event]]]:
    """Time and decoded events of each frame."""
    begin = 0
    for end, time_ns in zip(table.ends.tolist(), table.times.tolist(), strict=True):
        yield time_ns, list(decode(words[begin:end].tolist()))
        begin = end

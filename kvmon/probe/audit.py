"""The audit: ship what the engine itself says about its units and live requests, a slice with every step.

It lets a late reader find the truth, and shows what no hook saw. One walk over everything is a sweep; it lies between
two AUDIT_SWEEP records, so that a reader knows when it has seen all. Bounded per step, and an engine whose structures
raise is read no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvmon.events.kinds import Kind
from kvmon.events.wire import LONG, encode
from kvmon.probe.emitter import Emitter, Loss

__all__ = ["Audit", "AuditSource", "RequestPicture"]

_UNITS = 128  # units looked at in a step, at least
_MOST_UNITS = 4096
_STEPS = 2048  # steps that a sweep over the units may take, as far as slices of _MOST_UNITS allow
_REQUESTS, _TABLE_UNITS = 4, 256  # live requests in a step, and units in their tables after which a step has enough
_RESTATE_FRAMES = 256  # between two restatements, beside the one at the start of each segment
_FAILURES = 3  # after so many an audit is switched off

_SLICE = LONG << 27 | Kind.AUDIT_SLICE << 19
_RUN = LONG << 27 | Kind.AUDIT_RUN << 19 | 3
_ASSIGN = LONG << 27 | Kind.ASSIGN << 19
_ASSIGN_RUN = LONG << 27 | Kind.ASSIGN_RUN << 19 | 4


@dataclass(frozen=True)
class RequestPicture:
    """A live request as an audit restates it; `tables` holds (pool, group, units in the order of the sequence)."""

    state: int
    class_id: int
    arrived_ns: int
    prompt: int
    limit: int | None
    computed: int
    decoding: bool
    reserved: int | None = None
    tables: Sequence[tuple[int, int, Sequence[int]]] = ()


class AuditSource(Protocol):
    """Where the audit reads the engine's own truth."""

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words (`events.status_word`) of the units from `first` on."""

    def live_requests(self) -> Sequence[int]:
        """Ids of the requests that wait or run."""

    def picture(self, request: int) -> RequestPicture | None:
        """The request as it is now; None when it has ended."""


class Audit:
    """Walks over units and live requests a slice at a time.

    `capacities` gives (number, units) of each pool; `restate` says again what the pools are, for a reader that lost it.
    Only every `every`-th call ships a slice.
    """

    def __init__(
        self,
        emitter: Emitter,
        capacities: Callable[[], list[tuple[int, int]]],
        restate: Callable[[], None],
        source: AuditSource,
        every: int = 1,
    ) -> None:
        self._every, self._rest = max(every, 1), 0
        self._emitter = emitter
        self._capacities = capacities
        self._restate = restate
        self._restate_at = emitter.frame + _RESTATE_FRAMES
        self._source = source
        self._sweep = self._failures = 0
        self._slices: Iterator[None] = self._walk()

    def restart(self) -> None:
        """Begin a new sweep: what was shipped of this one is worth nothing after a gap."""
        if self._failures < _FAILURES:
            self._slices = self._walk()
            self._restate_at = 0

    def slice(self) -> None:
        """Ship the next slice; an audit that fails begins again, and is switched off when it goes on failing."""
        self._rest -= 1
        if self._rest > 0:
            return
        self._rest = self._every
        try:
            next(self._slices)
        except Exception:  # the engine's own structures are read here: whatever they raise must not reach it
            self._failures += 1
            self._emitter.complain(Loss.HOOK)
            self._slices = self._walk() if self._failures < _FAILURES else _endless()

    def _walk(self) -> Iterator[None]:
        emitter = self._emitter
        while True:
            self._sweep += 1
            if emitter.frame >= self._restate_at:
                self._restate_at = emitter.frame + _RESTATE_FRAMES
                self._restate()
            emitter.put(encode(Kind.AUDIT_SWEEP, sweep=self._sweep, ended=0, live=0))
            for pool, capacity in self._capacities():
                yield from self._units(pool, capacity)
            live = list(self._source.live_requests())
            requests = units = 0
            for request in live:
                requests += 1
                units += self._request(request)
                if requests >= _REQUESTS or units >= _TABLE_UNITS:
                    requests = units = 0
                    yield
            emitter.select(1)
            emitter.put(encode(Kind.AUDIT_SWEEP, sweep=self._sweep, ended=1, live=len(live)))
            yield

    def _units(self, pool: int, capacity: int) -> Iterator[None]:
        emitter = self._emitter
        count = min(max(_UNITS, -(-capacity // _STEPS)), _MOST_UNITS)
        for first in range(1, capacity + 1, count):
            asked = min(count, capacity + 1 - first)
            status = self._source.status(pool, first, asked)
            if len(status) != asked:
                raise ValueError("the audit source gave another number of units than it was asked for")
            emitter.select(pool)
            if asked > 1 and min(status) == max(status):
                emitter.put((_RUN, first, asked, status[0]))
            else:
                emitter.put((_SLICE | asked + 1, first, *status))
            yield

    def _request(self, request: int) -> int:
        """Restate one live request with its tables, in one frame; units in its tables."""
        picture = self._source.picture(request)
        if picture is None:
            return 0
        emitter, shipped = self._emitter, 0
        emitter.put(
            encode(
                Kind.AUDIT_REQUEST,
                request=request,
                state=picture.state,
                class_id=picture.class_id,
                at=picture.arrived_ns,
                prompt=picture.prompt,
                limit=picture.limit,
                computed=picture.computed,
                decoding=int(picture.decoding),
                reserved=picture.reserved,
            )
        )
        for pool, group, units in picture.tables:
            count = len(units)
            shipped += count
            if count == 0 or not emitter.select(pool):
                continue
            first = units[0]
            if count > 2 and units[-1] - first == count - 1 and list(units) == list(range(first, first + count)):
                emitter.put((_ASSIGN_RUN, request, group + 1, first, count))
                continue
            size = max(emitter.largest - 3, 1)
            for at in range(0, count, size):
                part = units[at : at + size]
                emitter.put((_ASSIGN | len(part) + 2, request, group + 1, *part))
        return shipped


def _endless() -> Iterator[None]:
    while True:
        yield

"""Requests of a life as they go through it: one object each while they live, handed on when they have ended.

Invariant: memory follows from the requests that live at once. What a request did before the export begins is not known,
but for the state that it was in then; a number of it that would need the rest is None. One whose end lies in a gap is
handed on when an audit has gone round without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.events import FinishReason, Kind, RequestState
from kvmon.replay.export.following import Batch
from kvmon.state import StreamState
from kvmon.state.watch import R

__all__ = ["NOT_ENDED", "Request", "RequestBook", "request_events"]

Ints = npt.NDArray[np.int64]

NOT_ENDED = -1

_WANTED: dict[Kind, tuple[str, ...]] = {
    Kind.REQUEST_ARRIVED: ("at", "class_id", "prompt", "limit", "intended"),
    Kind.REQUEST_ADMITTED: (),
    Kind.FIRST_TOKEN: (),
    Kind.REQUEST_FINISHED: ("reason", "output", "intended"),
    Kind.CACHE_HIT: ("hit_tokens", "lookup_tokens"),
    Kind.PREEMPTED: ("lost_tokens",),
    Kind.ALLOC_FAILED: (),
    Kind.AUDIT_REQUEST: ("state", "class_id", "at", "prompt", "limit"),
    Kind.GAP: (),
}
_IS_WANTED = np.zeros(256, np.bool_)
_IS_WANTED[list(_WANTED)] = True


@dataclass(slots=True)
class Request:
    """One request; ns, tokens, None = not known or not yet. `state` is where it is now.

    `reason` is a FinishReason, NOT_ENDED while it lives; without `finished_ns` it has ended, and nobody saw when.
    `incomplete`: something is missing of its life within the export, its counts and waits are at least these.
    """

    number: int
    class_id: int | None = None
    arrived_ns: int | None = None
    admitted_ns: int | None = None
    first_token_ns: int | None = None
    finished_ns: int | None = None
    reason: int = NOT_ENDED
    memory_wait_ns: int = 0
    prompt: int | None = None
    limit: int | None = None
    intended: int | None = None
    output: int | None = None
    lookup: int | None = None
    hit: int | None = None
    refused: int = 0
    preemptions: int = 0
    lost: int = 0
    from_before: bool = False
    incomplete: bool = False
    state: int = RequestState.WAITING


def request_events(batch: Batch) -> Iterator[tuple[Kind, int, int, tuple[int, ...]]]:
    """(kind, request, ns, fields of `_WANTED`) of the records about requests, in their order; -1 = absent.

    Where something is missing, a GAP about request -1 stands among them.
    """
    records = batch.records
    wanted = np.flatnonzero(_IS_WANTED[records.kind] & ((records.request >= 0) | (records.kind == Kind.GAP)))
    kinds = records.kind[wanted]
    said: dict[int, Iterator[tuple[int, ...]]] = {}
    for kind, names in _WANTED.items():
        rows = wanted[kinds == kind]
        columns = [records.field(kind, name, rows).tolist() for name in names]
        said[kind] = iter(zip(*columns, strict=True)) if names else iter([()] * len(rows))
    times, frames = records.time_ns[wanted].tolist(), records.frame[wanted].tolist()
    jumps = [place for place, _ in batch.jumps]
    for kind, request, time_ns, frame in zip(
        kinds.tolist(), records.request[wanted].tolist(), times, frames, strict=True
    ):
        while jumps and jumps[0] <= frame:
            yield Kind.GAP, -1, int(records.table.times[jumps.pop(0)]), ()
        yield Kind(kind), request, time_ns, next(said[kind])
    for place in jumps:
        yield Kind.GAP, -1, int(records.table.times[place]), ()


class RequestBook:
    """The live requests of one life; `state` is its fold, which now stands at the begin of the export."""

    def __init__(self, state: StreamState) -> None:
        self.live: dict[int, Request] = {}
        self._state = state
        self._gap = not state.converged  # since the last audit that has gone round
        self._waits: dict[int, int] = {}  # request -> since when (ns) it waits for memory
        requests = state.requests
        for row in np.flatnonzero(requests.id).tolist():
            request = Request(
                int(requests.id[row]),
                class_id=int(requests.class_id[row]),
                arrived_ns=int(requests.arrived[row]),
                # the state keeps the last admission, which is the first one of a request that was never preempted
                admitted_ns=None if requests.preemptions[row] else int(requests.admitted[row]) or None,
                first_token_ns=int(requests.first_token[row]) or None,
                prompt=int(requests.prompt[row]),
                limit=_known(int(requests.limit[row])),
                preemptions=int(requests.preemptions[row]),
                from_before=True,
                incomplete=self._gap,
                state=int(requests.state[row]),
            )
            self.live[request.number] = request
            if requests.starved[row]:
                self._waits[request.number] = int(requests.starved[row])

    @property
    def waiting(self) -> list[int]:
        """Numbers of the live requests that wait for memory."""
        return sorted(number for number in self._waits if number in self.live)

    def apply(self, batch: Batch) -> list[Request]:
        """Take a batch; the requests that ended in it, in the order of their ends."""
        ended = [
            request
            for kind, number, time_ns, said in request_events(batch)
            if (request := self.take(kind, number, time_ns, said)) is not None
        ]
        gone = {request.number: request for request in ended}
        for row in batch.refusals.tolist():
            number = row[R.REQUEST]
            if row[R.KIND] == R.REFUSED and row[R.SEQ] > 0:
                self._waits.setdefault(number, row[R.TIME])
            elif row[R.KIND] == R.ENDED:
                self._waits.pop(number, None)
                request = self.live.get(number) or gone.get(number)
                if request is not None:
                    request.memory_wait_ns += row[R.TIME] - row[R.SINCE]
        return ended + self.unseen()

    def unseen(self) -> list[Request]:
        """Requests that ended in a gap: an audit has gone round since, and did not name them."""
        if not self._gap or not self._state.converged:
            return []
        self._gap = False
        requests = self._state.requests
        gone = [self.live.pop(number) for number in sorted(self.live.keys() - set(requests.id.tolist()))]
        for request in gone:
            request.reason, request.state = FinishReason.UNKNOWN, RequestState.FINISHED
            self._waits.pop(request.number, None)
        return gone

    def rest(self, end_ns: int) -> list[Request]:
        """Those that have not ended; who waits for memory has waited until `end_ns`."""
        for number, since in self._waits.items():
            if number in self.live:
                self.live[number].memory_wait_ns += max(end_ns - since, 0)
        return [self.live[number] for number in sorted(self.live)]

    def take(self, kind: Kind, number: int, time_ns: int, said: tuple[int, ...]) -> Request | None:
        """Take one record of `request_events`; the request, if it has ended."""
        if kind is Kind.GAP:
            self._gap = True
            for one in self.live.values():
                one.incomplete = True
            return None
        request = self.live.get(number)
        if kind is Kind.REQUEST_ARRIVED:
            at, class_id, prompt, limit, intended = said
            self.live[number] = Request(
                number, class_id, at, prompt=prompt, limit=_known(limit), intended=_known(intended), lookup=0, hit=0
            )
            return None
        if request is None:
            if kind is Kind.ALLOC_FAILED:
                return None
            request = Request(number, from_before=True, incomplete=True, state=RequestState.UNKNOWN)
            self.live[number] = request
        if kind is Kind.REQUEST_ADMITTED:
            request.state = RequestState.RUNNING
            if request.admitted_ns is None and request.preemptions == 0 and not request.incomplete:
                request.admitted_ns = time_ns
        elif kind is Kind.FIRST_TOKEN:
            if request.first_token_ns is None:
                request.first_token_ns = time_ns
        elif kind is Kind.CACHE_HIT:
            if request.preemptions == 0 and not (request.from_before and request.admitted_ns is not None):
                hit, lookup = said
                request.hit = (request.hit or 0) + hit
                request.lookup = (request.lookup or 0) + lookup
        elif kind is Kind.PREEMPTED:
            request.state = RequestState.PREEMPTED
            request.preemptions += 1
            request.lost += said[0]
        elif kind is Kind.ALLOC_FAILED:
            request.refused += 1
        elif kind is Kind.AUDIT_REQUEST:
            request.state, request.class_id, request.arrived_ns, request.prompt, limit = said
            request.limit = _known(limit)
        else:
            reason, request.output, intended = said
            request.reason = reason if reason < len(FinishReason) else FinishReason.UNKNOWN
            request.intended = _known(intended) if request.intended is None else request.intended
            request.finished_ns = time_ns
            request.state = RequestState.FINISHED
            return self.live.pop(number)
        return None


def _known(value: int) -> int | None:
    return value if value >= 0 else None

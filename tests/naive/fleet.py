"""What a fleet's captures say, counted from decoded events with dictionaries: for the questions of docs/export.md.

It shares no code with the fold or the exporter. Each unit, each request and each wait is kept on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvmon.events import FAILURE_REASONS, Event, FailureOutcome, FinishReason, Kind, RequestState

LOST = (FailureOutcome.REFUSED, FailureOutcome.ABORTED)


@dataclass
class Told:
    """A request, in ns; None = did not happen."""

    class_id: int
    arrived: int
    admitted: int | None = None
    first_token: int | None = None
    finished: int | None = None
    waited: int = 0
    state: RequestState = RequestState.WAITING
    reason: FinishReason | None = None


@dataclass
class Refused:
    """A refused allocation with the memory at that instant, in units of the pool."""

    reason: str
    outcome: FailureOutcome
    need: int
    free: int
    largest: int
    active: int
    pinned: int


@dataclass
class NaiveCapture:
    """One stream with one pool that has no transfers; frames are taken in their order."""

    capacity: int
    requests: dict[int, Told] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    held: list[dict[tuple[int, str], int]] = field(default_factory=list)
    """Units by (class, state) at the begin of each frame with a refused allocation."""
    most_active: int = 0
    hits: list[tuple[int, int, int]] = field(default_factory=list)
    """(ns, tokens found, tokens looked up)"""
    runs: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Units of each run of neighbours, by kind of event."""
    times: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """ns of each event, by its kind."""
    _references: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _cached: set[int] = field(default_factory=set)
    _pinned: set[int] = field(default_factory=set)
    _owners: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _units: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    _starving: dict[int, int] = field(default_factory=dict)

    def frame(self, time_ns: int, events: Iterable[Event]) -> None:
        """All events of one frame."""
        events = list(events)
        if any(event.kind is Kind.ALLOC_FAILED for event in events):
            self.held.append(self._holders())
        for event in events:
            self._unit(event)
            self._request(event, time_ns)
            self.most_active = max(self.most_active, len(self._references))
            if event.units:
                self._note_runs(event, time_ns)

    def close(self, time_ns: int) -> None:
        """The last frame ended at `time_ns`."""
        for number in list(self._starving):
            self._fed(number, time_ns)

    def _holders(self) -> dict[tuple[int, str], int]:
        held: dict[tuple[int, str], int] = defaultdict(int)
        for number, units in self._units.items():
            if units:
                request = self.requests[number]
                held[request.class_id, request.state.name.lower()] += len(units)
        return held

    def _unit(self, event: Event) -> None:
        for unit in event.units:
            if event.kind is Kind.ALLOC:
                self._references[unit] = 1
                self._cached.discard(unit)
                self._pinned.discard(unit)
            elif event.kind is Kind.SHARE:
                self._references[unit] += 1
            elif event.kind in (Kind.UNSHARE, Kind.FREE):
                self._references[unit] -= 1
                if self._references[unit] <= 0 or event.kind is Kind.FREE:
                    del self._references[unit]
                    for number in self._owners.pop(unit, ()):
                        self._units[number].remove(unit)
            elif event.kind is Kind.CACHE_INSERT:
                self._cached.add(unit)
            elif event.kind is Kind.EVICT:
                self._cached.discard(unit)
                self._pinned.discard(unit)
            elif event.kind is Kind.PIN:
                self._pinned.add(unit)
            elif event.kind is Kind.UNPIN:
                self._pinned.discard(unit)
            elif event.kind in (Kind.ASSIGN, Kind.ASSIGN_RUN):
                self._units[event.fields["request"]].append(unit)
                self._owners[unit].append(event.fields["request"])

    def _request(self, event: Event, now: int) -> None:
        fields: dict[str, Any] = event.fields
        number = fields.get("request")
        if event.kind is Kind.REQUEST_ARRIVED:
            self.requests[fields["request"]] = Told(fields["class_id"], fields["at"])
            return
        if event.kind is Kind.ALLOC_FAILED:
            pinned = sum(unit not in self._references for unit in self._pinned)
            self.refused.append(
                Refused(
                    FAILURE_REASONS[fields["reason"]],
                    FailureOutcome(fields["outcome"]),
                    fields["need"],
                    fields["free"],
                    fields["largest"],
                    len(self._references),
                    pinned,
                )
            )
        request = None if number is None else self.requests.get(number)
        if request is None or number is None or request.finished is not None:
            return
        if event.kind is Kind.ALLOC_FAILED:
            self._starving.setdefault(number, now)
        elif event.kind is Kind.REQUEST_ADMITTED:
            request.admitted = now if request.admitted is None else request.admitted
            request.state = RequestState.RUNNING
            self._fed(number, now)
        elif event.kind in (Kind.ASSIGN, Kind.ASSIGN_RUN) and request.state is RequestState.RUNNING:
            self._fed(number, now)
        elif event.kind is Kind.FIRST_TOKEN:
            request.first_token = now if request.first_token is None else request.first_token
        elif event.kind is Kind.CACHE_HIT:
            self.hits.append((now, fields["hit_tokens"], fields["lookup_tokens"]))
        elif event.kind is Kind.PREEMPTED:
            request.state = RequestState.PREEMPTED
            self._let_go(number)
        elif event.kind is Kind.REQUEST_FINISHED:
            request.finished, request.reason = now, FinishReason(fields["reason"])
            self._fed(number, now)
            self._let_go(number)

    def _fed(self, number: int, now: int) -> None:
        since = self._starving.pop(number, None)
        if since is not None:
            self.requests[number].waited += now - since

    def _let_go(self, number: int) -> None:
        for unit in self._units.pop(number, ()):
            self._owners[unit].remove(number)

    def _note_runs(self, event: Event, now: int) -> None:
        kind, before = event.kind.name.lower(), None
        for unit in event.units:
            if before is not None and unit == before + 1:
                self.runs[kind][-1] += 1
            else:
                self.runs[kind].append(1)
                self.times[kind].append(now)
            before = unit

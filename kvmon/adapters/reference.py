"""The adapter of the reference engine: its journal, entry by entry, as calls of the probe, and its arrays as audit.

The same path as for a foreign engine: everything goes through the public probe. `journal_words.py` is the same
translation for the simulator, compiled, straight to words; a test holds the two equal, record for record.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from kvmon.allocators import journal as entries
from kvmon.allocators import page_pool
from kvmon.allocators.config import PagedConfig
from kvmon.allocators.journal import iterate
from kvmon.allocators.refusal import Reason
from kvmon.events import FailureReason, RequestState
from kvmon.events.wire import CACHED, DEFERRED, PINNED, STATUS
from kvmon.probe import PoolProbe, RequestPicture, StreamProbe
from kvmon.serving import retention
from kvmon.serving import state as at
from kvmon.serving.scheduler import Scheduler

__all__ = ["ReferenceAdapter", "ReferenceAudit"]

_SECOND = 2  # the pool that USE_POOL 2 means

_STATES = {
    at.WAITING: RequestState.WAITING,
    at.WAITING_AGAIN: RequestState.PREEMPTED,
    at.PREFILL: RequestState.RUNNING,
    at.DECODE: RequestState.RUNNING,
}


def _failure_reason(reason: int) -> int:
    """The event stream's number for an allocator's reason; the names are the same, unknown is 0 there."""
    return int(FailureReason[Reason(reason).name])


def _hash_words(identities: npt.NDArray[np.uint64]) -> array[int]:
    """Prefix identities as the two non-zero words each that an event carries."""
    words = identities.astype("<u8").view("<u4").copy()
    words[words == 0] = 1
    return array("I", words.tobytes())


class ReferenceAdapter:
    """Translates journals of one scheduler into records of its pool, and of the `second` one where it has two.

    `identities` gives the prefix identities of a request (uint64, one for each `hash_tokens` tokens); `time_base_ns`
    is added to the journal's times, so that they stand on the probe's clock.
    """

    def __init__(
        self,
        probe: StreamProbe,
        pool: PoolProbe,
        *,
        second: PoolProbe | None = None,
        identities: Callable[[int], npt.NDArray[np.uint64]] | None = None,
        hash_tokens: int = 0,
        time_base_ns: int = 0,
    ) -> None:
        self._probe = probe
        self._pool = pool
        self._identities = identities
        self._hash_tokens = hash_tokens
        self._base = time_base_ns
        self._target: dict[int, int] = {}
        self._named: dict[int, int] = {}
        self._decoding: set[int] = set()
        self._pools = {1: self._of_pool(pool)}
        if second is not None:
            self._pools[_SECOND] = self._of_pool(second)
        self._handlers: dict[int, Callable[..., None]] = {
            entries.USE_POOL: self._use_pool,
            entries.ARRIVE: self._arrive,
            entries.ADMIT: self._admit,
            entries.PROGRESS: self._progress,
            entries.FIRST_TOKEN: probe.first_token,
            entries.FINISH: self._finish,
            entries.PREEMPT: self._preempt,
            entries.CLAIMS: self._claims,
            entries.ERROR: probe.engine_error,
            entries.STEP: self._step,
        }
        self._use_pool(1)

    def _of_pool(self, pool: PoolProbe) -> dict[int, Callable[..., None]]:
        """What each entry about a pool calls."""
        return {
            entries.ALLOC: lambda request, count, *units: pool.alloc(units),
            entries.ALLOC_RUN: lambda request, start, count: pool.alloc_run(start, count),
            entries.FREE_RUN: lambda request, start, count: pool.free_run(start, count),
            entries.SHARE: lambda request, count, *units: pool.share(units),
            entries.UNSHARE: lambda request, count, *units: pool.unshare(units),
            entries.CACHE: lambda request, count, *units: pool.cache(units),
            entries.PIN: lambda request, count, *units: pool.pin(units),
            entries.EVICT: lambda request, count, *units: pool.evict(units),
            entries.DEFER: lambda request, count, *units: pool.defer(units),
            entries.FREE: lambda request, count, *units: pool.free(units),
            entries.RESET: pool.reset,
            entries.ASSIGN: lambda request, count, *units: pool.assign(request, units),
            entries.ASSIGN_WINDOW: lambda request, count, *units: pool.assign(request, units, 1),
            entries.ASSIGN_RUN: pool.assign_run,
            entries.RESERVE: pool.reserve,
            entries.COMMIT: pool.commit,
            entries.OFFLOAD: lambda request, count, *units: pool.offloaded(request, _SECOND, units),
            entries.ONBOARD: lambda request, count, *units: pool.onboarded(request, _SECOND, units),
            entries.RELOCATE: pool.migrated,
            entries.COMPACT: lambda moved, copied: pool.compacted(moved),
            entries.COPY: lambda *fields: None,  # its units are told; the copy is the engine's
            entries.FAIL: lambda *fields: self._fail(pool, *fields),
        }

    def emit(self, journal: npt.NDArray[np.int64]) -> None:
        """Record everything in a journal that was drained between two steps."""
        handlers = self._handlers
        for code, fields in iterate(journal):
            handlers[code](*fields)

    def _use_pool(self, number: int) -> None:
        self._handlers.update(self._pools[number])

    def _arrive(self, request: int, at_ns: int, class_id: int, prompt: int, limit: int, intended: int) -> None:
        self._target[request] = prompt
        self._probe.arrived(
            request, at_ns + self._base, prompt, class_id=class_id, limit=limit, intended=intended or None
        )
        if self._identities is not None:
            names = self._identities(request)
            self._named[request] = len(names)
            self._probe.hashes(request, self._hash_tokens, _hash_words(names))

    def _admit(self, request: int, hit_tokens: int, lookup_tokens: int) -> None:
        self._probe.admitted(request)
        if lookup_tokens:
            self._probe.cache_hit(request, hit_tokens, lookup_tokens)

    def _progress(self, request: int, computed: int) -> None:
        if computed >= self._target[request]:
            self._decoding.add(request)
        self._probe.progress(request, computed, request in self._decoding)

    def _preempt(self, request: int, lost_tokens: int) -> None:
        if request in self._decoding:
            self._decoding.discard(request)
            self._target[request] = lost_tokens + 1
        self._probe.preempted(request, lost_tokens)

    def _finish(self, request: int, reason: int, output: int, intended: int) -> None:
        self._decoding.discard(request)
        self._target.pop(request, None)
        if self._identities is not None:
            # Pages of the answer, which a later turn of the conversation asks for.
            names, told = self._identities(request), self._named.pop(request, 0)
            if len(names) > told:
                self._probe.hashes(request, self._hash_tokens, _hash_words(names[told:]), told)
        self._probe.finished(request, reason, output, intended or None)

    def _claims(self, available: int, evictable: int, protected: int, in_flight: int, millionths: int) -> None:
        self._pool.claims(available, evictable, protected, in_flight, millionths / 1_000_000)

    @staticmethod
    def _fail(
        pool: PoolProbe,
        request: int,
        need: int,
        contiguity: int,
        free: int,
        evictable: int,
        largest: int,
        reason: int,
        outcome: int,
    ) -> None:
        pool.failed(request, need, contiguity, free, evictable, largest, _failure_reason(reason), outcome)

    def _step(
        self,
        start_ns: int,
        duration_ns: int,
        prefill: int,
        decode: int,
        context: int,
        running: int,
        waiting: int,
        need: int,
    ) -> None:
        self._probe.step(start_ns + self._base, duration_ns, prefill, decode, context, running, waiting, need or None)


class ReferenceAudit:
    """The scheduler's own arrays, as an audit ships them.

    They are looked at while the STEP entry is emitted: emit what a commit wrote before the scheduler is changed again.
    """

    def __init__(self, scheduler: Scheduler, time_base_ns: int = 0) -> None:
        self._scheduler = scheduler
        self._base = time_base_ns

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        serving = self._scheduler.state
        allocator = self._scheduler.allocator
        if pool == 1 and isinstance(allocator, PagedConfig):
            units = slice(first, first + count)
            references = serving.pages.node[units, page_pool.REF]
            words = references.astype(np.uint32) | np.uint32(STATUS)
            words |= np.where(serving.pages.content[units] != 0, np.uint32(CACHED), np.uint32(0))
            if not serving.pages.tally[page_pool.PLAIN]:
                marks = serving.pages.more[units, page_pool.MARK]
                words |= np.where(marks & page_pool.PINNED, np.uint32(PINNED), np.uint32(0))
                words |= np.where((marks & page_pool.HELD != 0) & (references == 0), np.uint32(DEFERRED), np.uint32(0))
            return list(map(int, words))
        free = np.full(count, STATUS, np.int64)
        for units_held in self._held_in(pool):
            inside = units_held[(units_held >= first) & (units_held < first + count)]
            free[inside - first] |= 1
        if pool == 1:
            for region in serving.apart[: serving.tally[at.REGIONS]].tolist():
                begin, units = region[retention.FIRST] - first, region[retention.COUNT]
                free[max(0, begin) : max(0, begin + units)] |= CACHED | PINNED
        return [int(word) for word in free]

    def _held_in(self, pool: int) -> Iterator[npt.NDArray[np.int64]]:
        """Units of each live request in a contiguous pool, or in the window group's own."""
        for request in self.live_requests():
            for number, _, units in self._tables(request):
                if number == pool:
                    yield np.asarray(units, np.int64)

    def _tables(self, request: int) -> list[tuple[int, int, Sequence[int]]]:
        """Pool, group and units of every table of a live request."""
        serving = self._scheduler.state
        facts = serving.facts[request]
        if _STATES.get(int(serving.live[request, at.PHASE])) is not RequestState.RUNNING:
            start, units = int(facts[at.HOST_START]), int(facts[at.HOST_COUNT])
            return [(_SECOND, 0, range(start, start + units))] if units else []
        seat = int(serving.live[request, at.SEAT])
        held = serving.held[seat]
        allocator = self._scheduler.allocator
        if not isinstance(allocator, PagedConfig):
            return [(1, 0, range(int(held[at.START]), int(held[at.START] + held[at.UNITS])))]
        tables: list[tuple[int, int, Sequence[int]]] = [(1, 0, serving.table[seat, : held[at.PAGES]].tolist())]
        if allocator.window_tokens:
            row = serving.table[int(serving.config[at.SEATS]) + seat]
            windowed = row[held[at.WINDOW_FIRST] : held[at.WINDOW_PAGES]].tolist()
            tables.append((_SECOND if allocator.window_pool_units else 1, 1, windowed))
        return tables

    def live_requests(self) -> Sequence[int]:
        """Requests that wait or run."""
        return [*self._scheduler.running.tolist(), *self._scheduler.waiting.tolist()]

    def picture(self, request: int) -> RequestPicture | None:
        """The request as it is now; None when it has ended."""
        serving = self._scheduler.state
        phase = int(serving.live[request, at.PHASE])
        if phase not in _STATES:
            return None
        facts = serving.facts[request]
        running = _STATES[phase] is RequestState.RUNNING
        reserved = None
        if running and not isinstance(self._scheduler.allocator, PagedConfig):
            seat = int(serving.live[request, at.SEAT])
            reserved = int(serving.held[seat, at.UNITS]) * self._scheduler.allocator.unit_tokens
        return RequestPicture(
            state=int(_STATES[phase]),
            class_id=int(facts[at.CLASS]),
            arrived_ns=int(facts[at.ARRIVAL]) + self._base,
            prompt=int(facts[at.PROMPT]),
            limit=int(facts[at.LIMIT]),
            computed=int(serving.live[request, at.COMPUTED] if running else facts[at.HOST_TOKENS]),
            decoding=phase == at.DECODE,
            reserved=reserved,
            tables=self._tables(request),
        )

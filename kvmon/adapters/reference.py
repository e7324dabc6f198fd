"""The adapter of the reference engine: its journal, entry by entry, as calls of the probe, and its arrays as audit.

The same path as for a foreign engine: everything goes through the public probe. `journal_words.py` is the same
translation for the simulator, compiled, straight to words; a test holds the two equal, record for record.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.allocators import journal as entries
from kvmon.allocators import page_pool
from kvmon.allocators.config import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.allocators.journal import iterate
from kvmon.allocators.refusal import Reason
from kvmon.events import FailureReason, RequestState, status_word
from kvmon.probe import PoolInfo, PoolProbe, RequestPicture, StreamProbe
from kvmon.serving import state as at
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scheduler import Scheduler

__all__ = ["ReferenceAdapter", "ReferenceAudit", "engine_config", "pool_info"]

_STATES = {
    at.WAITING: RequestState.WAITING,
    at.WAITING_AGAIN: RequestState.PREEMPTED,
    at.PREFILL: RequestState.RUNNING,
    at.DECODE: RequestState.RUNNING,
}


def pool_info(allocator: AllocatorConfig, token_bytes: int, name: str = "kv") -> PoolInfo:
    """The pool of an allocator; `token_bytes` = bytes of keys and values of one token over all layers."""
    paged = isinstance(allocator, PagedConfig)
    return PoolInfo(
        name=name,
        capacity_units=allocator.capacity_units,
        unit_bytes=allocator.unit_tokens * token_bytes,
        unit_tokens=allocator.unit_tokens,
        layout="paged" if paged else "contiguous",
        contiguity="none" if paged else "required",
    )


def engine_config(allocator: AllocatorConfig, scheduler: SchedulerConfig) -> dict[str, Any]:
    """What `engine_config` says of the reference engine."""
    paged = isinstance(allocator, PagedConfig)
    chunk = allocator.chunk_tokens if isinstance(allocator, ContiguousConfig) else None
    return {
        "adapter": "reference",
        "fidelity": "exact",
        "allocator": "paged" if paged else "first-fit",
        "prefix_cache": isinstance(allocator, PagedConfig) and allocator.prefix_cache,
        "reserve": "none" if paged else "max" if chunk is None else f"chunk:{chunk}",
        "token_budget": scheduler.token_budget,
        "max_sequences": scheduler.max_sequences,
        "chunked_prefill": scheduler.chunked_prefill,
        "watermark": scheduler.watermark,
        "admission": scheduler.admit_by,
        "eviction": "lru",
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
    """Translates journals of one scheduler into records of one pool.

    `identities` gives the prefix identities of a request (uint64, one for each `hash_tokens` tokens); `time_base_ns`
    is added to the journal's times, so that they stand on the probe's clock.
    """

    def __init__(
        self,
        probe: StreamProbe,
        pool: PoolProbe,
        *,
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
        self._decoding: set[int] = set()
        self._handlers: dict[int, Callable[..., None]] = {
            entries.ALLOC: lambda request, count, *units: pool.alloc(units),
            entries.ALLOC_RUN: lambda request, start, count: pool.alloc_run(start, count),
            entries.FREE_RUN: lambda request, start, count: pool.free_run(start, count),
            entries.SHARE: lambda request, count, *units: pool.share(units),
            entries.UNSHARE: lambda request, count, *units: pool.unshare(units),
            entries.CACHE: lambda request, count, *units: pool.cache(units),
            entries.RESET: pool.reset,
            entries.ASSIGN: lambda request, count, *units: pool.assign(request, units),
            entries.ASSIGN_RUN: pool.assign_run,
            entries.RESERVE: pool.reserve,
            entries.RELOCATE: pool.migrated,
            entries.ARRIVE: self._arrive,
            entries.ADMIT: self._admit,
            entries.PROGRESS: self._progress,
            entries.FIRST_TOKEN: probe.first_token,
            entries.FINISH: self._finish,
            entries.PREEMPT: self._preempt,
            entries.FAIL: self._fail,
            entries.STEP: self._step,
        }

    def emit(self, journal: npt.NDArray[np.int64]) -> None:
        """Record everything in a journal that was drained between two steps."""
        handlers = self._handlers
        for code, fields in iterate(journal):
            handlers[code](*fields)

    def _arrive(self, request: int, at_ns: int, class_id: int, prompt: int, limit: int, intended: int) -> None:
        self._target[request] = prompt
        self._probe.arrived(
            request, at_ns + self._base, prompt, class_id=class_id, limit=limit, intended=intended or None
        )
        if self._identities is not None:
            self._probe.hashes(request, self._hash_tokens, _hash_words(self._identities(request)))

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
        self._probe.finished(request, reason, output, intended or None)

    def _fail(
        self,
        request: int,
        need: int,
        contiguity: int,
        free: int,
        evictable: int,
        largest: int,
        reason: int,
        outcome: int,
    ) -> None:
        self._pool.failed(request, need, contiguity, free, evictable, largest, _failure_reason(reason), outcome)

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
    """The scheduler's own arrays, as an audit ships them."""

    def __init__(self, scheduler: Scheduler, time_base_ns: int = 0) -> None:
        self._scheduler = scheduler
        self._base = time_base_ns

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        serving = self._scheduler.state
        if isinstance(self._scheduler.allocator, PagedConfig):
            references = serving.pages.node[first : first + count, page_pool.REF]
            cached = serving.pages.content[first : first + count] != 0
            words = references.astype(np.uint32) | cached.astype(np.uint32) << 24 | np.uint32(1 << 31)
            return list(map(int, words))
        held = np.zeros(count, bool)
        for request in self._scheduler.running.tolist():
            start, units = serving.held[serving.live[request, at.SEAT], at.START : at.UNITS + 1].tolist()
            held[max(0, start - first) : max(0, start + units - first)] = True
        return [status_word(int(one)) for one in held]

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
        units: Sequence[int] = ()
        reserved = None
        if running:
            held = serving.held[serving.live[request, at.SEAT]]
            if isinstance(self._scheduler.allocator, PagedConfig):
                units = serving.table[serving.live[request, at.SEAT], : held[at.PAGES]].tolist()
            else:
                units = range(int(held[at.START]), int(held[at.START] + held[at.UNITS]))
                reserved = int(held[at.UNITS]) * self._scheduler.allocator.unit_tokens
        return RequestPicture(
            state=int(_STATES[phase]),
            class_id=int(facts[at.CLASS]),
            arrived_ns=int(facts[at.ARRIVAL]) + self._base,
            prompt=int(facts[at.PROMPT]),
            limit=int(facts[at.LIMIT]),
            computed=int(serving.live[request, at.COMPUTED]) if running else 0,
            decoding=phase == at.DECODE,
            reserved=reserved,
            tables=[(1, 0, units)],
        )

"""The trail of a run: step by step what memory requests held, and a digest of everything that was done.

    start, duration     int64 (n)   of each step, ns of the engine's clock
    held                int64 (n)   units of the first pool that requests hold when the step is over
    most                int64 (n)   the most of them at any event since the step before
    digest              uint64 (n)  of everything that the allocator and the scheduler did since the step before

Two runs whose digests are equal did the same allocations, in the same order, for the same requests, in the same steps.
A digest leaves out what is no doing of the engine: arrivals and names of pages (the demand itself), audits, claims, and
whether an end was by stop or by length, which an engine that knows no intended length cannot tell apart. A step in
which nobody was there belongs to the next one: engines take one after the last request hung up, the simulator none.

Invariant: follows from the frames alone, however they are cut into pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import FIELDS, FinishReason, Kind, field_offsets
from kvmon.events.wire import REFS
from kvmon.jit import inner, kernel
from kvmon.state import FrameTable
from kvmon.state.frames import record_words

__all__ = ["Trail", "TrailReader"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_ALLOC, _FREE, _SHARE, _UNSHARE, _DEFER = (
    int(Kind.ALLOC),
    int(Kind.FREE),
    int(Kind.SHARE),
    int(Kind.UNSHARE),
    int(Kind.DEFER),
)
_STEP, _TICK, _FINISHED, _HIT, _ADMITTED, _PREEMPTED = (
    int(Kind.STEP),
    int(Kind.TICK),
    int(Kind.REQUEST_FINISHED),
    int(Kind.CACHE_HIT),
    int(Kind.REQUEST_ADMITTED),
    int(Kind.PREEMPTED),
)
_SLICE, _RUN, _RESTATED = int(Kind.AUDIT_SLICE), int(Kind.AUDIT_RUN), int(Kind.AUDIT_REQUEST)
_ASSIGN, _ASSIGN_RUN = int(Kind.ASSIGN), int(Kind.ASSIGN_RUN)
_STOP, _LENGTH = int(FinishReason.STOP), int(FinishReason.LENGTH)
_S = field_offsets(Kind.STEP)
_START, _DURATION = _S["start"], _S["duration"]
_PREFILL, _DECODE, _RUNNING, _WAITING, _SUM = (
    _S["prefill"],
    _S["decode"],
    _S["running"],
    _S["waiting"],
    _S["checksum"],
)
_F_REASON, _F_OUTPUT = (field_offsets(Kind.REQUEST_FINISHED)[name] for name in ("reason", "output"))
_H_HIT, _H_LOOKUP = (field_offsets(Kind.CACHE_HIT)[name] for name in ("hit_tokens", "lookup_tokens"))
_REFERENCES = REFS

# What a digest is made of, by kind: 0 nothing, 1 all words, 2 the first of them is a request (id), 3 a request (maybe).
_DIGESTED = np.zeros(256, np.uint8)
for _kind in (Kind.POOL_RESET, Kind.COMPACTED, Kind.ENGINE_ERROR):
    _DIGESTED[_kind] = 1
for _kind in Kind:
    if Kind.REQUEST_ADMITTED <= _kind <= Kind.MIGRATED and _kind in FIELDS and _kind not in (Kind.REQUEST_FINISHED,):
        _first = FIELDS[_kind][0]
        _DIGESTED[_kind] = 2 if _first.type == "id" else 3 if _first.name == "request" else 1

# Slots of the counts of a trail.
FINISHED = 0  # by reason, 8 slots
OUTPUT, LOOKUP, HIT, AGAIN_HIT, LOST, PREEMPTIONS = range(8, 14)
_COUNTS = 16
_OUTPUT, _LOOKUP, _HITS, _AGAIN, _LOST, _PREEMPTIONS = OUTPUT, LOOKUP, HIT, AGAIN_HIT, LOST, PREEMPTIONS

# Slots of the state between two calls.
_DIGEST, _HELD, _MOST = range(3)
_COLUMNS = 5  # start, duration, held, most, digest


@dataclass(frozen=True)
class Trail:
    """See the module for the columns. `counts` are totals by the names above, `tail` is the digest of what was done
    behind the last step."""

    start: Ints
    duration: Ints
    held: Ints
    most: Ints
    digest: npt.NDArray[np.uint64]
    counts: Ints
    tail: int

    def __len__(self) -> int:
        return len(self.start)

    @property
    def peak(self) -> int | None:
        """The most units that requests held; None without a step."""
        return int(self.most.max()) if len(self) else None

    @property
    def mean(self) -> float | None:
        """Mean units that requests held, from the begin of the first step to the end of the last one: each step with
        what it had at most, the time between two with what the first of them left. None without time."""
        if not len(self):
            return None
        end = self.start + self.duration
        idle = np.maximum(self.start[1:] - end[:-1], 0)
        time = int(self.duration.sum() + idle.sum())
        if time == 0:
            return None
        area = (self.most * self.duration).sum(dtype=np.float64) + (self.held[:-1] * idle).sum(dtype=np.float64)
        return float(area) / time


class TrailReader:
    """Makes a trail from frames. `numbers` (int64) gives the number under which the digest knows each request's id; one
    beyond it keeps its id."""

    def __init__(self, numbers: Ints | None = None) -> None:
        self._numbers = np.zeros(0, np.int64) if numbers is None else numbers
        self._references = np.zeros(1 << 10, np.int32)
        self._again = np.zeros(1 << 10, np.uint8)
        self._state = np.zeros(3, np.uint64)
        self._counts = np.zeros(_COUNTS, np.int64)
        self._columns: list[Ints] = []

    def apply(self, words: Words, table: FrameTable) -> None:
        """Read frames that were scanned before."""
        out = np.empty((_COLUMNS, len(table.ends)), np.int64)
        self._make_room(words, table)
        steps = _read(
            words,
            table.ends,
            self._numbers,
            self._references,
            self._again,
            self._state,
            self._counts,
            _DIGESTED,
            out,
        )
        self._columns.append(out[:, :steps].copy())

    def trail(self) -> Trail:
        """What was read so far."""
        joined = np.concatenate([np.empty((_COLUMNS, 0), np.int64), *self._columns], axis=1)
        self._columns = [joined]
        start, duration, held, most, digest = joined
        return Trail(
            start, duration, held, most, digest.view(np.uint64), self._counts.copy(), int(self._state[_DIGEST])
        )

    def _make_room(self, words: Words, table: FrameTable) -> None:
        need = np.zeros(2, np.int64)
        _largest(words, int(table.ends[-1]) if len(table.ends) else 0, need)
        if need[0] >= len(self._references):
            self._references = _grown(self._references, int(need[0]))
        if need[1] >= len(self._again):
            self._again = _grown(self._again, int(need[1]))


def _grown(array: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
    more = np.zeros(max(2 * len(array), index + 1), array.dtype)
    more[: len(array)] = array
    return more


@kernel
def _largest(words: Words, end: int, need: Ints) -> None:
    """The largest unit of the first pool and the largest id of a request that was preempted or looked up."""
    at = 0
    pool = np.int64(1)
    while at < end:
        word = np.int64(words[at])
        op, payload = word >> 27, word & 0x7FFFFFF
        size = record_words(word)
        if op == 30:
            pool = payload
        elif op < 30:
            if pool == 1:
                if op < 10:
                    need[0] = max(need[0], payload)
                elif op < 20:
                    for k in range(at + 1, at + size):
                        need[0] = max(need[0], np.int64(words[k]))
                else:
                    need[0] = max(need[0], payload + np.int64(words[at + 1]) - 1)
        else:
            kind = payload >> 19
            if kind in (_PREEMPTED, _HIT):
                need[1] = max(need[1], np.int64(words[at + 1]))
            elif kind == _SLICE and pool == 1:
                need[0] = max(need[0], np.int64(words[at + 1]) + size - 3)
            elif kind == _RUN and pool == 1:
                need[0] = max(need[0], np.int64(words[at + 1]) + np.int64(words[at + 2]) - 1)
            elif kind in (_STEP, _TICK):
                pool = np.int64(1)
        at += size


@inner
def _mix(digest: np.uint64, value: int) -> np.uint64:
    """One more number into a digest: multiply and shift, as in MurmurHash's finalizer."""
    mixed = (digest ^ np.uint64(value)) * np.uint64(0x9E3779B97F4A7C15)
    folded: np.uint64 = mixed ^ (mixed >> np.uint64(29))
    return folded


@inner
def _wide(words: Words, at: int) -> int:
    return int((np.int64(words[at]) - 1) | (np.int64(words[at + 1]) - 1) << 31)


@inner
def _number(numbers: Ints, request: int) -> int:
    return int(numbers[request]) if request < len(numbers) else int(request)


@inner
def _refer(references: npt.NDArray[np.int32], unit: int, kind: int, state: npt.NDArray[np.uint64]) -> None:
    """What an event of `kind` does to the references of a unit, as `state.units` has it."""
    before = np.int64(references[unit])
    now = before
    if kind == _ALLOC:
        now = np.int64(1)
    elif kind == _SHARE:
        now = before + 1
    elif kind == _UNSHARE:
        now = max(before - 1, 0)
    elif kind in (_FREE, _DEFER):
        now = np.int64(0)
    if (before > 0) != (now > 0):
        state[_HELD] = np.uint64(np.int64(state[_HELD]) + (1 if now > 0 else -1))
        if state[_HELD] > state[_MOST]:
            state[_MOST] = state[_HELD]
    references[unit] = now


@inner
def _state_unit(references: npt.NDArray[np.int32], unit: int, status: int, state: npt.NDArray[np.uint64]) -> None:
    """An audit says how many references a unit has."""
    now = status & _REFERENCES
    if (references[unit] > 0) != (now > 0):
        state[_HELD] = np.uint64(np.int64(state[_HELD]) + (1 if now > 0 else -1))
        if state[_HELD] > state[_MOST]:
            state[_MOST] = state[_HELD]
    references[unit] = now


@kernel
def _read(
    words: Words,
    ends: Ints,
    numbers: Ints,
    references: npt.NDArray[np.int32],
    again: npt.NDArray[np.uint8],
    state: npt.NDArray[np.uint64],
    counts: Ints,
    digested: npt.NDArray[np.uint8],
    out: Ints,
) -> int:
    """Read whole frames; how many steps they closed, whose columns stand in `out`."""
    at = 0
    steps = 0
    for frame in range(len(ends)):
        pool = np.int64(1)
        restated = np.int64(0)  # an audit says its block tables again
        while at < ends[frame]:
            word = np.int64(words[at])
            op, payload = word >> 27, word & 0x7FFFFFF
            size = record_words(word)
            if op == 30:
                pool = payload
            elif op < 30:
                kind = op % 10
                if op < 20:
                    first, last = (at, at) if op < 10 else (at + 1, at + size - 1)
                    for k in range(first, last + 1):
                        unit = payload if op < 10 else np.int64(words[k])
                        state[_DIGEST] = _mix(state[_DIGEST], pool << 48 | kind << 40 | unit)
                        if pool == 1:
                            _refer(references, unit, kind, state)
                else:
                    count = np.int64(words[at + 1])
                    state[_DIGEST] = _mix(_mix(state[_DIGEST], pool << 48 | kind << 40 | 1 << 39 | payload), count)
                    if pool == 1:
                        for unit in range(payload, payload + count):
                            _refer(references, unit, kind, state)
            else:
                kind = payload >> 19
                if kind == _RESTATED:
                    restated = np.int64(words[at + 1])
                elif kind not in (_ASSIGN, _ASSIGN_RUN) or np.int64(words[at + 1]) != restated:
                    restated = np.int64(0)
                if digested[kind] and restated == 0:
                    digest = _mix(state[_DIGEST], pool << 48 | kind << 40 | size)
                    begin = at + 1
                    if digested[kind] > 1:
                        request = np.int64(words[begin]) - (digested[kind] - 2)
                        digest = _mix(digest, _number(numbers, request) if words[begin] != 0xFFFFFFFF else 0)
                        begin += 1
                    for k in range(begin, at + size):
                        digest = _mix(digest, np.int64(words[k]))
                    state[_DIGEST] = digest
                if kind == _FINISHED:
                    reason, output = np.int64(words[at + _F_REASON]) - 1, np.int64(words[at + _F_OUTPUT]) - 1
                    told = _STOP if reason == _LENGTH else reason
                    digest = _mix(state[_DIGEST], kind << 40 | told)
                    state[_DIGEST] = _mix(_mix(digest, _number(numbers, np.int64(words[at + 1]))), output)
                    counts[min(reason, 7)] += 1
                    counts[_OUTPUT] += output
                elif kind == _PREEMPTED:
                    again[np.int64(words[at + 1])] = 1
                    counts[_PREEMPTIONS] += 1
                    counts[_LOST] += np.int64(words[at + 2]) - 1
                elif kind == _HIT:
                    hit = np.int64(words[at + _H_HIT]) - 1
                    if again[np.int64(words[at + 1])]:
                        counts[_AGAIN] += hit
                    else:
                        counts[_HITS] += hit
                        counts[_LOOKUP] += np.int64(words[at + _H_LOOKUP]) - 1
                elif kind == _SLICE and pool == 1:
                    for k in range(at + 2, at + size):
                        _state_unit(references, np.int64(words[at + 1]) + k - at - 2, np.int64(words[k]), state)
                elif kind == _RUN and pool == 1:
                    first = np.int64(words[at + 1])
                    for unit in range(first, first + np.int64(words[at + 2])):
                        _state_unit(references, unit, np.int64(words[at + 3]), state)
                elif kind == _STEP:
                    pool = np.int64(1)
                    there = words[at + _PREFILL] > 1 or words[at + _DECODE] > 1
                    if there or words[at + _RUNNING] > 1 or words[at + _WAITING] > 1:
                        digest = state[_DIGEST]
                        for k in range(at + _START, at + _SUM):
                            digest = _mix(digest, np.int64(words[k]))
                        out[0, steps] = _wide(words, at + _START)
                        out[1, steps] = _wide(words, at + _DURATION)
                        out[2, steps] = state[_HELD]
                        out[3, steps] = state[_MOST]
                        out[4, steps] = np.int64(digest)
                        steps += 1
                        state[_DIGEST] = np.uint64(0)
                        state[_MOST] = state[_HELD]
            at += size
    return steps

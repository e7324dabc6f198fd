"""Count what a probe counts, from the words it wrote, so that a reader goes on where a segment's header stands.

One pass over whole frames. Invariant, held by a test: the totals in a segment's header plus the recount of that
segment are the totals in the header of the next one, as long as the probe lost nothing. Nothing is folded here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events import Kind, field_offsets
from kvmon.events.totals import MAX_POOLS, POOL_SLOTS, STREAM_SLOTS, PoolTotal, StreamTotal
from kvmon.jit import kernel
from kvmon.recording.layout import TOTAL_SLOTS

__all__ = ["RECENT", "Counts"]

Ints = npt.NDArray[np.int64]

RECENT = 1024
"""Placements whose sizes are remembered for each pool."""

_STEP, _TICK, _RESET, _FAILED = int(Kind.STEP), int(Kind.TICK), int(Kind.POOL_RESET), int(Kind.ALLOC_FAILED)
_ARRIVED, _ADMITTED, _FINISHED = int(Kind.REQUEST_ARRIVED), int(Kind.REQUEST_ADMITTED), int(Kind.REQUEST_FINISHED)
_PREEMPTED, _HIT, _MIGRATED, _ERROR = (
    int(Kind.PREEMPTED),
    int(Kind.CACHE_HIT),
    int(Kind.MIGRATED),
    int(Kind.ENGINE_ERROR),
)

_S_DURATION, _S_PREFILL, _S_DECODE = (field_offsets(Kind.STEP)[name] for name in ("duration", "prefill", "decode"))
_F_REASON = field_offsets(Kind.ALLOC_FAILED)["reason"]
_A_PROMPT = field_offsets(Kind.REQUEST_ARRIVED)["prompt"]
_E_REASON, _E_OUTPUT = (field_offsets(Kind.REQUEST_FINISHED)[name] for name in ("reason", "output"))
_P_LOST = field_offsets(Kind.PREEMPTED)["lost_tokens"]
_H_HIT, _H_LOOKUP = (field_offsets(Kind.CACHE_HIT)[name] for name in ("hit_tokens", "lookup_tokens"))
_M_COPIED = field_offsets(Kind.MIGRATED)["copied_tokens"]

(
    _STEPS,
    _FRAMES,
    _STEP_NS,
    _PREFILL,
    _DECODE,
    _N_ARRIVED,
    _N_ADMITTED,
    _N_PREEMPTED,
    _LOST_TOKENS,
    _LOOKUP,
    _HITS,
    _PROMPT,
    _OUTPUT,
    _ERRORS,
) = (int(slot) for slot in StreamTotal if slot < StreamTotal.FINISHED_FIRST)
_FINISHED_FIRST, _FAILED_FIRST = int(StreamTotal.FINISHED_FIRST), int(PoolTotal.FAILED_FIRST)
_RESETS, _MIGRATIONS, _MOVED = int(PoolTotal.RESETS), int(PoolTotal.MIGRATIONS), int(PoolTotal.MOVED_TOKENS)
_FAILURE_SLOTS, _FINISH_SLOTS = _RESETS - _FAILED_FIRST, 8
_STREAM, _PER_POOL, _POOLS, _ALLOC, _KEEP = STREAM_SLOTS, POOL_SLOTS, MAX_POOLS, int(Kind.ALLOC), RECENT


@kernel
def _count(words: Any, start: Any, end: Any, totals: Ints, sizes: Ints, placed: Ints) -> int:
    """Add the records of `words[start:end]`, whole frames, and say how many they were."""
    at, pool, records = start, 1, 0
    while at < end:
        word = np.int64(words[at])
        op, payload = word >> 27, word & 0x7FFFFFF
        base = _STREAM + (pool - 1) * _PER_POOL
        records += 1
        if op < 30:
            size, n, kind = 1, np.int64(1), op
            if op >= 20:
                size, n, kind = 2, np.int64(words[at + 1]), op - 20
            elif op >= 10:
                size, n, kind = 1 + payload, payload, op - 10
            if 1 <= pool <= _POOLS:
                totals[base + kind] += n
                if kind == _ALLOC:
                    sizes[pool, placed[pool] % _KEEP] = n
                    placed[pool] += 1
            at += size
            continue
        if op == 30:
            records -= 1
            pool = payload
            at += 1
            continue
        kind = payload >> 19
        if kind in (_STEP, _TICK):
            totals[_FRAMES] += 1
            pool = 1
            if kind == _STEP:
                totals[_STEPS] += 1
                low, high = np.int64(words[at + _S_DURATION]) - 1, np.int64(words[at + _S_DURATION + 1]) - 1
                totals[_STEP_NS] += low | high << 31
                totals[_PREFILL] += np.int64(words[at + _S_PREFILL]) - 1
                totals[_DECODE] += np.int64(words[at + _S_DECODE]) - 1
        elif kind == _ARRIVED:
            totals[_N_ARRIVED] += 1
            totals[_PROMPT] += np.int64(words[at + _A_PROMPT]) - 1
        elif kind == _ADMITTED:
            totals[_N_ADMITTED] += 1
        elif kind == _FINISHED:
            reason = np.int64(words[at + _E_REASON]) - 1
            totals[_FINISHED_FIRST + (reason if reason < _FINISH_SLOTS else 0)] += 1
            totals[_OUTPUT] += np.int64(words[at + _E_OUTPUT]) - 1
        elif kind == _PREEMPTED:
            totals[_N_PREEMPTED] += 1
            totals[_LOST_TOKENS] += np.int64(words[at + _P_LOST]) - 1
        elif kind == _HIT:
            totals[_LOOKUP] += np.int64(words[at + _H_LOOKUP]) - 1
            totals[_HITS] += np.int64(words[at + _H_HIT]) - 1
        elif kind == _ERROR:
            totals[_ERRORS] += 1
        elif 1 <= pool <= _POOLS:
            if kind == _FAILED:
                reason = np.int64(words[at + _F_REASON]) - 1
                totals[base + _FAILED_FIRST + (reason if reason < _FAILURE_SLOTS else 0)] += 1
            elif kind == _RESET:
                totals[base + _RESETS] += 1
            elif kind == _MIGRATED:
                totals[base + _MIGRATIONS] += 1
                totals[base + _MOVED] += np.int64(words[at + _M_COPIED]) - 1
        at += 1 + (payload & 0x7FFFF)
    return records


class Counts:
    """Cumulative totals of one life of an engine, and the sizes of its recent placements."""

    def __init__(self) -> None:
        self._totals: Ints = np.zeros(TOTAL_SLOTS, np.int64)
        self._sizes: Ints = np.zeros((MAX_POOLS + 1, RECENT), np.int64)
        self._placed: Ints = np.zeros(MAX_POOLS + 1, np.int64)

    def begin_segment(self, totals: tuple[int, ...]) -> None:
        """Go on from what a segment's header says; it also holds what the probe counted and could not record."""
        self._totals[:] = np.maximum(self._totals, np.array(totals, np.uint64).astype(np.int64))

    def add(self, words: npt.NDArray[np.uint32], start: int, end: int) -> int:
        """Count the whole frames in `words[start:end]`; how many records they are."""
        return int(_count(words, start, end, self._totals, self._sizes, self._placed)) if end > start else 0

    @property
    def totals(self) -> tuple[int, ...]:
        """Every slot, in the order of a segment's header."""
        return tuple(self._totals.tolist())

    def stream(self, slot: StreamTotal, offset: int = 0) -> int:
        """A total of the stream; `offset` is the reason behind FINISHED_FIRST."""
        return int(self._totals[slot + offset])

    def pool(self, number: int, slot: PoolTotal, offset: int = 0) -> int:
        """A total of a pool, by its number from 1; `offset` is the reason behind FAILED_FIRST."""
        return int(self._totals[STREAM_SLOTS + (number - 1) * POOL_SLOTS + slot + offset])

    def by_pool(self, slot: PoolTotal) -> Ints:
        """A total of every pool, in the order of their numbers."""
        column: Ints = self._totals[STREAM_SLOTS:].reshape(MAX_POOLS, POOL_SLOTS)[:, slot].copy()
        return column

    def placement_sizes(self, number: int) -> Ints:
        """Units of each of the last RECENT allocations of a pool, in no order."""
        return self._sizes[number, : min(int(self._placed[number]), RECENT)]

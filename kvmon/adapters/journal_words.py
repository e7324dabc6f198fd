"""Journals as words, compiled: what the simulator writes into a capture without passing through a probe.

The same records in the same order as `reference.ReferenceAdapter` makes through the probe, in frames that carry
simulated time. Pieces come in as the simulator hands them over; whole frames go out as soon as they are closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.allocators import journal as entries
from kvmon.crc import CRC_TABLES, crc32
from kvmon.events import Kind, encode
from kvmon.jit import kernel
from kvmon.probe import PoolInfo

__all__ = ["JournalWords"]

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

_ALLOC, _ALLOC_RUN, _FREE_RUN, _SHARE, _UNSHARE = (
    entries.ALLOC,
    entries.ALLOC_RUN,
    entries.FREE_RUN,
    entries.SHARE,
    entries.UNSHARE,
)
_CACHE, _RESET, _ASSIGN, _ASSIGN_RUN, _RESERVE = (
    entries.CACHE,
    entries.RESET,
    entries.ASSIGN,
    entries.ASSIGN_RUN,
    entries.RESERVE,
)
_ARRIVE, _ADMIT, _PROGRESS, _FIRST_TOKEN = entries.ARRIVE, entries.ADMIT, entries.PROGRESS, entries.FIRST_TOKEN
_FINISH, _PREEMPT, _FAIL, _RELOCATE, _STEP = (
    entries.FINISH,
    entries.PREEMPT,
    entries.FAIL,
    entries.RELOCATE,
    entries.STEP,
)
_UNIT_KIND = np.zeros(16, np.int64)
_UNIT_KIND[[_ALLOC, _SHARE, _UNSHARE, _CACHE]] = [Kind.ALLOC, Kind.SHARE, Kind.UNSHARE, Kind.CACHE_INSERT]
_FIELD_COUNT = np.zeros(32, np.int64)
for _code, _count in entries.ENTRY_FIELDS.items():
    _FIELD_COUNT[_code] = _count

_LONG = 31 << 27
_K = {kind: _LONG | kind << 19 for kind in Kind}
_K_ASSIGN, _K_ASSIGN_RUN, _K_RESERVE = _K[Kind.ASSIGN], _K[Kind.ASSIGN_RUN], _K[Kind.RESERVE]
_K_ARRIVED, _K_HASHES, _K_ADMITTED = _K[Kind.REQUEST_ARRIVED], _K[Kind.REQUEST_HASHES], _K[Kind.REQUEST_ADMITTED]
_K_HIT, _K_PROGRESS, _K_FIRST, _K_FINISHED = (
    _K[Kind.CACHE_HIT],
    _K[Kind.REQUEST_PROGRESS],
    _K[Kind.FIRST_TOKEN],
    _K[Kind.REQUEST_FINISHED],
)
_K_PREEMPTED, _K_FAILED, _K_MIGRATED, _K_RESET, _K_STEP = (
    _K[Kind.PREEMPTED],
    _K[Kind.ALLOC_FAILED],
    _K[Kind.MIGRATED],
    _K[Kind.POOL_RESET],
    _K[Kind.STEP],
)
_ABSENT = 0xFFFFFFFF
_LOW31 = (1 << 31) - 1
_UNKNOWN_REASON = 10  # of the allocator; 0 in events
_OUT, _FRAME_AT, _FRAME = range(3)


@kernel
def _wide(out: Words, at: int, value: int) -> None:
    out[at] = (value & _LOW31) + 1
    out[at + 1] = (value >> 31) + 1


@kernel
def _translate(
    journal: Ints,
    start: int,
    out: Words,
    place: Ints,
    target: Ints,
    decoding: npt.NDArray[np.uint8],
    offsets: Ints,
    hashes: npt.NDArray[np.uint64],
    hash_tokens: int,
    unit_kind: Ints,
    field_count: Ints,
    tables: Any,
) -> int:
    """Append entries from `start` on to `out`; returns where it stopped: the end, or what `out` has no room for."""
    j, o = start, place[_OUT]
    while j < len(journal):
        code = journal[j]
        grouped = code < 10 and (unit_kind[code] > 0 or code == _ASSIGN)
        size = 3 + journal[j + 2] if grouped else 1 + field_count[code]
        request = journal[j + 1] if size > 1 else 0
        identities = offsets[request] - offsets[request - 1] if code == _ARRIVE else 0
        if o + size + 2 * identities + 40 > len(out):
            break
        if grouped:
            n = journal[j + 2]
            if code == _ASSIGN:
                out[o] = _K_ASSIGN | (n + 2)
                out[o + 1] = request
                out[o + 2] = 1
                o += 3
            elif n == 1:
                out[o] = unit_kind[code] << 27 | journal[j + 3]
                o += 1
                n = 0
            else:
                out[o] = (unit_kind[code] + 10) << 27 | n
                o += 1
            for k in range(n):
                out[o + k] = journal[j + 3 + k]
            o += n
        elif code in (_ALLOC_RUN, _FREE_RUN):
            out[o] = (21 if code == _ALLOC_RUN else 22) << 27 | journal[j + 2]
            out[o + 1] = journal[j + 3]
            o += 2
        elif code == _ASSIGN_RUN:
            out[o] = _K_ASSIGN_RUN | 4
            out[o + 1] = request
            out[o + 2] = 1
            out[o + 3] = journal[j + 2]
            out[o + 4] = journal[j + 3]
            o += 5
        elif code == _RESERVE:
            out[o] = _K_RESERVE | 2
            out[o + 1] = request
            out[o + 2] = journal[j + 2] + 1
            o += 3
        elif code == _RESET:
            out[o] = _K_RESET
            o += 1
        elif code == _ARRIVE:
            target[request] = journal[j + 4]
            decoding[request] = 0
            out[o] = _K_ARRIVED | 7
            out[o + 1] = request
            _wide(out, o + 2, journal[j + 2])
            out[o + 4] = journal[j + 3] + 1
            out[o + 5] = journal[j + 4] + 1
            out[o + 6] = journal[j + 5] + 1
            out[o + 7] = journal[j + 6] + 1 if journal[j + 6] > 0 else _ABSENT
            o += 8
            if identities > 0:
                out[o] = _K_HASHES | (3 + 2 * identities)
                out[o + 1] = request
                out[o + 2] = hash_tokens + 1
                out[o + 3] = 1
                o += 4
                for k in range(offsets[request - 1], offsets[request]):
                    low, high = hashes[k] & np.uint64(0xFFFFFFFF), hashes[k] >> np.uint64(32)
                    out[o] = low if low != 0 else 1
                    out[o + 1] = high if high != 0 else 1
                    o += 2
        elif code == _ADMIT:
            out[o] = _K_ADMITTED | 1
            out[o + 1] = request
            o += 2
            if journal[j + 3] > 0:
                out[o] = _K_HIT | 3
                out[o + 1] = request
                out[o + 2] = journal[j + 2] + 1
                out[o + 3] = journal[j + 3] + 1
                o += 4
        elif code == _PROGRESS:
            if journal[j + 2] >= target[request]:
                decoding[request] = 1
            out[o] = _K_PROGRESS | 3
            out[o + 1] = request
            out[o + 2] = journal[j + 2] + 1
            out[o + 3] = decoding[request] + 1
            o += 4
        elif code == _FIRST_TOKEN:
            out[o] = _K_FIRST | 1
            out[o + 1] = request
            o += 2
        elif code == _FINISH:
            out[o] = _K_FINISHED | 4
            out[o + 1] = request
            out[o + 2] = journal[j + 2] + 1
            out[o + 3] = journal[j + 3] + 1
            out[o + 4] = journal[j + 4] + 1 if journal[j + 4] > 0 else _ABSENT
            o += 5
        elif code == _PREEMPT:
            if decoding[request]:
                decoding[request] = 0
                target[request] = journal[j + 2] + 1
            out[o] = _K_PREEMPTED | 2
            out[o + 1] = request
            out[o + 2] = journal[j + 2] + 1
            o += 3
        elif code == _FAIL:
            out[o] = _K_FAILED | 8
            for k in range(8):
                out[o + 1 + k] = journal[j + 1 + k] + 1
            if journal[j + 7] == _UNKNOWN_REASON:
                out[o + 7] = 1
            o += 9
        elif code == _RELOCATE:
            out[o] = _K_MIGRATED | 6
            out[o + 1] = request
            out[o + 2] = journal[j + 2]
            out[o + 3] = journal[j + 3] + 1
            out[o + 4] = journal[j + 4]
            out[o + 5] = journal[j + 5] + 1
            out[o + 6] = journal[j + 6] + 1
            o += 7
        elif code == _STEP:
            out[o] = _K_STEP | 16
            out[o + 1] = place[_FRAME] + 1
            out[o + 2] = o + 17 - place[_FRAME_AT] + 1
            _wide(out, o + 3, journal[j + 1] + journal[j + 2])
            _wide(out, o + 5, journal[j + 1])
            _wide(out, o + 7, journal[j + 2])
            out[o + 9] = journal[j + 3] + 1
            out[o + 10] = journal[j + 4] + 1
            _wide(out, o + 11, journal[j + 5])
            out[o + 13] = journal[j + 6] + 1
            out[o + 14] = journal[j + 7] + 1
            out[o + 15] = journal[j + 8] + 1 if journal[j + 8] > 0 else _ABSENT
            crc = crc32(out, place[_FRAME_AT], o + 16, tables)
            out[o + 16] = crc if crc != 0 else 1
            o += 17
            place[_FRAME_AT] = o
            place[_FRAME] += 1
        j += size
    place[_OUT] = o
    return j


class JournalWords:
    """A journal sink that hands whole frames on to `write`.

    `config` and `pool` open the stream; `offsets` (int64, requests + 1) and `hashes` (uint64) are the workload's
    prefix identities, one for each `hash_tokens` tokens. `close` hands on what follows the last step, if anything, in
    a frame of its own.
    """

    def __init__(
        self,
        write: Callable[[Words], None],
        config_text: str,
        pool: PoolInfo,
        *,
        requests: int,
        offsets: Ints | None = None,
        hashes: npt.NDArray[np.uint64] | None = None,
        hash_tokens: int = 0,
    ) -> None:
        self._write = write
        self._out = np.zeros(1 << 18, np.uint32)
        self._place = np.zeros(3, np.int64)
        self._target = np.zeros(requests + 1, np.int64)
        self._decoding = np.zeros(requests + 1, np.uint8)
        self._offsets = np.zeros(requests + 1, np.int64) if offsets is None else offsets
        self._hashes = np.zeros(0, np.uint64) if hashes is None else hashes
        self._hash_tokens = hash_tokens
        preamble = [
            *encode(Kind.ENGINE_CONFIG, text=config_text),
            *encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=pool.text(True)),
        ]
        self._out[: len(preamble)] = preamble
        self._place[_OUT] = len(preamble)
        self._last_ns = 0

    def __call__(self, journal: Ints) -> None:
        """Translate a piece of the journal."""
        at = 0
        while at < len(journal):
            before = at
            at = _translate(
                journal,
                at,
                self._out,
                self._place,
                self._target,
                self._decoding,
                self._offsets,
                self._hashes,
                self._hash_tokens,
                _UNIT_KIND,
                _FIELD_COUNT,
                CRC_TABLES,
            )
            self._hand_on()
            if at == before:
                self._out = np.concatenate((self._out, np.zeros(len(self._out), np.uint32)))

    def close(self) -> None:
        """Close the last frame where records follow the last step, and hand it on."""
        used = int(self._place[_OUT])
        if used:
            frame = int(self._place[_FRAME])
            tick = encode(Kind.TICK, seq=frame, words=used + 6, time=self._last_ns, checksum=1)
            self._out[used : used + 6] = tick
            crc = int(crc32(self._out, 0, used + 5, CRC_TABLES))
            self._out[used + 5] = crc or 1
            self._place[:] = (used + 6, used + 6, frame + 1)
            self._hand_on()

    def _hand_on(self) -> None:
        whole, used = int(self._place[_FRAME_AT]), int(self._place[_OUT])
        if whole == 0:
            return
        self._last_ns = _frame_time(self._out, whole)
        self._write(self._out[:whole])
        self._out[: used - whole] = self._out[whole:used].copy()
        self._place[_OUT] = used - whole
        self._place[_FRAME_AT] = 0


def _frame_time(out: Words, end: int) -> int:
    """Time of the frame that ends before word `end`: of a step, or of the tick that closes a stream."""
    kind = Kind.STEP if end >= 17 and int(out[end - 17]) == _K[Kind.STEP] | 16 else Kind.TICK
    at = end - (17 if kind is Kind.STEP else 6) + 3
    return (int(out[at]) - 1) | (int(out[at + 1]) - 1) << 31

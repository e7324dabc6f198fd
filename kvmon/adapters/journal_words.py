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
from kvmon.events.wire import OP_POOL
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
_USE_POOL, _COMMIT, _COMPACT, _CLAIMS, _ERROR, _LOST = (
    entries.USE_POOL,
    entries.COMMIT,
    entries.COMPACT,
    entries.CLAIMS,
    entries.ERROR,
    entries.LOST,
)
_ASSIGN_WINDOW, _OFFLOAD, _ONBOARD = entries.ASSIGN_WINDOW, entries.OFFLOAD, entries.ONBOARD
_MOST_CODES = 40
_UNIT_KIND = np.zeros(_MOST_CODES, np.int64)
for _code, _kind in (
    (_ALLOC, Kind.ALLOC),
    (_SHARE, Kind.SHARE),
    (_UNSHARE, Kind.UNSHARE),
    (_CACHE, Kind.CACHE_INSERT),
    (entries.PIN, Kind.PIN),
    (entries.EVICT, Kind.EVICT),
    (entries.DEFER, Kind.DEFER),
    (entries.FREE, Kind.FREE),
):
    _UNIT_KIND[_code] = _kind
_FIELD_COUNT = np.zeros(_MOST_CODES, np.int64)
_NAMES_UNITS = np.zeros(_MOST_CODES, np.uint8)
_NAMES_UNITS[list(entries.WITH_UNITS)] = 1
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
_K_COMMIT, _K_OFFLOADED, _K_ONBOARDED = _K[Kind.COMMIT], _K[Kind.OFFLOADED], _K[Kind.ONBOARDED]
_K_COMPACTED, _K_CLAIMS, _K_ERROR = _K[Kind.COMPACTED], _K[Kind.CLAIMS], _K[Kind.ENGINE_ERROR]
_K_GAP = _K[Kind.GAP]
_POOL_WORD = OP_POOL << 27
_OTHER_POOL = 2
_ABSENT = 0xFFFFFFFF
_LOW31 = (1 << 31) - 1
_UNKNOWN_REASON = 10  # of the allocator; 0 in events
_OUT, _FRAME_AT, _FRAME, _CAME = range(4)  # _CAME: the latest arrival, ns


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
    told: Ints,
    unit_kind: Ints,
    field_count: Ints,
    names_units: npt.NDArray[np.uint8],
    tables: Any,
) -> int:
    """Append entries from `start` on to `out`; returns where it stopped: the end, or what `out` has no room for."""
    j, o = start, place[_OUT]
    while j < len(journal):
        code = journal[j]
        grouped = names_units[code] > 0
        size = 3 + journal[j + 2] if grouped else 1 + field_count[code]
        request = journal[j + 1] if size > 1 else 0
        identities = offsets[request] - offsets[request - 1] if code == _ARRIVE else 0
        if o + size + 2 * identities + 40 > len(out):
            break
        if grouped:
            n = journal[j + 2]
            if code in (_ASSIGN, _ASSIGN_WINDOW):
                out[o] = _K_ASSIGN | (n + 2)
                out[o + 1] = request
                out[o + 2] = 2 if code == _ASSIGN_WINDOW else 1
                o += 3
            elif code in (_OFFLOAD, _ONBOARD):
                out[o] = (_K_OFFLOADED if code == _OFFLOAD else _K_ONBOARDED) | (n + 2)
                out[o + 1] = request + 1
                out[o + 2] = _OTHER_POOL + 1
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
        elif code == _USE_POOL:
            out[o] = _POOL_WORD | journal[j + 1]
            o += 1
        elif code == _COMMIT:
            out[o] = _K_COMMIT | 2
            out[o + 1] = request
            out[o + 2] = journal[j + 2] + 1
            o += 3
        elif code == _LOST:
            out[o] = _K_GAP | 3
            _wide(out, o + 1, journal[j + 1])
            out[o + 3] = journal[j + 2] + 1
            o += 4
        elif code == _COMPACT:
            out[o] = _K_COMPACTED | 1
            out[o + 1] = journal[j + 1] + 1
            o += 2
        elif code == _CLAIMS:
            out[o] = _K_CLAIMS | 5
            for k in range(5):
                out[o + 1 + k] = journal[j + 1 + k] + 1
            o += 6
        elif code == _ERROR:
            out[o] = _K_ERROR | 7
            out[o + 1] = journal[j + 1] + 1
            for k in range(3):
                _wide(out, o + 2 + 2 * k, journal[j + 2 + k])
            o += 8
        elif code == _RESET:
            out[o] = _K_RESET
            o += 1
        elif code == _ARRIVE:
            place[_CAME] = max(place[_CAME], journal[j + 2])
            target[request] = journal[j + 4]
            decoding[request] = 0
            more = 5 if len(told) > 1 else 0
            out[o] = _K_ARRIVED | (7 + more)
            out[o + 1] = request
            _wide(out, o + 2, journal[j + 2])
            out[o + 4] = journal[j + 3] + 1
            out[o + 5] = journal[j + 4] + 1
            out[o + 6] = journal[j + 5] + 1
            out[o + 7] = journal[j + 6] + 1 if journal[j + 6] > 0 else _ABSENT
            if more:
                out[o + 8] = told[request, 0] + 1 if told[request, 0] > 0 else _ABSENT
                for k in range(2):
                    if told[request, k + 1] < 0:
                        out[o + 9 + 2 * k] = out[o + 10 + 2 * k] = _ABSENT
                    else:
                        _wide(out, o + 9 + 2 * k, told[request, k + 1])
            o += 8 + more
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

    `config`, `pool` and `second` (the pool that USE_POOL 2 means) open the stream; `offsets` (int64, requests + 1) and
    `hashes` (uint64) are the workload's prefix identities, one for each `hash_tokens` tokens. `told` (int64, requests +
    1 by 3) is what only whoever made the traffic knows of a request: whom it follows (0 = nobody), the pause behind
    that end, and the patience of its client (ns, -1 = none). `close` hands on what follows the last step, if anything,
    in a frame of its own.
    """

    def __init__(
        self,
        write: Callable[[Words], None],
        config_text: str,
        pool: PoolInfo,
        *,
        second: PoolInfo | None = None,
        requests: int,
        offsets: Ints | None = None,
        hashes: npt.NDArray[np.uint64] | None = None,
        hash_tokens: int = 0,
        told: Ints | None = None,
    ) -> None:
        self._write = write
        self._out = np.zeros(1 << 18, np.uint32)
        self._place = np.zeros(4, np.int64)
        self._target = np.zeros(requests + 1, np.int64)
        self._decoding = np.zeros(requests + 1, np.uint8)
        self._offsets = np.zeros(requests + 1, np.int64) if offsets is None else offsets
        self._hashes = np.zeros(0, np.uint64) if hashes is None else hashes
        self._hash_tokens = hash_tokens
        self._told = np.zeros((1, 3), np.int64) if told is None else told
        preamble = [
            *encode(Kind.ENGINE_CONFIG, text=config_text),
            *encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=pool.text(True)),
        ]
        if second is not None:
            preamble += encode(Kind.POOL_ATTACHED, pool=_OTHER_POOL, restated=0, text=second.text(True))
        self._out[: len(preamble)] = preamble
        self._place[_OUT] = len(preamble)
        self._last_ns = 0

    def __call__(self, journal: Ints) -> None:
        """Translate a piece of the journal."""
        at = 0
        while at < len(journal):
            before, at = at, self._append(journal, at)
            self._hand_on()
            if at == before:
                self._enlarge()

    def overlook(self, journal: Ints) -> None:
        """Take note of entries without a step that are not to be recorded: what follows is said as if they were."""
        used, at = int(self._place[_OUT]), 0
        while at < len(journal):
            before, at = at, self._append(journal, at)
            self._place[_OUT] = used
            if at == before:
                self._enlarge()

    def close(self) -> None:
        """Close the last frame where records follow the last step, and hand it on."""
        used = int(self._place[_OUT])
        if used:
            frame = int(self._place[_FRAME])
            time = max(self._last_ns, int(self._place[_CAME]))
            tick = encode(Kind.TICK, seq=frame, words=used + 6, time=time, checksum=1)
            self._out[used : used + 6] = tick
            crc = int(crc32(self._out, 0, used + 5, CRC_TABLES))
            self._out[used + 5] = crc or 1
            self._place[: _FRAME + 1] = (used + 6, used + 6, frame + 1)
            self._hand_on()

    def _append(self, journal: Ints, start: int) -> int:
        """Translate entries from `start` on; where it stopped."""
        return int(
            _translate(
                journal,
                start,
                self._out,
                self._place,
                self._target,
                self._decoding,
                self._offsets,
                self._hashes,
                self._hash_tokens,
                self._told,
                _UNIT_KIND,
                _FIELD_COUNT,
                _NAMES_UNITS,
                CRC_TABLES,
            )
        )

    def _enlarge(self) -> None:
        self._out = np.concatenate((self._out, np.zeros(len(self._out), np.uint32)))

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

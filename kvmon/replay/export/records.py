"""The records of frames as columns: one row a record, or a run of units where a record names units.

    kind     uint8   `events.Kind`
    pool     int32   the pool that it is about, -1 = none
    at       int32   word of the batch at which the record begins
    frame    int32   place of its frame in the batch
    request  int64   the request that it is about, -1 = none
    unit     int32   first unit of the run, -1 = the record names none
    units    int32   units of the run, -1 = the record names none

A record of n units in m maximal runs of neighbours, in its own order, is m rows; every other record is one. Kinds that
this kvmon does not know are left out, as everywhere.

Invariant: follows from the words alone. Nothing is folded or judged here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.events import FIELDS, Kind, decode, field_offsets
from kvmon.events.wire import ABSENT
from kvmon.jit import kernel
from kvmon.state import FrameTable
from kvmon.state.frames import record_words

__all__ = ["RecordReader", "Records"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_OF_POOLS = (
    *(kind for kind in Kind if kind <= 9),
    Kind.POOL_RESET,
    Kind.ASSIGN,
    Kind.ASSIGN_RUN,
    Kind.TRUNCATE,
    Kind.ALLOC_FAILED,
    Kind.OFFLOADED,
    Kind.ONBOARDED,
    Kind.MIGRATED,
    Kind.COMPACTED,
    Kind.CLAIMS,
    Kind.AUDIT_SLICE,
    Kind.AUDIT_RUN,
)
# How units stand in a record, by kind: no units; a list behind the other fields; a first unit and how many, of which
# the offsets are given; a first unit and a list of as many words.
_NONE, _LISTED, _RUN, _COUNTED = range(4)
_UNKNOWN = 255

_UNITS = np.full(256, _UNKNOWN, np.uint8)
_UNIT_AT = np.zeros((256, 2), np.int64)
_POOLED = np.zeros(256, np.uint8)
_REQUEST = np.zeros(256, np.uint8)  # the first field is a request that is always there, or may be absent (2)
for _kind, _fields in FIELDS.items():
    _offsets = field_offsets(_kind)
    _UNITS[_kind] = _NONE
    if _fields and _fields[-1].type == "units":
        _UNITS[_kind], _UNIT_AT[_kind] = _LISTED, (_offsets["units"], 0)
    if _fields and _fields[0].name == "request":
        _REQUEST[_kind] = 1 if _fields[0].type == "id" else 2
for _kind in _OF_POOLS:
    _POOLED[_kind] = 1
for _kind, _names in {
    Kind.ASSIGN_RUN: ("start", "units"),
    Kind.AUDIT_RUN: ("start", "units"),
    Kind.MIGRATED: ("new_start", "new_units"),
}.items():
    _offsets = field_offsets(_kind)
    _UNITS[_kind], _UNIT_AT[_kind] = _RUN, tuple(_offsets[_name] for _name in _names)
_UNITS[Kind.AUDIT_SLICE], _UNIT_AT[Kind.AUDIT_SLICE] = _COUNTED, (1, 2)
_MIGRATED = int(Kind.MIGRATED)
_POOL_FIELD = np.zeros(256, np.uint8)
_POOL_FIELD[[Kind.POOL_ATTACHED, Kind.POOL_CHANGED]] = 1
_PLAIN_FIELD = {"count", "maybe", "id"}


@dataclass(frozen=True)
class Records:
    """See the module for the columns. `words` and `table` are those that it was read from, good as long as they are."""

    words: Words
    table: FrameTable
    kind: npt.NDArray[np.uint8]
    pool: npt.NDArray[np.int32]
    at: npt.NDArray[np.int32]
    frame: npt.NDArray[np.int32]
    request: Ints
    unit: npt.NDArray[np.int32]
    units: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def time_ns(self) -> Ints:
        """End of the frame of each row."""
        times: Ints = self.table.times[self.frame]
        return times

    @property
    def number(self) -> Ints:
        """Number of the frame of each row."""
        numbers: Ints = self.table.numbers[self.frame]
        return numbers

    @property
    def word(self) -> Ints:
        """Place of the record in its frame, in words."""
        starts = np.concatenate([[0], self.table.ends[:-1]])
        words: Ints = self.at - starts[self.frame]
        return words

    def field(self, kind: Kind, name: str, rows: Ints) -> Ints:
        """A field of these rows, all of one kind; -1 where it is absent or older than the field."""
        at = self.at[rows].astype(np.int64)
        ends = at + (self.words[at].astype(np.int64) & 0x7FFFF) + 1
        at += field_offsets(kind)[name]
        type_ = next(field.type for field in FIELDS[kind] if field.name == name)
        wide = type_ not in _PLAIN_FIELD
        there = at + wide < ends
        at = np.where(there, at, 0)
        low = self.words[at].astype(np.int64)
        there &= low != ABSENT
        if type_ == "id":
            return np.where(there, low, -1)
        if not wide:
            return np.where(there, low - 1, -1)
        return np.where(there, (low - 1) | (self.words[at + 1].astype(np.int64) - 1) << 31, -1)

    def pages(self, rows: Ints) -> Ints:
        """Names of pages in these rows of REQUEST_HASHES."""
        size = self.words[self.at[rows]].astype(np.int64) & 0x7FFFF
        return (size + 1 - field_offsets(Kind.REQUEST_HASHES)["hashes"]) // 2

    def text(self, row: int) -> str:
        """The text of a record that has one."""
        at = int(self.at[row])
        words = self.words[at : at + 1 + (int(self.words[at]) & 0x7FFFF)].tolist()
        return next((str(event.fields["text"]) for event in decode(words)), "")


class RecordReader:
    """Reads batch after batch into the same room: the records of a batch are good until the next one is read."""

    def __init__(self) -> None:
        self._room = 0
        self._make(1 << 16)

    def read(self, words: Words, table: FrameTable) -> Records:
        """The records of whole frames that were scanned before."""
        end = int(table.ends[-1]) if len(table.ends) else 0
        if end > self._room:
            self._make(end)
        count = _read(
            words, table.ends, self._kind, self._pool, self._at, self._frame, self._request, self._unit, self._units,
            _UNITS, _UNIT_AT, _POOLED, _POOL_FIELD, _REQUEST,
        )  # fmt: skip
        return Records(
            words,
            table,
            self._kind[:count],
            self._pool[:count],
            self._at[:count],
            self._frame[:count],
            self._request[:count],
            self._unit[:count],
            self._units[:count],
        )

    def _make(self, room: int) -> None:
        """Room for so many rows: a row takes at least a word."""
        self._room = room
        self._kind = np.empty(room, np.uint8)
        self._pool, self._at, self._frame, self._unit, self._units = (np.empty(room, np.int32) for _ in range(5))
        self._request = np.empty(room, np.int64)


@kernel
def _read(
    words: Words,
    ends: Ints,
    kinds: npt.NDArray[np.uint8],
    pools: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int32],
    frames: npt.NDArray[np.int32],
    requests: Ints,
    first: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
    how: npt.NDArray[np.uint8],
    where: Ints,
    pooled: npt.NDArray[np.uint8],
    pool_field: npt.NDArray[np.uint8],
    named: npt.NDArray[np.uint8],
) -> int:
    """Fill the columns; how many rows there are."""
    at, row = 0, 0
    for frame in range(len(ends)):
        pool = np.int64(1)
        while at < ends[frame]:
            word = np.int64(words[at])
            op, payload = word >> 27, word & 0x7FFFFFF
            size = record_words(word)
            if op == 30:
                pool = payload
                at += size
                continue
            kind, request, subject = op % 10, np.int64(-1), pool
            begin, end = at, at  # words that are a list of units
            unit, count = np.int64(-1), np.int64(-1)
            if op < 10:
                unit, count = payload, np.int64(1)
            elif op < 20:
                begin, end = at + 1, at + size
            elif op < 30:
                unit, count = payload, np.int64(words[at + 1])
            else:
                kind = payload >> 19
                if how[kind] == 255:
                    at += size
                    continue
                if pool_field[kind]:
                    subject = np.int64(words[at + 1]) - 1
                elif not pooled[kind]:
                    subject = np.int64(-1)
                if named[kind] and words[at + 1] != 0xFFFFFFFF:
                    request = np.int64(words[at + 1]) - (named[kind] - 1)
                if how[kind] == 1:
                    begin, end = at + where[kind, 0], at + size
                elif how[kind] == 2:
                    unit = np.int64(words[at + where[kind, 0]])
                    # a count is one more on the wire
                    count = np.int64(words[at + where[kind, 1]]) - (1 if kind == _MIGRATED else 0)
                elif how[kind] == 3:
                    unit, count = np.int64(words[at + 1]), size - 2
            k = begin
            while True:
                if k < end:
                    unit, count = np.int64(words[k]), np.int64(1)
                    k += 1
                    while k < end and np.int64(words[k]) == unit + count:
                        count += 1
                        k += 1
                kinds[row], pools[row], starts[row], frames[row] = kind, subject, at, frame
                requests[row], first[row], lengths[row] = request, unit, count
                row += 1
                if k >= end:
                    break
            at += size
    return row

"""The wire format: events as words of 32 bits, none of which is ever zero.

    31    27 26                         0
    +-------+---------------------------+
    |  op   |          payload          |
    +-------+---------------------------+

    op 1..9     ONE    payload = unit                          one unit of kind `op`
    op 11..19   LIST   payload = n, then n words = units       kind `op - 10`
    op 21..29   RUN    payload = first unit, then 1 word = n   kind `op - 20`
    op 30       POOL   payload = pool                          the records that follow in this frame are about this pool
    op 31       LONG   payload = kind << 19 | n, then n words  the fields of `kinds.FIELDS`

    count  v + 1        maybe  v + 1, 0xFFFFFFFF = absent      id, units, status   as they are, never zero
    wide   (v & M) + 1, (v >> 31) + 1 with M = 2**31 - 1       maybe_wide  as wide, both 0xFFFFFFFF = absent
    hashes  two words each, a half of zero is written as 1
    text   length + 1, then 3 bytes a word under a top byte of 0xFF              sum  CRC-32, zero written as 1

A frame is the records from the end of the frame before it up to and including a STEP or TICK, which carries the
number of the frame, its length in words, its time and the CRC-32 of all its words before the checksum itself. Each
frame begins in pool 1. Words are little-endian in files. Decoding never changes state; nothing is applied here.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from kvmon.errors import InputError
from kvmon.events.kinds import FIELDS, FIRST_FIELDS, Kind

__all__ = [
    "ABSENT",
    "CACHED",
    "DEFERRED",
    "FORMAT_VERSION",
    "LIST",
    "LONG",
    "MAX_LONG",
    "MAX_UNIT",
    "ONE",
    "OP_POOL",
    "PINNED",
    "REFS",
    "RUN",
    "STATUS",
    "Event",
    "checksum",
    "decode",
    "encode",
    "field_offsets",
    "record_words",
    "status_word",
]

FORMAT_VERSION = 1
ONE, LIST, RUN, OP_POOL, LONG = 0, 10, 20, 30, 31
ABSENT = 0xFFFFFFFF
MAX_UNIT = (1 << 27) - 1
MAX_LONG = (1 << 19) - 1
_LOW31 = (1 << 31) - 1
_WORDS = {"count": 1, "maybe": 1, "id": 1, "sum": 1, "wide": 2, "maybe_wide": 2}

STATUS = 1 << 31
"""Set in every status word of a unit, so that it is never zero; below it the flags and the number of references."""
CACHED, PINNED, DEFERRED = 1 << 24, 1 << 25, 1 << 26
REFS = (1 << 24) - 1


def status_word(references: int, *, cached: bool = False, pinned: bool = False, deferred: bool = False) -> int:
    """The status of one unit as an audit ships it: references (up to 2**24 - 1) and flags in one word."""
    return STATUS | (cached and CACHED) | (pinned and PINNED) | (deferred and DEFERRED) | min(max(references, 0), REFS)


def checksum(words: Any) -> int:
    """CRC-32 of a buffer of little-endian words; zero is written as 1."""
    return zlib.crc32(words) or 1


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded record: its kind, the pool it is about, its fields by name, and the word it began at."""

    kind: Kind
    pool: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    position: int = 0

    @property
    def units(self) -> Sequence[int]:
        """The units the record names, runs expanded (a tuple, or a range beyond a million); empty where it names
        none.
        """
        units = self.fields.get("units", ())
        if self.kind is Kind.ASSIGN_RUN:
            return _run(self.fields["start"], units)
        return units if isinstance(units, tuple | range) else ()


def encode(kind: Kind, **values: Any) -> list[int]:
    """The words of one record; missing `maybe` and `maybe_wide` fields are absent.

    Raises InputError when a value does not fit its field: the general path, for records that are rare or for tests.
    The probe has faster ones for units.
    """
    if kind <= 9:
        return _encode_units(kind, tuple(values["units"]))
    words: list[int] = []
    for name, type_ in FIELDS[kind]:
        value = values.get(name)
        if value is None and type_ not in ("maybe", "maybe_wide"):
            raise InputError(f"{kind.name.lower()} needs a value for '{name}'")
        words += _encode_field(kind, name, type_, value)
    if len(words) > MAX_LONG:
        raise InputError(f"{kind.name.lower()} has {len(words)} words, a record holds {MAX_LONG}: split it")
    return [LONG << 27 | kind << 19 | len(words), *words]


def _encode_units(kind: Kind, units: Sequence[int]) -> list[int]:
    if not units or min(units) < 1 or max(units) > MAX_UNIT:
        raise InputError(f"{kind.name.lower()} needs units from 1 to {MAX_UNIT}")
    first, count = units[0], len(units)
    if count == 1:
        return [kind << 27 | first]
    if list(units) == list(range(first, first + count)):
        return [(kind + RUN) << 27 | first, count]
    return [(kind + LIST) << 27 | count, *units]


def _encode_field(kind: Kind, name: str, type_: str, value: Any) -> list[int]:
    if value is None:
        return [ABSENT] * _WORDS[type_]
    if type_ in ("count", "maybe", "id", "sum"):
        word = value + 1 if type_ in ("count", "maybe") else value
        if not 0 < word < ABSENT + (type_ == "sum"):
            raise InputError(f"{kind.name.lower()}: {name} = {value} does not fit in a word")
        return [word]
    if type_ in ("wide", "maybe_wide"):
        if not 0 <= value < 1 << 62:
            raise InputError(f"{kind.name.lower()}: {name} = {value} does not fit in 62 bits")
        return [(value & _LOW31) + 1, (value >> 31) + 1]
    if type_ == "hashes":
        if any(not 0 <= item < 1 << 64 for item in value):
            raise InputError(f"{kind.name.lower()}: a hash does not fit in 64 bits")
        return [half or 1 for item in value for half in (item & 0xFFFFFFFF, item >> 32)]
    if type_ == "text":
        data = value.encode()
        padded = data + b"\0" * (-len(data) % 3)
        return [
            len(data) + 1,
            *(0xFF000000 | int.from_bytes(padded[i : i + 3], "little") for i in range(0, len(padded), 3)),
        ]
    if any(not 0 < word <= ABSENT for word in value):
        raise InputError(f"{kind.name.lower()}: {name} holds a value that does not fit in a word")
    return list(value)


def record_words(words: Sequence[int], at: int) -> int:
    """How many words the record at `at` has, from its first word alone.

    Raises InputError when that word is zero or no known operation.
    """
    word = words[at]
    op = word >> 27
    if 1 <= op <= 9 or op == OP_POOL:
        return 1
    if 11 <= op <= 19:
        return 1 + (word & MAX_UNIT)
    if 21 <= op <= 29:
        return 2
    if op == LONG:
        return 1 + (word & 0x7FFFF)
    raise InputError(f"word {at}: {word:#010x} begins no record")


def decode(words: Sequence[int], start: int = 0, end: int | None = None) -> Iterator[Event]:
    """The records in `words[start:end]`, one Event each; kinds newer than this kvmon are skipped.

    Raises InputError at a word that begins no record or a record that ends beyond `end`.
    """
    end = len(words) if end is None else end
    at, pool = start, 1
    while at < end:
        size = record_words(words, at)
        if at + size > end:
            raise InputError(f"word {at}: the record ends {at + size - end} words beyond the data")
        word = words[at]
        op, payload = word >> 27, word & MAX_UNIT
        if op == OP_POOL:
            pool = payload
        elif op == LONG:
            if (payload >> 19) in _KNOWN:
                kind = Kind(payload >> 19)
                yield Event(kind, pool, _decode_fields(kind, words, at + 1, at + size), at)
                if kind in (Kind.STEP, Kind.TICK):
                    pool = 1
        else:
            units: Sequence[int]
            if op < 10:
                units = (payload,)
            elif op < 20:
                units = tuple(words[at + 1 : at + size])
            else:
                units = _run(payload, words[at + 1])
            yield Event(Kind(op % 10), pool, {"units": units}, at)
        at += size


_KNOWN = frozenset(Kind)
_LONGEST_TUPLE = 1 << 20


def _run(start: int, count: int) -> Sequence[int]:
    """The units of a run; one of an absurd length, as damaged data has it, takes no memory."""
    units = range(start, start + count)
    return tuple(units) if count <= _LONGEST_TUPLE else units


def _decode_fields(kind: Kind, words: Sequence[int], at: int, end: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    always = len(FIRST_FIELDS[kind])
    for place, (name, type_) in enumerate(FIELDS[kind]):
        if at >= end and type_ in _WORDS and place < always:
            raise InputError(f"word {at}: {kind.name.lower()} ends before its field '{name}'")
        if place >= always and at + _WORDS.get(type_, 1) > end:  # written before there was such a field
            at, values[name] = end, "" if type_ == "text" else None
        elif type_ in _WORDS:
            values[name] = _decode_scalar(type_, words, at)
            at += _WORDS[type_]
        elif type_ == "hashes":
            values[name] = tuple(words[i] | words[i + 1] << 32 for i in range(at, end - 1, 2))
        elif type_ == "text":
            length = words[at] - 1
            stop = min(end, at + 1 + (length + 2) // 3)  # so that fields can be appended behind a text too
            data = array("I", words[at + 1 : stop]).tobytes()
            raw = b"".join(data[i : i + 3] for i in range(0, len(data), 4))
            values[name] = raw[:length].decode("utf-8", "replace")
            at = stop
        else:
            values[name] = tuple(words[at:end])
    return values


def _decode_scalar(type_: str, words: Sequence[int], at: int) -> int | None:
    word = words[at]
    if type_ == "maybe_wide" and word == ABSENT:
        return None
    if type_ in ("wide", "maybe_wide"):
        return (word - 1) | (words[at + 1] - 1) << 31
    if type_ == "maybe":
        return None if word == ABSENT else word - 1
    return word - 1 if type_ == "count" else word


@cache
def field_offsets(kind: Kind) -> dict[str, int]:
    """Offset of each field in words from the header of a LONG record, for folds that read words directly."""
    offsets: dict[str, int] = {}
    at = 1
    for name, type_ in FIELDS[kind]:
        offsets[name] = at
        at += _WORDS.get(type_, 0)
    return offsets

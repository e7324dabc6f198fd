"""The kernels that take frames apart into columns and put them together again; `columns` draws what they fill.

`join` trusts nothing: payloads come from files, so every length is checked before it is used. `split` is given only
what `frames.scan` has passed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.capture.prediction import decode_units, encode_units, remember_end
from kvmon.events import FIRST_FIELDS, Kind, field_offsets
from kvmon.jit import kernel

__all__ = [
    "LEAST_FRAME_WORDS",
    "SHAPES",
    "count_events",
    "join",
    "make_book",
    "merge_1",
    "merge_2",
    "merge_3",
    "merge_4",
    "split",
    "survey",
]

_UNITS, _STATUS, _RAW = range(3)
_TAILS = {"units": _UNITS, "status": _STATUS}
_ESCAPE, _PAYLOAD, _LONGEST = 31, 0x7FFFFFF, 0x7FFFF
_ASSIGN, _FINISHED, _PREEMPTED = int(Kind.ASSIGN), int(Kind.REQUEST_FINISHED), int(Kind.PREEMPTED)
_STEP, _TICK = int(Kind.STEP), int(Kind.TICK)
_STEP_WORDS, _TICK_WORDS = 17, 6
LEAST_FRAME_WORDS = _TICK_WORDS
_FRAME, _LENGTH, _TIME = (field_offsets(Kind.TICK)[name] for name in ("seq", "words", "time"))
# Fields of a STEP, by their number: a step ends when it began plus what it took, and begins when the one before ended.
_END, _START, _TOOK = (field_offsets(Kind.STEP)[name] - 1 for name in ("time", "start", "duration"))

# Columns of the book that is kept of each kind: its last fields, then these.
_MOST_FIELDS = 24
_LAST_LENGTH, _BASE, _RECORDS, _SEEN, _BOOK_WIDTH = range(_MOST_FIELDS, _MOST_FIELDS + 5)

Ints = npt.NDArray[np.int64]


def _shape(kind: int) -> tuple[int, int]:
    """(words of fields at the start, column of the rest) of a long record."""
    if kind not in set(Kind) or kind <= _ESCAPE:
        return 0, _RAW
    fields = FIRST_FIELDS[Kind(kind)]  # what was appended since is rest: a capture's columns never change their shape
    fixed = [field for field in fields if field.type not in ("units", "status", "hashes", "text")]
    rest = fields[-1].type if len(fields) > len(fixed) else ""
    return sum(2 if field.type == "wide" else 1 for field in fixed), _TAILS.get(rest, _RAW)


SHAPES: Ints = np.array([_shape(kind) for kind in range(256)], np.int64)
"""For each kind of long record: words of fields, column of the rest."""


def make_book(records: Ints) -> Ints:
    """The book of a chunk with so many long records of each kind.

    Each field of each kind has its own part of the column.
    """
    book = np.zeros((256, _BOOK_WIDTH), np.int64)
    book[:, _RECORDS] = records
    book[1:, _BASE] = np.cumsum(records * SHAPES[:, 0])[:-1]
    return book


@kernel
def _zigzag(difference: Any) -> Any:
    """A difference of 32-bit numbers as a small one without a sign."""
    small = np.int64(np.int32(difference))
    return ((small << 1) ^ (small >> 63)) & 0xFFFFFFFF


@kernel
def _unzigzag(code: Any) -> Any:
    wide = np.int64(code)
    return (wide >> 1) ^ -(wide & 1)


@kernel
def count_events(words: Any) -> Any:
    """(records, unit-operations).

    Units that they allocate, free, share and so on, each record counting each of its units.
    """
    at, records, units = 0, 0, 0
    while at < len(words):
        word = np.int64(words[at])
        op, payload = word >> 27, word & _PAYLOAD
        records += 1
        if op < 10:
            units += 1
            at += 1
        elif op < 20:
            units += payload
            at += 1 + payload
        elif op < 30:
            units += np.int64(words[at + 1]) if at + 1 < len(words) else 0
            at += 2
        else:
            records -= op == 30
            at += 1 if op == 30 else 1 + (payload & _LONGEST)
    return records, units


@kernel
def survey(words: Any, records: Any) -> Any:
    """Count the long records of each kind; the largest unit that short records and lists name."""
    at, largest = 0, 0
    while at < len(words):
        word = np.int64(words[at])
        op, payload = word >> 27, word & _PAYLOAD
        if op < 10:
            largest = max(largest, payload)
            at += 1
        elif op < 20:
            for k in range(at + 1, min(at + 1 + payload, len(words))):
                largest = max(largest, np.int64(words[k]))
            at += 1 + payload
        elif op < 30:
            largest = max(largest, payload)
            at += 2
        elif op == 30:
            at += 1
        else:
            if payload >> 19 > _ESCAPE:
                records[payload >> 19] += 1
            at += 1 + (payload & _LONGEST)
    return largest


@kernel
def split(
    words: Any,
    shapes: Any,
    ops: Any,
    counts: Any,
    units: Any,
    fields: Any,
    status: Any,
    raw: Any,
    used: Any,
    learned: Any,
    book: Any,
) -> Any:
    """Fill the columns; `used` gets the length of each. False at a word that begins no record."""
    one = used[6:]
    at, io, ic, iu, js, ir, written = 0, 0, 0, 0, 0, 0, 0
    while at < len(words):
        word = np.int64(words[at])
        op, payload = word >> 27, word & _PAYLOAD
        if op == 0 or op == 10 or op == 20:
            return False
        if op < 10 or op == 30:
            ops[io] = op
            io += 1
            if op == 30:
                counts[ic] = payload
                ic += 1
            else:
                one[0] = payload
                encode_units(op, 0, one, 0, 1, units, iu, learned)
                iu += 1
            at += 1
            continue
        if op < 30:
            ops[io] = op
            io += 1
            n = payload if op < 20 else np.int64(words[at + 1])
            counts[ic] = _zigzag(n - book[op, _LAST_LENGTH])
            book[op, _LAST_LENGTH] = n
            ic += 1
            if op < 20:
                encode_units(op - 10, 0, words, at + 1, n, units, iu, learned)
                iu += n
                at += n + 1
            else:
                one[0] = payload
                encode_units(0, 0, one, 0, 1, units, iu, learned)
                iu += 1
                at += 2
            continue
        kind, n = payload >> 19, payload & _LONGEST
        if kind <= _ESCAPE:
            ops[io] = _ESCAPE
            raw[ir] = word
            ir += 1
        else:
            ops[io] = kind
            counts[ic] = _zigzag(n - book[kind, _LAST_LENGTH])
            book[kind, _LAST_LENGTH] = n
            ic += 1
        io += 1
        known = shapes[kind, 0]
        if n < known:
            return False
        place, records = book[kind, _BASE] + book[kind, _SEEN], book[kind, _RECORDS]
        last_end = book[_STEP, _END]
        for k in range(known):
            value = np.int64(words[at + 1 + k])
            guess = book[kind, k]
            if kind == _STEP:
                if k == _END:
                    guess = np.int64(words[at + 1 + _START]) + np.int64(words[at + 1 + _TOOK])
                elif k == _START:
                    guess = last_end
            fields[place + k * records] = _zigzag(value - guess)
            book[kind, k] = value
        book[kind, _SEEN] += 1
        written += known
        start, rest = at + 1 + known, n - known
        if rest > 0:
            tail = shapes[kind, 1]
            if tail == _UNITS:
                encode_units(_ASSIGN, np.int64(words[at + 1]), words, start, rest, units, iu, learned)
                iu += rest
            elif tail == _STATUS:
                for k in range(rest):
                    status[js + k] = words[start + k]
                js += rest
            else:
                for k in range(rest):
                    raw[ir + k] = words[start + k]
                ir += rest
        if kind in (_FINISHED, _PREEMPTED):
            remember_end(words[at + 1], learned)
        at += n + 1
    used[0], used[1], used[2], used[3], used[4], used[5] = io, ic, iu, written, js, ir
    return at == len(words)


@kernel
def join(
    ops: Any,
    counts: Any,
    units: Any,
    fields: Any,
    status: Any,
    raw: Any,
    shapes: Any,
    words: Any,
    frames: Any,
    learned: Any,
    book: Any,
    until: Any,
    enough: Any,
    cursor: Any,
) -> Any:
    """Fill `words` and the table of frames (end, number, time), up to the first frame that ended after `until`, or to
    the first frame behind `enough` words; then `cursor` is where to go on, and `cursor[0]` is -1 where nothing is left.

    (words so far, frames in the table), or (-1, 0) where the columns contradict each other.
    """
    begin, at, ic, iu, js, ir = cursor[0], cursor[1], cursor[2], cursor[3], cursor[4], cursor[5]
    start, count, room = at, 0, len(words)
    cursor[0] = -1
    for io in range(begin, len(ops)):
        op = np.int64(ops[io])
        if op == 0 or op == 10 or op == 20:
            return -1, 0
        if op < 10 or op == 30:
            if at >= room:
                return -1, 0
            if op == 30:
                if ic >= len(counts):
                    return -1, 0
                words[at] = op << 27 | (counts[ic] & _PAYLOAD)
                ic += 1
            else:
                if iu >= len(units):
                    return -1, 0
                decode_units(op, 0, units, iu, 1, words, at, learned)
                words[at] = op << 27 | (words[at] & _PAYLOAD)
                iu += 1
            at += 1
            continue
        if op == _ESCAPE:
            if ir >= len(raw):
                return -1, 0
            kind, n = (np.int64(raw[ir]) >> 19) & 0xFF, np.int64(raw[ir]) & _LONGEST
            if kind > _ESCAPE:
                return -1, 0
            ir += 1
        else:
            if ic >= len(counts):
                return -1, 0
            kind, n = op, (book[op, _LAST_LENGTH] + _unzigzag(counts[ic])) & 0xFFFFFFFF
            book[op, _LAST_LENGTH] = n
            ic += 1
        if op < 20:
            if n > room - at - 1 or n > len(units) - iu:
                return -1, 0
            words[at] = op << 27 | n
            decode_units(op - 10, 0, units, iu, n, words, at + 1, learned)
            iu += n
            at += n + 1
            continue
        if op < 30:
            if at + 2 > room or iu >= len(units):
                return -1, 0
            decode_units(0, 0, units, iu, 1, words, at, learned)
            words[at] = op << 27 | (words[at] & _PAYLOAD)
            words[at + 1] = n
            iu += 1
            at += 2
            continue
        known = shapes[kind, 0]
        rest = n - known
        if rest < 0 or n > _LONGEST or n > room - at - 1:
            return -1, 0
        words[at] = 31 << 27 | kind << 19 | n
        at += 1
        place, records = book[kind, _BASE] + book[kind, _SEEN], book[kind, _RECORDS]
        last_end = book[_STEP, _END]
        for k in range(known):
            if kind == _STEP and k == _START:
                value = (last_end + _unzigzag(fields[place + k * records])) & 0xFFFFFFFF
            else:
                value = (book[kind, k] + _unzigzag(fields[place + k * records])) & 0xFFFFFFFF
            words[at + k] = value
            book[kind, k] = value
        if kind == _STEP:
            end = np.int64(words[at + _START]) + np.int64(words[at + _TOOK])
            end = (end + _unzigzag(fields[place + _END * records])) & 0xFFFFFFFF
            words[at + _END] = end
            book[kind, _END] = end
        book[kind, _SEEN] += 1
        body = at + known
        if rest > 0:
            tail = shapes[kind, 1]
            if tail == _UNITS:
                if rest > len(units) - iu:
                    return -1, 0
                decode_units(_ASSIGN, np.int64(words[at]), units, iu, rest, words, body, learned)
                iu += rest
            elif tail == _STATUS:
                if rest > len(status) - js:
                    return -1, 0
                for k in range(rest):
                    words[body + k] = status[js + k]
                js += rest
            else:
                if rest > len(raw) - ir:
                    return -1, 0
                for k in range(rest):
                    words[body + k] = raw[ir + k]
                ir += rest
        head, at = at - 1, body + rest
        if kind in (_FINISHED, _PREEMPTED):
            remember_end(words[body - known], learned)
        elif kind in (_STEP, _TICK):
            if n + 1 != (_STEP_WORDS if kind == _STEP else _TICK_WORDS) or count == frames.shape[1]:
                return -1, 0
            if np.int64(words[head + _LENGTH]) - 1 != at - start:
                return -1, 0
            frames[0, count] = at
            frames[1, count] = np.int64(words[head + _FRAME]) - 1
            frames[2, count] = (np.int64(words[head + _TIME]) - 1) | (np.int64(words[head + _TIME + 1]) - 1) << 31
            count += 1
            start = at
            if frames[2, count - 1] > until:
                break
            if at >= enough and io + 1 < len(ops):
                cursor[0], cursor[1], cursor[2], cursor[3], cursor[4], cursor[5] = io + 1, at, ic, iu, js, ir
                break
    return (at, count) if start == at else (-1, 0)


@kernel
def merge_1(low: Any, out: Any) -> Any:
    """Numbers of one byte."""
    for k in range(len(out)):
        out[k] = low[k]


@kernel
def merge_2(low: Any, second: Any, out: Any) -> Any:
    """Numbers of two bytes, from their planes."""
    for k in range(len(out)):
        out[k] = np.uint32(low[k]) | np.uint32(second[k]) << np.uint32(8)


@kernel
def merge_3(low: Any, second: Any, third: Any, out: Any) -> Any:
    """Numbers of three bytes, from their planes."""
    for k in range(len(out)):
        out[k] = np.uint32(low[k]) | np.uint32(second[k]) << np.uint32(8) | np.uint32(third[k]) << np.uint32(16)


@kernel
def merge_4(low: Any, second: Any, third: Any, high: Any, out: Any) -> Any:
    """Numbers of four bytes, from their planes."""
    for k in range(len(out)):
        half = np.uint32(low[k]) | np.uint32(second[k]) << np.uint32(8)
        out[k] = half | np.uint32(third[k]) << np.uint32(16) | np.uint32(high[k]) << np.uint32(24)

"""Parsing: find whole frames in words, check their structure and checksums, and say where they end. Nothing is
applied here.

Every word of a frame that passes belongs to a record whose length is right, so that the fold can walk it without
looking again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from kvmon.crc import CRC_TABLES, crc32
from kvmon.events import FIRST_FIELDS, Kind, field_offsets
from kvmon.jit import kernel

__all__ = ["FrameTable", "ScanEnd", "find_frame", "record_words", "scan", "whole_records"]

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

_STEP, _TICK = int(Kind.STEP), int(Kind.TICK)
_STEP_HEAD = 31 << 27 | _STEP << 19 | 16
_TICK_HEAD = 31 << 27 | _TICK << 19 | 5
_STEP_WORDS, _TICK_WORDS = 17, 6
_SEQ, _LENGTH, _TIME = (field_offsets(Kind.TICK)[name] for name in ("seq", "words", "time"))


class ScanEnd(IntEnum):
    """Why a scan ended."""

    ALL = 0  # every word belongs to a whole frame
    INCOMPLETE = 1  # the last frame is not closed
    NO_RECORD = 2  # a word that begins no record
    CHECKSUM = 3
    LENGTH = 4  # the frame says another length than it has


@dataclass(frozen=True)
class FrameTable:
    """Whole frames in a batch of words: `ends` (exclusive), numbers, times in ns; what follows `consumed` is no
    whole frame.
    """

    ends: Ints
    numbers: Ints
    times: Ints
    consumed: int
    end: ScanEnd


@kernel
def record_words(word: int) -> int:
    """Words of the record that begins with `word`."""
    op = word >> 27
    if op < 10 or op == 30:
        return 1
    if op < 20:
        return 1 + (word & 0x7FFFFFF)
    return 2 if op < 30 else 1 + (word & 0x7FFFF)


def _least_words() -> Ints:
    """By kind, the words that its fields need; a fold reads that many without looking."""
    width = {"wide": 2, "text": 1}
    least = np.zeros(256, np.int64)
    for kind, fields in FIRST_FIELDS.items():
        least[kind] = sum(
            width.get(field.type, 1) for field in fields if field.type not in ("units", "status", "hashes")
        )
    least[Kind.AUDIT_RUN] += 1  # its status is a single word
    return least


_LEAST = _least_words()


@kernel
def _walk(
    words: Words,
    start: int,
    ends: Ints,
    numbers: Ints,
    times: Ints,
    verify: bool,
    tables: npt.NDArray[np.uint32],
    least: Ints,
) -> tuple[int, int, int]:
    """Fill the table; (frames, words consumed, ScanEnd)."""
    at, frame, count, total = start, start, 0, len(words)
    while at < total:
        word = np.int64(words[at])
        op = word >> 27
        if 1 <= op <= 9 or op == 30:
            at += 1
        elif 11 <= op <= 19:
            at += 1 + (word & 0x7FFFFFF)
        elif 21 <= op <= 29:
            at += 2
        elif op == 31:
            kind = (word >> 19) & 0xFF
            size = 1 + (word & 0x7FFFF)
            if size <= least[kind]:
                return count, frame, 2
            if kind in (_STEP, _TICK):
                if at + size > total:
                    return count, frame, 1
                if size != (_STEP_WORDS if kind == _STEP else _TICK_WORDS):
                    return count, frame, 2
                end = at + size
                if np.int64(words[at + _LENGTH]) - 1 != end - frame:
                    return count, frame, 4
                if verify:
                    crc = crc32(words, frame, end - 1, tables)
                    if (crc if crc != 0 else 1) != words[end - 1]:
                        return count, frame, 3
                if count == len(ends):
                    return count, frame, 0
                ends[count] = end
                numbers[count] = np.int64(words[at + _SEQ]) - 1
                times[count] = (np.int64(words[at + _TIME]) - 1) | (np.int64(words[at + _TIME + 1]) - 1) << 31
                count += 1
                frame = end
            at += size
        else:
            return count, frame, 2
    return count, frame, 0 if frame == total else 1


def scan(words: Words, *, start: int = 0, verify: bool = True) -> FrameTable:
    """The whole frames in `words[start:]`; `verify=False` trusts checksums that were checked before."""
    room = max(16, (len(words) - start) // _TICK_WORDS + 1)
    table = np.empty((3, room), np.int64)
    count, consumed, end = _walk(words, start, table[0], table[1], table[2], verify, CRC_TABLES, _LEAST)
    used = table[:, :count].copy()
    return FrameTable(used[0], used[1], used[2], consumed, ScanEnd(end))


@kernel
def _search(words: Words, start: int, tables: npt.NDArray[np.uint32]) -> int:
    for at in range(start, len(words)):
        word = words[at]
        if word in (_STEP_HEAD, _TICK_HEAD):
            end = at + (_STEP_WORDS if word == _STEP_HEAD else _TICK_WORDS)
            if end <= len(words):
                frame = end - (np.int64(words[at + _LENGTH]) - 1)
                if 0 <= frame <= at:
                    crc = crc32(words, frame, end - 1, tables)
                    if (crc if crc != 0 else 1) == words[end - 1]:
                        return max(frame, start) if frame >= start else end
    return -1


def find_frame(words: Words, start: int) -> int | None:
    """After damage: where the next sound frame begins at or after `start`; None where there is none."""
    found = _search(words, start, CRC_TABLES)
    return None if found < 0 else int(found)


def whole_records(words: Words) -> int:
    """Where the last whole record ends, in words of a frame that was never closed."""
    at = 0
    while at < len(words):
        size = record_words(int(words[at]))
        if at + size > len(words):
            break
        at += size
    return at

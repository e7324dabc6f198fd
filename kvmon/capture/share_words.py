"""The words of frames with what could name somebody taken out: names of pages, texts, identities of devices.

Names of pages are already keyed hashes; here they are replaced once more under a key that nobody keeps, so that they
can be compared with each other and with nothing else. Equal names stay equal, different ones different. A diagnosis
remembers names in a table of few places: which of them meet there stays so too, or it could find something else.

What a newer kvmon appends to records is not known here and goes too.

Invariant: every record that stays is where it was among the others, and says the same but for that; frames are whole,
their lengths and checksums right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from kvmon.crc import CRC_TABLES, crc32
from kvmon.events import FIELDS, Event, Kind, decode, encode, field_offsets
from kvmon.events.wire import LONG
from kvmon.jit import kernel
from kvmon.state import FrameTable, scan
from kvmon.state.frames import record_words
from kvmon.state.watch import SEEN_BITS

__all__ = ["PageNames", "clean_frames", "clean_records", "count_kinds"]

Words = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]

# The place of a name in that table is the top of its product with this number (`state.watch_kernels`).
_GOLDEN = 0x9E3779B97F4A7C15
_INVERSE = np.uint64(pow(_GOLDEN, -1, 1 << 64))
_REST = 64 - SEEN_BITS
_NAMES_AT = field_offsets(Kind.REQUEST_HASHES)["hashes"]
_LENGTH_BACK = {Kind.STEP: 17 - field_offsets(Kind.STEP)["words"], Kind.TICK: 6 - field_offsets(Kind.TICK)["words"]}

_KEEP, _NAMES, _REWRITE, _DROP = range(4)
_HOW = np.full(256, _DROP, np.uint8)
_HOW[list(FIELDS)] = _KEEP
_HOW[Kind.REQUEST_HASHES] = _NAMES
_HOW[[Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED, Kind.DEVICE_SAMPLE]] = _REWRITE


def _most_words() -> Ints:
    """By kind, the words of a record with all of its fields; 0 where the last of them may have any number."""
    most = np.zeros(256, np.int64)
    for kind, fields in FIELDS.items():
        if fields and fields[-1].type in ("units", "status", "hashes", "text"):
            most[kind] = 0
        else:
            most[kind] = 1 + sum(2 if field.type in ("wide", "maybe_wide") else 1 for field in fields)
    most[Kind.AUDIT_RUN] = 1 + field_offsets(Kind.AUDIT_RUN)["status"]  # its status is a single word
    return most


_MOST = _most_words()

Rewrite = Callable[[Event], Event]


class PageNames:
    """Other names for names of pages, by a `secret` that is to be forgotten."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(secret, digest_size=32).digest()
        seed = int.from_bytes(hashlib.blake2b(secret, digest_size=16, person=b"places").digest(), "little")
        self._places = np.random.default_rng(seed).permutation(1 << SEEN_BITS).astype(np.uint64)

    def renamed(self, names: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The other names of these, in their order."""
        known, where = np.unique(names, return_inverse=True)
        mixed = np.array([self._mixed(name) for name in known.tolist()], np.uint64)
        place = self._places[(known * np.uint64(_GOLDEN)) >> np.uint64(_REST)]
        other: npt.NDArray[np.uint64] = (place << np.uint64(_REST) | mixed & np.uint64((1 << _REST) - 1)) * _INVERSE
        renamed: npt.NDArray[np.uint64] = other[where]
        return renamed

    def _mixed(self, name: int) -> int:
        digest = hashlib.blake2b(name.to_bytes(8, "little"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")


def clean_frames(words: Words, table: FrameTable, names: PageNames, rewrite: Rewrite) -> tuple[Words, FrameTable, int]:
    """Whole frames without what could name somebody, and how many names of pages were replaced.

    `rewrite` gives what may stay of a record with a text or a device; kinds that this kvmon does not know go.
    """
    clean, cuts, renamed = _cleaned(words, int(table.ends[-1]) if len(table.ends) else 0, names, rewrite)
    if not cuts and not renamed:
        return clean, table, 0
    ends = table.ends
    if cuts:
        clean, ends = _spliced(clean, table.ends, cuts)
    _seal(clean, ends, CRC_TABLES)
    return clean, scan(clean, verify=False), renamed


def clean_records(words: Words, names: PageNames, rewrite: Rewrite) -> tuple[Words, int]:
    """The same of whole records that no frame closes."""
    clean, cuts, renamed = _cleaned(words, len(words), names, rewrite)
    return _spliced(clean, np.array([len(clean)], np.int64), cuts, closed=False)[0] if cuts else clean, renamed


def count_kinds(words: Words) -> Ints:
    """How many long records of each kind there are, int64 (256)."""
    counts = np.zeros(256, np.int64)
    none = np.zeros(256, np.int64)
    _find(words, len(words), none.astype(np.uint8), none, counts, np.empty(0, np.int64))
    return counts


def _cleaned(
    words: Words, end: int, names: PageNames, rewrite: Rewrite
) -> tuple[Words, list[tuple[int, int, list[int]]], int]:
    """A copy with other names of pages; the (begin, size, new words) of records that become others; names replaced."""
    clean = words[:end].copy()
    found, counts = np.empty(0, np.int64), np.zeros(256, np.int64)
    count = _find(clean, end, _HOW, _MOST, counts, found)
    if count:
        found = np.empty(count, np.int64)
        _find(clean, end, _HOW, _MOST, counts, found)
    heads = clean[found].astype(np.int64)
    named = _HOW[heads >> 19 & 0xFF] == _NAMES
    renamed = _rename(clean, found[named], names)
    odd = ((heads & 0x7FFFF) + 1 - _NAMES_AT) % 2 == 1  # half a name, which is none
    cuts = list(_rewritten(clean, found[~named | odd], rewrite))
    return clean, cuts, renamed


def _rename(words: Words, found: Ints, names: PageNames) -> int:
    """Replace the names of pages in the records at `found`."""
    counts = ((words[found].astype(np.int64) & 0x7FFFF) + 1 - _NAMES_AT) // 2
    if not counts.sum():
        return 0
    first = np.repeat(found + _NAMES_AT - 2 * (np.cumsum(counts) - counts), counts)
    places = first + 2 * np.arange(len(first))
    low, high = words[places].astype(np.uint64), words[places + 1].astype(np.uint64)
    other = names.renamed(low | high << np.uint64(32))
    for shift, at in ((0, places), (32, places + 1)):
        half = (other >> np.uint64(shift) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        words[at] = np.maximum(half, 1)  # no word is ever zero
    return len(places)


def _rewritten(words: Words, found: Ints, rewrite: Rewrite) -> Iterator[tuple[int, int, list[int]]]:
    """What stands instead of each of these records, where that is something else; nothing of a kind not known."""
    for at in found.tolist():
        size = 1 + (int(words[at]) & 0x7FFFF)
        old = words[at : at + size].tolist()
        event = next(decode(old), None)
        if event is not None and _HOW[event.kind] == _REWRITE:
            event = rewrite(event)
        new = [] if event is None else encode(event.kind, **event.fields)
        if new != old:
            yield at, size, new


def _spliced(
    words: Words, ends: Ints, cuts: list[tuple[int, int, list[int]]], *, closed: bool = True
) -> tuple[Words, Ints]:
    """The words with these records exchanged, and where frames end then; a frame says its new length."""
    parts, at = [], 0
    grown = np.zeros(len(ends), np.int64)
    for begin, size, new in cuts:
        parts += [words[at:begin], np.array(new, np.uint32)]
        at = begin + size
        grown[int(np.searchsorted(ends, begin, "right"))] += len(new) - size
    joined = np.concatenate([*parts, words[at:]])
    moved = ends + np.cumsum(grown)
    if closed:
        for frame in np.flatnonzero(grown).tolist():
            end = int(moved[frame])
            back = _LENGTH_BACK[Kind.TICK if joined[end - 6] >> 19 == (31 << 8 | Kind.TICK) else Kind.STEP]
            joined[end - back] = int(joined[end - back]) + int(grown[frame])
    return joined, moved


@kernel
def _find(words: Words, end: int, how: npt.NDArray[np.uint8], most: Ints, counts: Ints, found: Ints) -> int:
    """How many long records are not to be kept as they are, or are longer than `most` of their kind; where each begins,
    as far as `found` has room; how many there are of each kind."""
    at = 0
    count = 0
    while at < end:
        word = np.int64(words[at])
        size = record_words(word)
        if word >> 27 == LONG:
            kind = (word >> 19) & 0xFF
            counts[kind] += 1
            if how[kind] or 0 < most[kind] < size:
                if count < len(found):
                    found[count] = at
                count += 1
        at += size
    return count


@kernel
def _seal(words: Words, ends: Ints, tables: npt.NDArray[np.uint32]) -> None:
    """Write the checksum of each frame."""
    begin = 0
    for frame in range(len(ends)):
        end = ends[frame]
        crc = crc32(words, begin, end - 1, tables)
        words[end - 1] = crc if crc != 0 else 1
        begin = end

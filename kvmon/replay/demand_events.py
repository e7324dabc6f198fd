"""The demand that stands in a stream of events, as columns: who arrived, what names their pages, how they ended.

Invariant: rows follow from the frames alone and stand in the order of the stream; `step` counts the steps that were
closed before a record, so a record with step k happened between step k - 1 and step k. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvmon.events import FIELDS, Kind, field_offsets
from kvmon.events.wire import ABSENT, LONG
from kvmon.jit import kernel
from kvmon.state import FrameTable
from kvmon.state.frames import record_words

__all__ = ["COLUMNS", "DemandEvents", "DemandReader"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

#: The kinds that are kept, and the fields of each that become columns beside `step` and `at` (their order).
COLUMNS: dict[Kind, tuple[str, ...]] = {
    Kind.REQUEST_ARRIVED: (
        "request",
        "at",
        "class_id",
        "prompt",
        "limit",
        "intended",
        "follows",
        "pause",
        "patience",
    ),
    Kind.REQUEST_HASHES: ("request", "hash_tokens", "first_page"),
    Kind.REQUEST_FINISHED: ("request", "reason", "output"),
    Kind.ALLOC_FAILED: ("request", "outcome"),
    Kind.AUDIT_REQUEST: ("request", "class_id", "prompt", "limit"),
    Kind.STEP: ("start", "duration", "prefill", "decode", "context"),
    Kind.POOL_CHANGED: ("pool",),
    Kind.POOL_RESET: (),
    Kind.GAP: ("lost",),
}
_WANTED = np.zeros(256, np.uint8)
_WANTED[list(COLUMNS)] = 1
_STEP = int(Kind.STEP)
_TYPES = {kind: {field.name: field.type for field in FIELDS[kind]} for kind in COLUMNS}
_HEAD = LONG << 27


@dataclass(frozen=True)
class DemandEvents:
    """`rows[kind]` int64 (fields + 2, n): the columns of `COLUMNS`, then `step` and `order`, the place among all rows;
    -1 is absent. `hashes` uint64 and `hash_counts` int64 are those of the REQUEST_HASHES, one after the other."""

    rows: dict[Kind, Ints]
    hashes: npt.NDArray[np.uint64]
    hash_counts: Ints

    def column(self, kind: Kind, name: str) -> Ints:
        """One column of one kind; `step` and `order` too."""
        column: Ints = self.rows[kind][(*COLUMNS[kind], "step", "order").index(name)]
        return column


@dataclass
class DemandReader:
    """Collects the demand of a stream from its frames."""

    _rows: dict[Kind, list[Ints]] = field(default_factory=lambda: {kind: [] for kind in COLUMNS})
    _hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _counts: list[Ints] = field(default_factory=list)
    _steps: int = 0
    _order: int = 0

    def apply(self, words: Words, table: FrameTable) -> None:
        """Read frames that were scanned before."""
        end = int(table.ends[-1]) if len(table.ends) else 0
        found = np.empty(0, np.int64)
        count = _find(words, end, _WANTED, found)
        found = np.empty(count, np.int64)
        _find(words, end, _WANTED, found)
        kinds = words[found].astype(np.int64) >> 19 & 0xFF
        closes = kinds == _STEP
        step = self._steps + np.cumsum(closes) - closes
        order = self._order + np.arange(count)
        for kind in COLUMNS:
            mine = kinds == kind
            if mine.any():
                self._rows[kind].append(_columns(words, kind, found[mine], step[mine], order[mine]))
        mine = found[kinds == int(Kind.REQUEST_HASHES)]
        if len(mine):
            self._take_hashes(words, mine)
        self._steps += int(closes.sum())
        self._order += count

    def events(self) -> DemandEvents:
        """What was read so far."""
        return DemandEvents(
            {
                kind: np.concatenate([np.empty((len(names) + 2, 0), np.int64), *self._rows[kind]], axis=1)
                for kind, names in COLUMNS.items()
            },
            np.concatenate([np.empty(0, np.uint64), *self._hashes]),
            np.concatenate([np.empty(0, np.int64), *self._counts]),
        )

    def _take_hashes(self, words: Words, found: Ints) -> None:
        head = field_offsets(Kind.REQUEST_HASHES)["first_page"] + 1
        sizes = (words[found].astype(np.int64) & 0x7FFFF) + 1
        counts = (sizes - head) // 2
        begins = np.repeat(found + head - np.concatenate([[0], 2 * np.cumsum(counts)[:-1]]), 2 * counts)
        pairs = words[begins + np.arange(len(begins))].reshape(-1, 2).astype(np.uint64)
        self._hashes.append(pairs[:, 0] | pairs[:, 1] << np.uint64(32))
        self._counts.append(counts)


def _columns(words: Words, kind: Kind, found: Ints, step: Ints, order: Ints) -> Ints:
    """(fields + 2, n): the columns of records of one kind that begin at `found`."""
    sizes = (words[found].astype(np.int64) & 0x7FFFF) + 1
    at, types = field_offsets(kind), _TYPES[kind]
    rows = [_READERS[types[name]](words, found + at[name], found + sizes) for name in COLUMNS[kind]]
    return np.stack([*rows, step, order])


def _scalar(words: Words, at: Ints, ends: Ints) -> Ints:
    there = at < ends
    value = words[np.where(there, at, 0)].astype(np.int64)
    return np.where(there & (value != ABSENT), value - 1, -1)


def _id(words: Words, at: Ints, ends: Ints) -> Ints:
    return words[at].astype(np.int64)


def _wide(words: Words, at: Ints, ends: Ints) -> Ints:
    there = at + 1 < ends
    at = np.where(there, at, 0)
    low, high = words[at].astype(np.int64), words[at + 1].astype(np.int64)
    return np.where(there & (low != ABSENT), (low - 1) | (high - 1) << 31, -1)


_READERS: dict[str, Callable[[Words, Ints, Ints], Ints]] = {
    "count": _scalar,
    "maybe": _scalar,
    "id": _id,
    "wide": _wide,
    "maybe_wide": _wide,
}


@kernel
def _find(words: Words, end: int, wanted: npt.NDArray[np.uint8], found: Ints) -> int:
    """How many records of wanted kinds there are; where each begins, as far as `found` has room."""
    at = 0
    count = 0
    while at < end:
        word = np.int64(words[at])
        if word >> 27 == LONG and wanted[(word >> 19) & 0xFF]:
            if count < len(found):
                found[count] = at
            count += 1
        at += record_words(word)
    return count

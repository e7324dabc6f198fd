"""Journals of two runs of the same setup, so that they can be compared entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import ARRIVE, ENTRY_NAMES, FAIL, PREEMPT, iterate

__all__ = ["entries_of", "failures_of"]

#: Entries that name no request in their first field.
_OF_NOBODY = {"use_pool", "evict", "reset", "step", "compact", "claims", "error", "lost"}
Entries = list[tuple[str, list[int]]]


def entries_of(pieces: Sequence[npt.NDArray[np.int64]]) -> Entries:
    """Every entry; requests are numbered as they arrive, since a workload numbers them in another order."""
    number: dict[int, int] = {0: 0}
    found = []
    for code, fields in iterate(np.concatenate(pieces)):
        if code == ARRIVE:
            number[fields[0]] = len(number)
        name = ENTRY_NAMES[code]
        found.append((name, fields if name in _OF_NOBODY else [number[fields[0]], *fields[1:]]))
    return found


def failures_of(entries: Entries) -> int:
    """Refused allocations and preemptions among them."""
    return sum(name in (ENTRY_NAMES[FAIL], ENTRY_NAMES[PREEMPT]) for name, _ in entries)

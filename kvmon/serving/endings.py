"""Kernels for what follows the end of a request: transfers that still read its pages, and the faults of a release.

A request whose pages another engine reads leaves them deferred until the transfer is over (`parked`), or for ever when
a fault strands it. A leak keeps the last page, a double free says its return twice (`faults.py`).

Invariant: which request is struck follows from the seed and its number. A page that a transfer holds may be hit; it is
deferred again when the hit's request ends first. The entries name each page once: in UNSHARE while it still has a
reader or goes back, in DEFER when its last reference goes while it is held.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators import page_pool
from kvmon.allocators.hashing import draw
from kvmon.allocators.journal import DEFER, FREE, ON, UNSHARE, put_units
from kvmon.allocators.page_marks import end_hold, hold_pages
from kvmon.allocators.page_pool import give_pages
from kvmon.allocators.refusal import FinishReason
from kvmon.jit import inner, kernel
from kvmon.serving.state import (
    DOUBLE_FREES,
    DRAWN_AS,
    FAULT_SEED,
    FAULTS_FROM,
    LEAKED_UNITS,
    LEAKS,
    NOW,
    PARKED,
    STRAND_NS,
    STRANDED,
    STRANDS,
    TRANSFER_NS,
    TRANSFERS,
    TRANSFERS_BEGUN,
    TWICE_FREED,
    Serving,
)

__all__ = ["end_transfers", "next_transfer", "put_release", "release_specially"]

# Columns of apart.
FIRST = 0
PAGES = 1
UNTIL = 2
REQUEST = 3

_ABORT = int(FinishReason.ABORT)
_REF, _NEXT, _MARK = page_pool.REF, page_pool.NEXT, page_pool.MARK
_HELD, _LEAKED = page_pool.HELD, page_pool.LEAKED
_LEAK, _DOUBLE, _TRANSFER, _STRAND = 1, 2, 3, 4  # what is drawn
_NO_CONTENT = np.uint64(0)
_FOR_EVER = np.iinfo(np.int64).max


@inner
def _struck(serving: Serving, request: int, what: int, odds: int) -> bool:
    return bool(draw(serving.config[FAULT_SEED], what, serving.facts[request, DRAWN_AS]) < odds)


@inner
def put_release(serving: Serving, request: int, row: npt.NDArray[np.int32], n: int) -> None:
    """Write what giving back `row[n - 1]` down to `row[0]` is about to do: UNSHARE, and DEFER for pages that a transfer
    holds and nobody else refers to."""
    pages = serving.pages
    some = serving.some
    for deferring in range(2):
        count = 0
        for i in range(n - 1, -1, -1):
            held = pages.more[row[i], _MARK] & _HELD != 0 and pages.node[row[i], _REF] == 1
            if held == (deferring == 1):
                some[count] = row[i]
                count += 1
        if count:
            put_units(serving.journal, DEFER if deferring else UNSHARE, request, some, 0, count)


@inner
def release_specially(serving: Serving, request: int, row: npt.NDArray[np.int32], have: int, reason: int) -> None:
    """Give back the pages of a request that ended with `reason`, as its transfer and the faults have it."""
    config = serving.config
    tally = serving.tally
    pages = serving.pages
    journal_on = serving.journal.state[ON]
    n = have
    faulty = tally[NOW] >= config[FAULTS_FROM]
    if n and faulty and _struck(serving, request, _LEAK, config[LEAKS]):
        last = row[n - 1]
        # A page with content could be found again, and the engine would know it.
        lonely = pages.node[last, _REF] == 1 and pages.content[last] == _NO_CONTENT
        if lonely and pages.more[last, _MARK] & (_HELD | _LEAKED) == 0:
            pages.more[last, _MARK] |= _LEAKED
            pages.tally[page_pool.LEAKED_PAGES] += 1
            tally[LEAKED_UNITS] += 1
            n -= 1
    if n and _struck(serving, request, _TRANSFER, config[TRANSFERS]):
        entry = serving.apart[tally[PARKED]]
        hold_pages(pages, row, n, entry)
        if entry[PAGES]:
            tally[TRANSFERS_BEGUN] += 1
            entry[REQUEST] = request
            entry[UNTIL] = tally[NOW] + config[TRANSFER_NS]
            stranded = reason == _ABORT and faulty and _struck(serving, request, _STRAND, config[STRANDS])
            if stranded:
                tally[STRANDED] += 1
                entry[UNTIL] = tally[NOW] + config[STRAND_NS] if config[STRAND_NS] else _FOR_EVER
            if entry[UNTIL] != _FOR_EVER:
                tally[PARKED] += 1
    if n and journal_on:
        put_release(serving, request, row, n)
    give_pages(pages, row, n)
    if n and faulty and _struck(serving, request, _DOUBLE, config[DOUBLE_FREES]):
        last = row[n - 1]
        if pages.node[last, _REF] == 0 and pages.more[last, _MARK] & _HELD == 0:
            tally[TWICE_FREED] += 1
            if journal_on:
                put_units(serving.journal, UNSHARE, request, row, n - 1, 1)


@inner
def end_transfers(serving: Serving) -> None:
    """Free the pages of every transfer that is over by now."""
    tally = serving.tally
    parked = serving.apart
    some = serving.some
    at = 0
    while at < tally[PARKED]:
        if parked[at, UNTIL] > tally[NOW]:
            at += 1
            continue
        page = np.int32(parked[at, FIRST])
        count = 0
        group = np.int32(0)  # as in `give_pages`
        for _ in range(parked[at, PAGES]):
            following = serving.pages.node[page, _NEXT]
            if end_hold(serving.pages, page, group):
                some[count] = page
                count += 1
                if serving.pages.content[page] == _NO_CONTENT:
                    group = page
            page = following
        if count and serving.journal.state[ON]:
            put_units(serving.journal, FREE, parked[at, REQUEST], some, 0, count)
        tally[PARKED] -= 1
        for column in range(5):
            parked[at, column] = parked[tally[PARKED], column]


@kernel
def next_transfer(serving: Serving) -> int:
    """When the first transfer under way ends (ns); the largest int64 when none will."""
    first = np.int64(_FOR_EVER)
    for at in range(serving.tally[PARKED]):
        first = min(first, serving.apart[at, UNTIL])
    return int(first)

"""Kernels that give, extend and take back the pages of a request in the group that keeps every token.

Ask, then act: `chain_length` finds what the cache holds and changes nothing but the empty table row it fills;
`pages_for` is arithmetic. `admit_pages`, `extend_pages` and `release_pages` act on a decision made before, and write
the journal.

Invariant: `held[seat, PAGES]` pages of a request stand in `table[seat]` in the order of its tokens; only full pages are
ever shared or registered, so the last, unfilled page belongs to one request alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators.hashing import mix64, own_hash, page_hash
from kvmon.allocators.journal import ALLOC, ASSIGN, CACHE, ON, PIN, SHARE, UNSHARE, put_units, put_units_reversed
from kvmon.allocators.page_marks import pin_hot
from kvmon.allocators.page_pool import find_content, give_pages, register_content, share_pages, take_pages
from kvmon.jit import inner, kernel
from kvmon.serving.endings import put_release, release_specially
from kvmon.serving.state import (
    ADMIT_BY,
    BY_FULL,
    CLASS,
    COVERED,
    HASH_FIRST,
    HASH_TOKENS,
    HELD_PAGES,
    NEVER,
    NEXT_FULL,
    PAGES,
    PINS,
    PREFIX,
    QUOTA_HELD,
    QUOTAS,
    REGISTERED,
    ROOM,
    SEAT,
    SPECIAL,
    UNIT_TOKENS,
    Serving,
)

__all__ = [
    "admit_pages",
    "chain_length",
    "count_units",
    "extend_pages",
    "name_pages",
    "pages_for",
    "register_full",
    "release_pages",
]

_NAMED_AT_ONCE = 64


@inner
def pages_for(tokens: int, unit_tokens: int) -> int:
    """Pages that hold `tokens`: ceil(tokens / unit_tokens)."""
    return (tokens + unit_tokens - 1) // unit_tokens


@kernel
def name_pages(
    hashes: npt.NDArray[np.uint64],
    request: int,
    first: int,
    covered: int,
    hash_tokens: int,
    unit_tokens: int,
    begin: int,
    end: int,
    names: npt.NDArray[np.uint64],
) -> None:
    """Write the names of pages `begin` to `end - 1` (from 0) of a request to `names[begin:end]`.

    Its identities begin at `hashes[first]` and name its first `covered` tokens, `hash_tokens` each.
    """
    shared = min(end, covered // unit_tokens)
    if begin < shared:
        pages_a_step = max(hash_tokens // unit_tokens, 1)
        steps_a_page = max(unit_tokens // hash_tokens, 1)
        step = begin // pages_a_step
        page = begin
        while page < shared:
            scattered = mix64(hashes[first + (step + 1) * steps_a_page - 1])
            stop = min(shared, (step + 1) * pages_a_step)
            for i in range(page, stop):
                names[i] = page_hash(scattered, i - step * pages_a_step)
            page = stop
            step += 1
    if end > shared:
        scattered = own_hash(request)
        for i in range(max(begin, shared), end):
            names[i] = page_hash(scattered, i)


@inner
def _name(serving: Serving, request: int, begin: int, end: int) -> None:
    name_pages(
        serving.hashes,
        request,
        serving.facts[request, HASH_FIRST],
        serving.facts[request, COVERED],
        serving.config[HASH_TOKENS],
        serving.config[UNIT_TOKENS],
        begin,
        end,
        serving.names,
    )


@inner
def chain_length(serving: Serving, request: int, row: npt.NDArray[np.int32], most: int) -> int:
    """Pages at the front of `request` that the cache holds, at most `most`; written to `row`, nothing else changes."""
    pages = serving.pages
    names = serving.names
    most = min(most, row.size)  # one that is larger than the pool may wait, too
    found = 0
    named = 0
    while found < most:
        if found == named:
            # A chain that breaks early, as most do, should not pay for the names of all its pages.
            named = min(most, found + _NAMED_AT_ONCE)
            _name(serving, request, found, named)
        page = find_content(pages, names[found])
        if page == 0:
            break
        row[found] = page
        found += 1
    return found


@inner
def register_full(serving: Serving, request: int, tokens: int) -> None:
    """Put the pages of `request` that are full with `tokens` computed tokens into the cache."""
    seat = serving.live[request, SEAT]
    held = serving.held
    row = serving.table[seat]
    unit_tokens = serving.config[UNIT_TOKENS]
    pages = serving.pages
    names = serving.names
    done = held[seat, REGISTERED]
    full = tokens // unit_tokens
    _name(serving, request, done, full)
    for page in range(done, full):
        register_content(pages, row[page], names[page])
    held[seat, REGISTERED] = full
    serving.live[request, NEXT_FULL] = (full + 1) * unit_tokens
    if full > done and serving.journal.state[ON]:
        put_units(serving.journal, CACHE, request, row, done, full - done)


@inner
def count_units(serving: Serving, request: int, units: int) -> None:
    """The class of `request` holds `units` more (or fewer); counted where there are quotas, unless they hold what
    requests may become (admission by full need)."""
    if serving.config[QUOTAS] and serving.config[ADMIT_BY] != BY_FULL:
        serving.tally[QUOTA_HELD + min(serving.facts[request, CLASS], 63)] += units


@inner
def admit_pages(serving: Serving, request: int, hits: int, fresh: int, forked: bool) -> None:
    """Give a seated request its `hits` pages (they stand in its row) and `fresh` new ones; the former are cached ones,
    or those of the request it is `forked` from, which need not have content that anybody could find."""
    seat = serving.live[request, SEAT]
    row = serving.table[seat]
    share_pages(serving.pages, row, 0, hits)
    pinned = pin_hot(serving.pages, row, hits, serving.some) if serving.config[PINS] and not forked else 0
    take_pages(serving.pages, row, hits, fresh)
    unit_tokens = serving.config[UNIT_TOKENS]
    serving.held[seat, PAGES] = hits + fresh
    serving.held[seat, REGISTERED] = hits
    serving.live[request, ROOM] = (hits + fresh) * unit_tokens
    serving.live[request, NEXT_FULL] = (hits + 1) * unit_tokens if serving.config[PREFIX] else NEVER
    serving.tally[HELD_PAGES] += hits + fresh
    count_units(serving, request, hits + fresh)
    if serving.journal.state[ON]:
        if hits:
            put_units(serving.journal, SHARE, request, row, 0, hits)
        if pinned:
            put_units(serving.journal, PIN, request, serving.some, 0, pinned)
        put_units(serving.journal, ALLOC, request, row, hits, fresh)
        put_units(serving.journal, ASSIGN, request, row, 0, hits + fresh)


@inner
def extend_pages(serving: Serving, request: int, fresh: int) -> None:
    """Give a running request `fresh` more pages; they must be allocatable."""
    if fresh <= 0:
        return
    seat = serving.live[request, SEAT]
    row = serving.table[seat]
    have = serving.held[seat, PAGES]
    take_pages(serving.pages, row, have, fresh)
    serving.held[seat, PAGES] = have + fresh
    serving.live[request, ROOM] += fresh * serving.config[UNIT_TOKENS]
    serving.tally[HELD_PAGES] += fresh
    count_units(serving, request, fresh)
    if serving.journal.state[ON]:
        put_units(serving.journal, ALLOC, request, row, have, fresh)
        put_units(serving.journal, ASSIGN, request, row, have, fresh)


@inner
def release_pages(serving: Serving, request: int, reason: int) -> None:
    """Drop every reference of `request`, last page first; `reason` is its FinishReason, 0 when it is preempted."""
    seat = serving.live[request, SEAT]
    row = serving.table[seat]
    have = serving.held[seat, PAGES]
    serving.held[seat, PAGES] = 0
    serving.held[seat, REGISTERED] = 0
    serving.tally[HELD_PAGES] -= have
    count_units(serving, request, -have)
    if serving.config[SPECIAL] and reason:
        release_specially(serving, request, row, have, reason)
        return
    if have and serving.journal.state[ON]:
        if serving.config[SPECIAL]:
            put_release(serving, request, row, have)
        else:
            put_units_reversed(serving.journal, UNSHARE, request, row, have)
    give_pages(serving.pages, row, have)

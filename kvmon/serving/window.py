"""Kernels of the second page group: layers with a sliding window, which keep pages of the last tokens only.

The group draws from the request's own pool, or from a pool of its own that may run dry while the first one is empty: a
stack of free pages, the one that was given back last on top.
Page j holds tokens j * B to (j + 1) * B - 1. To compute from token c on, tokens from c - W + 1 are read, so pages that
end before that are given back before anything new is placed.

Invariant: pages `held[seat, WINDOW_FIRST] .. held[seat, WINDOW_PAGES] - 1` of a running request stand in the second row
of its seat at those places; the group's pages are never shared and never keep content.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators.journal import (
    ALLOC,
    ASSIGN_WINDOW,
    ON,
    UNSHARE,
    USE_POOL,
    put1,
    put_units,
    put_units_reversed,
)
from kvmon.allocators.page_pool import give_pages, take_pages
from kvmon.jit import inner
from kvmon.serving.paged_memory import count_units, pages_for
from kvmon.serving.state import (
    BUDGET,
    CHUNKED,
    COMPUTED,
    LOOKAHEAD,
    SEAT,
    SEATS,
    UNIT_TOKENS,
    WINDOW,
    WINDOW_FIRST,
    WINDOW_HELD,
    WINDOW_OWN,
    WINDOW_PAGES,
    WINDOW_SPARE,
    Serving,
)

__all__ = ["extend_window", "most_window_pages", "release_window", "slide_window", "window_free", "window_lacks"]


@inner
def window_free(serving: Serving) -> int:
    """Pages that the group's own pool could give now; 0 where it has none."""
    return int(serving.tally[WINDOW_SPARE])


@inner
def most_window_pages(serving: Serving, tokens: int) -> int:
    """Most pages the group holds at once while `tokens` tokens are computed in steps of the token budget, drafts and
    slots for the next ones among them."""
    config = serving.config
    unit_tokens = config[UNIT_TOKENS]
    step = min(config[BUDGET], tokens) if config[CHUNKED] else tokens
    span = config[WINDOW] - 1 + step + config[LOOKAHEAD]
    return min(pages_for(tokens, unit_tokens), pages_for(span, unit_tokens) + 1)


@inner
def window_lacks(serving: Serving, request: int, tokens: int) -> int:
    """Pages that the group of a seated request needs beyond those it holds to have `tokens` tokens in all."""
    have = serving.held[serving.live[request, SEAT], WINDOW_PAGES]
    return int(max(pages_for(tokens, serving.config[UNIT_TOKENS]) - have, 0))


@inner
def slide_window(serving: Serving, request: int) -> None:
    """Give back the pages that left the window of a running request."""
    seat = serving.live[request, SEAT]
    held = serving.held
    unit_tokens = serving.config[UNIT_TOKENS]
    first = held[seat, WINDOW_FIRST]
    begin = max(serving.live[request, COMPUTED] - serving.config[WINDOW] + 1, 0) // unit_tokens
    begin = min(begin, held[seat, WINDOW_PAGES])
    if begin <= first:
        return
    row = serving.table[serving.config[SEATS] + seat, first:begin]
    held[seat, WINDOW_FIRST] = begin
    _give(serving, request, row, begin - first)


@inner
def extend_window(serving: Serving, request: int, tokens: int) -> None:
    """Give a seated request the pages that `window_lacks` names; they must be allocatable."""
    seat = serving.live[request, SEAT]
    fresh = window_lacks(serving, request, tokens)
    if fresh == 0:
        return
    row = serving.table[serving.config[SEATS] + seat]
    have = serving.held[seat, WINDOW_PAGES]
    if serving.config[WINDOW_OWN]:
        for i in range(fresh):
            serving.tally[WINDOW_SPARE] -= 1
            row[have + i] = serving.window[serving.tally[WINDOW_SPARE]]
    else:
        take_pages(serving.pages, row, have, fresh)
    serving.held[seat, WINDOW_PAGES] = have + fresh
    serving.tally[WINDOW_HELD] += fresh
    if not serving.config[WINDOW_OWN]:
        count_units(serving, request, fresh)
    if serving.journal.state[ON]:
        _use_own_pool(serving)
        put_units(serving.journal, ALLOC, request, row, have, fresh)
        put_units(serving.journal, ASSIGN_WINDOW, request, row, have, fresh)
        _leave_own_pool(serving)


@inner
def release_window(serving: Serving, request: int) -> None:
    """Give back every page that the group holds for `request`, the last one first."""
    seat = serving.live[request, SEAT]
    first = serving.held[seat, WINDOW_FIRST]
    count = serving.held[seat, WINDOW_PAGES] - first
    serving.held[seat, WINDOW_FIRST] = 0
    serving.held[seat, WINDOW_PAGES] = 0
    if count:
        _give(serving, request, serving.table[serving.config[SEATS] + seat, first : first + count], count)


@inner
def _give(serving: Serving, request: int, row: npt.NDArray[np.int32], n: int) -> None:
    serving.tally[WINDOW_HELD] -= n
    if not serving.config[WINDOW_OWN]:
        count_units(serving, request, -n)
    if serving.journal.state[ON]:
        _use_own_pool(serving)
        put_units_reversed(serving.journal, UNSHARE, request, row, n)
        _leave_own_pool(serving)
    if serving.config[WINDOW_OWN]:
        for i in range(n):
            serving.window[serving.tally[WINDOW_SPARE]] = row[n - 1 - i]
            serving.tally[WINDOW_SPARE] += 1
    else:
        give_pages(serving.pages, row, n)


@inner
def _use_own_pool(serving: Serving) -> None:
    if serving.config[WINDOW_OWN]:
        put1(serving.journal, USE_POOL, 2)


@inner
def _leave_own_pool(serving: Serving) -> None:
    if serving.config[WINDOW_OWN]:
        put1(serving.journal, USE_POOL, 1)

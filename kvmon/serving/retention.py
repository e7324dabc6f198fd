"""Kernels of shared prefixes that stay behind in a contiguous pool.

A sequence's keys and values are one block, so a prefix cannot be shared in place. Engines keep it instead: when a
request with a named prefix ends, the front of its block stays as a region of its own, and the next request that begins
with it copies it into its block instead of computing it. That saves prefill, takes memory and leaves islands.

Invariant: regions are at most RETAINED, disjoint from blocks and free runs, one a prefix; at the cap the one that was
unused for longest is given up. A region is cached and pinned: no allocation evicts it while anybody runs.
"""

from __future__ import annotations

import numpy as np

from kvmon.allocators.journal import CACHE, EVICT, ON, PIN, UNSHARE, put_range
from kvmon.allocators.run_pool import RUNS, find_run, give_block
from kvmon.jit import inner
from kvmon.serving.state import (
    COMPUTED,
    COPIED_TOKENS,
    COVERED,
    HASH_FIRST,
    HASH_TOKENS,
    PROMPT,
    REGION_UNITS,
    REGIONS,
    RETAINED,
    SEAT,
    START,
    UNIT_TOKENS,
    USES,
    Serving,
)

__all__ = ["copy_region", "find_region", "give_up_regions", "keep_region", "units_to_keep"]

# Columns of apart.
IDENTITY = 0
FIRST = 1
COUNT = 2
TOKENS = 3
USED = 4


@inner
def _prefix_tokens(serving: Serving, request: int) -> int:
    """Whole steps of the prompt that the request's identities name."""
    step = serving.config[HASH_TOKENS]
    if step == 0:
        return 0
    return int(min(serving.facts[request, COVERED], serving.facts[request, PROMPT]) // step * step)


@inner
def _identity(serving: Serving, request: int, tokens: int) -> int:
    """The identity that names the first `tokens` tokens, as a signed number."""
    last = serving.facts[request, HASH_FIRST] + tokens // serving.config[HASH_TOKENS] - 1
    return int(np.int64(serving.hashes[last]))


@inner
def find_region(serving: Serving, request: int) -> int:
    """The longest region with which the prompt of `request` begins; -1 when there is none."""
    most = _prefix_tokens(serving, request)
    found = -1
    longest = 0
    for at in range(serving.tally[REGIONS]):
        tokens = serving.apart[at, TOKENS]
        if longest < tokens <= most and serving.apart[at, IDENTITY] == _identity(serving, request, tokens):
            found = at
            longest = tokens
    return found


@inner
def copy_region(serving: Serving, region: int) -> int:
    """Count a use of `region` and the copy of its tokens; returns how many they are."""
    tally = serving.tally
    tally[USES] += 1
    serving.apart[region, USED] = tally[USES]
    tokens = serving.apart[region, TOKENS]
    tally[COPIED_TOKENS] += tokens
    return int(tokens)


@inner
def units_to_keep(serving: Serving, request: int) -> int:
    """Units at the front of the block of `request` that stay behind as a region; 0 when none do."""
    if serving.config[RETAINED] == 0:
        return 0
    tokens = _prefix_tokens(serving, request)
    if tokens == 0 or serving.live[request, COMPUTED] < tokens:
        return 0
    there = find_region(serving, request)
    if there >= 0 and serving.apart[there, TOKENS] == tokens:
        return 0
    unit_tokens = serving.config[UNIT_TOKENS]
    return int((tokens + unit_tokens - 1) // unit_tokens)


@inner
def keep_region(serving: Serving, request: int, units: int) -> None:
    """The first `units` of the block of `request`, which still stands, become a region; at the cap one goes first."""
    tally = serving.tally
    regions = serving.apart
    if tally[REGIONS] == serving.config[RETAINED]:
        _give_up_oldest(serving)
    at = tally[REGIONS]
    start = serving.held[serving.live[request, SEAT], START]
    tokens = _prefix_tokens(serving, request)
    tally[USES] += 1
    regions[at, IDENTITY] = _identity(serving, request, tokens)
    regions[at, FIRST] = start
    regions[at, COUNT] = units
    regions[at, TOKENS] = tokens
    regions[at, USED] = tally[USES]
    tally[REGIONS] += 1
    tally[REGION_UNITS] += units
    if serving.journal.state[ON]:
        put_range(serving.journal, CACHE, request, start, units)
        put_range(serving.journal, PIN, request, start, units)
        put_range(serving.journal, UNSHARE, request, start, units)


@inner
def give_up_regions(serving: Serving, need: int) -> None:
    """Nobody runs: give up regions, the one unused for longest first, until a run of `need` units is free."""
    while serving.tally[REGIONS] > 0 and find_run(serving.runs, need) == serving.runs.tally[RUNS]:
        _give_up_oldest(serving)


@inner
def _give_up_oldest(serving: Serving) -> None:
    tally = serving.tally
    regions = serving.apart
    oldest = 0
    for at in range(1, tally[REGIONS]):
        if regions[at, USED] < regions[oldest, USED]:
            oldest = at
    start = regions[oldest, FIRST]
    units = regions[oldest, COUNT]
    give_block(serving.runs, start, units)
    tally[REGIONS] -= 1
    tally[REGION_UNITS] -= units
    for column in range(5):
        regions[oldest, column] = regions[tally[REGIONS], column]
    if serving.journal.state[ON]:
        put_range(serving.journal, EVICT, 0, start, units)

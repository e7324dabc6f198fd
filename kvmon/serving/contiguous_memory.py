"""Kernels that place, grow, move and free the contiguous block of a request.

Ask, then act: `block_units` says how large a block must be; `admit_block`, `extend_block`, `relocate_block` and
`release_block` act on a placement found before and write the journal.

Invariant: a running request holds exactly one block `held[seat, START] .. START + UNITS - 1`. A relocation takes the
new block while the old one is still held, because its tokens are copied from one to the other.
"""

from __future__ import annotations

from kvmon.allocators.journal import (
    ALLOC_RUN,
    ASSIGN_RUN,
    FREE_RUN,
    ON,
    RELOCATE,
    RESERVE,
    put2,
    put3,
    put6,
)
from kvmon.allocators.run_pool import give_run, take_run
from kvmon.jit import kernel
from kvmon.serving.state import (
    CAPACITY_UNITS,
    CHUNK_TOKENS,
    COMPUTED,
    COPIED_TOKENS,
    HELD_PAGES,
    LIMIT,
    MAX_LEN,
    NEVER,
    NEXT_FULL,
    PROMPT,
    RELOCATIONS,
    ROOM,
    SEAT,
    START,
    UNIT_TOKENS,
    UNITS,
    Serving,
)

__all__ = ["admit_block", "block_units", "extend_block", "release_block", "relocate_block"]


@kernel
def block_units(serving: Serving, request: int, tokens: int) -> int:
    """Units of the block that the policy sets aside for `request` when it must hold `tokens` now.

    Reserving for the longest: model length, or prompt + limit. In chunks: `tokens` rounded up to a multiple of the
    chunk, but not beyond the pool when `tokens` themselves fit.
    """
    config = serving.config
    unit_tokens = config[UNIT_TOKENS]
    chunk = config[CHUNK_TOKENS]
    if chunk == 0:
        longest = config[MAX_LEN]
        if longest == 0:
            longest = serving.facts[request, PROMPT] + serving.facts[request, LIMIT]
        return int((max(longest, tokens) + unit_tokens - 1) // unit_tokens)
    least = (tokens + unit_tokens - 1) // unit_tokens
    rounded = ((tokens + chunk - 1) // chunk * chunk + unit_tokens - 1) // unit_tokens
    capacity = config[CAPACITY_UNITS]
    if rounded > capacity and least <= capacity:
        return int(capacity)
    return int(rounded)


@kernel
def admit_block(serving: Serving, request: int, at: int, units: int) -> None:
    """Give a seated request the first `units` of free run `at`."""
    seat = serving.live[request, SEAT]
    start = take_run(serving.runs, at, units)
    serving.held[seat, START] = start
    serving.held[seat, UNITS] = units
    serving.live[request, NEXT_FULL] = NEVER
    serving.tally[HELD_PAGES] += units
    if serving.journal.state[ON]:
        put3(serving.journal, ALLOC_RUN, request, start, units)
        put3(serving.journal, ASSIGN_RUN, request, start, units)
    _reserve(serving, request, units)


@kernel
def extend_block(serving: Serving, request: int, at: int, units: int) -> None:
    """Grow a block in place by the first `units` of free run `at`, which begins where the block ends."""
    seat = serving.live[request, SEAT]
    start = take_run(serving.runs, at, units)
    serving.held[seat, UNITS] += units
    serving.tally[HELD_PAGES] += units
    if serving.journal.state[ON]:
        put3(serving.journal, ALLOC_RUN, request, start, units)
        put3(serving.journal, ASSIGN_RUN, request, start, units)
    _reserve(serving, request, serving.held[seat, UNITS])


@kernel
def relocate_block(serving: Serving, request: int, at: int, units: int) -> None:
    """Move a block into the first `units` of free run `at`, then free the old one."""
    seat = serving.live[request, SEAT]
    old_start = serving.held[seat, START]
    old_units = serving.held[seat, UNITS]
    copied = serving.live[request, COMPUTED]
    start = take_run(serving.runs, at, units)
    give_run(serving.runs, old_start, old_units)
    serving.held[seat, START] = start
    serving.held[seat, UNITS] = units
    serving.tally[HELD_PAGES] += units - old_units
    serving.tally[RELOCATIONS] += 1
    serving.tally[COPIED_TOKENS] += copied
    if serving.journal.state[ON]:
        put3(serving.journal, ALLOC_RUN, request, start, units)
        put6(serving.journal, RELOCATE, request, old_start, old_units, start, units, copied)
        put3(serving.journal, FREE_RUN, request, old_start, old_units)
        put3(serving.journal, ASSIGN_RUN, request, start, units)
    _reserve(serving, request, units)


@kernel
def release_block(serving: Serving, request: int) -> None:
    """Give back the block of `request`."""
    seat = serving.live[request, SEAT]
    start = serving.held[seat, START]
    units = serving.held[seat, UNITS]
    if units == 0:
        return
    give_run(serving.runs, start, units)
    serving.held[seat, START] = 0
    serving.held[seat, UNITS] = 0
    serving.tally[HELD_PAGES] -= units
    if serving.journal.state[ON]:
        put3(serving.journal, FREE_RUN, request, start, units)


@kernel
def _reserve(serving: Serving, request: int, units: int) -> None:
    tokens = units * serving.config[UNIT_TOKENS]
    serving.live[request, ROOM] = tokens
    if serving.journal.state[ON]:
        put2(serving.journal, RESERVE, request, tokens)

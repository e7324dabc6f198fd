"""Kernels that place, grow, move and free the contiguous block of a request.

Ask, then act: `block_tokens` and `block_units` say how large a block must be; `admit_block`, `extend_block`,
`relocate_block` and `release_block` act on a placement found before and write the journal.

Invariant: a running request holds exactly one block `held[seat, START] .. START + UNITS - 1`. A relocation takes the
new block while the old one is still held, because its tokens are copied from one to the other.
"""

from __future__ import annotations

from kvmon.allocators.config import RESERVATIONS
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
from kvmon.allocators.run_pool import give_block, granted_units, take_block
from kvmon.jit import inner
from kvmon.serving.paged_memory import count_units
from kvmon.serving.state import (
    ASKED,
    CAPACITY_UNITS,
    CHUNK_TOKENS,
    COMPUTED,
    COPIED_TOKENS,
    HELD_PAGES,
    INTENDED,
    LIMIT,
    LOOKAHEAD,
    MAX_LEN,
    NEVER,
    NEXT_FULL,
    PROMPT,
    RELOCATIONS,
    RESERVATION,
    ROOM,
    SEAT,
    START,
    UNIT_TOKENS,
    UNITS,
    Serving,
)

__all__ = [
    "admit_block",
    "block_tokens",
    "block_units",
    "extend_block",
    "longest_tokens",
    "put_block",
    "release_block",
    "relocate_block",
    "with_lookahead",
]

_CHUNK = RESERVATIONS.index("chunk")
_POW2 = RESERVATIONS.index("pow2")
_ORACLE = RESERVATIONS.index("oracle")


@inner
def longest_tokens(serving: Serving, request: int) -> int:
    """Tokens that `request` may become as far as the engine knows: the model's length, or prompt + limit."""
    longest = serving.config[MAX_LEN]
    if longest == 0:
        longest = serving.facts[request, PROMPT] + serving.facts[request, LIMIT]
    return int(longest)


@inner
def block_tokens(serving: Serving, request: int, tokens: int) -> int:
    """Tokens that the reservation policy sets aside for `request` when it must hold `tokens` now.

    In chunks: `tokens` rounded up to a multiple of the chunk, but not beyond the pool when `tokens` themselves fit. For
    the longest: see `longest_tokens`. Power of two: the prompt and the next power of two of the output to come. Oracle:
    the prompt and that output. Never more than the longest; an output that nobody intends is taken for the limit.
    """
    config = serving.config
    policy = config[RESERVATION]
    if policy == _CHUNK:
        chunk = config[CHUNK_TOKENS]
        rounded = (tokens + chunk - 1) // chunk * chunk
        capacity = config[CAPACITY_UNITS] * config[UNIT_TOKENS]
        return int(capacity if rounded > capacity >= tokens else rounded)
    wanted = longest_tokens(serving, request)
    if policy in (_POW2, _ORACLE):
        output = serving.facts[request, INTENDED]
        if output == 0:
            output = serving.facts[request, LIMIT]
        output += 2 * config[LOOKAHEAD]
        if policy == _POW2:
            power = 1
            while power < output:
                power *= 2
            output = power
        wanted = min(wanted, serving.facts[request, PROMPT] + output)
    return int(max(wanted, tokens))


@inner
def with_lookahead(serving: Serving, request: int, tokens: int) -> int:
    """`tokens` and the slots behind them that are set aside for the next drafts, as far as the request may go."""
    lookahead = serving.config[LOOKAHEAD]
    if lookahead == 0:
        return tokens
    return int(max(min(tokens + lookahead, longest_tokens(serving, request)), tokens))


@inner
def block_units(serving: Serving, request: int, tokens: int) -> int:
    """Units of the block that `request` gets when it must hold `tokens` now: the reservation, as the placement rounds
    it."""
    unit_tokens = serving.config[UNIT_TOKENS]
    asked = block_tokens(serving, request, tokens)
    return granted_units(serving.runs, (asked + unit_tokens - 1) // unit_tokens)


@inner
def put_block(serving: Serving, request: int, start: int, units: int) -> None:
    """Write that `request` got a block."""
    if serving.journal.state[ON]:
        put3(serving.journal, ALLOC_RUN, request, start, units)
        put3(serving.journal, ASSIGN_RUN, request, start, units)


@inner
def admit_block(serving: Serving, request: int, at: int, units: int, asked: int) -> None:
    """Give a seated request a block of `units` from free run `at`, of which the policy asked for `asked` tokens."""
    seat = serving.live[request, SEAT]
    start = take_block(serving.runs, at, units)
    serving.held[seat, START] = start
    serving.held[seat, UNITS] = units
    serving.live[request, NEXT_FULL] = NEVER
    serving.tally[HELD_PAGES] += units
    count_units(serving, request, units)
    put_block(serving, request, start, units)
    _reserve(serving, request, units, asked)


@inner
def extend_block(serving: Serving, request: int, at: int, units: int, asked: int) -> None:
    """Grow a block in place by the first `units` of free run `at`, which begins where the block ends."""
    seat = serving.live[request, SEAT]
    start = take_block(serving.runs, at, units)
    serving.held[seat, UNITS] += units
    serving.tally[HELD_PAGES] += units
    count_units(serving, request, units)
    put_block(serving, request, start, units)
    _reserve(serving, request, serving.held[seat, UNITS], asked)


@inner
def relocate_block(serving: Serving, request: int, at: int, units: int, asked: int) -> None:
    """Move a block into `units` of free run `at`, then free the old one."""
    seat = serving.live[request, SEAT]
    old_start = serving.held[seat, START]
    old_units = serving.held[seat, UNITS]
    copied = serving.live[request, COMPUTED]
    start = take_block(serving.runs, at, units)
    give_block(serving.runs, old_start, old_units)
    serving.held[seat, START] = start
    serving.held[seat, UNITS] = units
    serving.tally[HELD_PAGES] += units - old_units
    serving.tally[RELOCATIONS] += 1
    serving.tally[COPIED_TOKENS] += copied
    count_units(serving, request, units - old_units)
    if serving.journal.state[ON]:
        put3(serving.journal, ALLOC_RUN, request, start, units)
        put6(serving.journal, RELOCATE, request, old_start, old_units, start, units, copied)
        put3(serving.journal, FREE_RUN, request, old_start, old_units)
        put3(serving.journal, ASSIGN_RUN, request, start, units)
    _reserve(serving, request, units, asked)


@inner
def release_block(serving: Serving, request: int, keep: int) -> None:
    """Give back the block of `request` behind its first `keep` units, which somebody else holds from now on."""
    seat = serving.live[request, SEAT]
    start = serving.held[seat, START]
    units = serving.held[seat, UNITS]
    if units == 0:
        return
    if units > keep:
        give_block(serving.runs, start + keep, units - keep)
    serving.held[seat, START] = 0
    serving.held[seat, UNITS] = 0
    serving.tally[HELD_PAGES] -= units
    count_units(serving, request, -units)
    if units > keep and serving.journal.state[ON]:
        put3(serving.journal, FREE_RUN, request, start + keep, units - keep)


@inner
def _reserve(serving: Serving, request: int, units: int, asked: int) -> None:
    tokens = units * serving.config[UNIT_TOKENS]
    serving.live[request, ROOM] = tokens
    serving.held[serving.live[request, SEAT], ASKED] = min(asked, tokens)
    if serving.journal.state[ON]:
        put2(serving.journal, RESERVE, request, tokens)

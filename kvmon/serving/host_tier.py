"""Kernels of the host tier: where preempted requests keep their keys and values, first fit, each in one piece.

Pool 2 of a contiguous-looking stream of copies: its own fragmentation is real, and when it has no run that is long
enough the request is computed again.

Invariant: HOST_START and HOST_COUNT of a request are a block of the host tier exactly while the request waits with
tokens kept there; a running request has none.
"""

from __future__ import annotations

from kvmon.allocators import run_pool
from kvmon.allocators.journal import (
    ALLOC_RUN,
    ASSIGN_RUN,
    COMMIT,
    FAIL,
    FREE_RUN,
    OFFLOAD,
    ON,
    ONBOARD,
    USE_POOL,
    put1,
    put2,
    put3,
    put8,
    put_range,
    put_units,
)
from kvmon.allocators.refusal import Contiguity, Outcome, Reason
from kvmon.allocators.run_pool import first_fit, give_run, largest_run, take_run
from kvmon.jit import inner
from kvmon.serving.state import (
    COMPUTED,
    HOST_COUNT,
    HOST_START,
    HOST_TOKENS,
    PAGED,
    SEAT,
    START,
    SWAPPED_IN_TOKENS,
    SWAPPED_OUT_TOKENS,
    SWAPS_REFUSED,
    UNIT_TOKENS,
    Serving,
)

__all__ = ["find_host_run", "put_host_block", "refuse_swap", "swap_in", "swap_out", "swapped_tokens"]

_REQUIRED = int(Contiguity.REQUIRED)
_EXHAUSTED = int(Reason.EXHAUSTED)
_NO_RUN = int(Reason.NO_CONTIGUOUS_RUN)
_OUTCOME_REFUSED = int(Outcome.REFUSED)
_RUNS, _FREE, _CAPACITY = run_pool.RUNS, run_pool.FREE, run_pool.CAPACITY


@inner
def _units(serving: Serving, request: int) -> int:
    unit_tokens = serving.config[UNIT_TOKENS]
    return int((serving.live[request, COMPUTED] + unit_tokens - 1) // unit_tokens)


@inner
def swapped_tokens(serving: Serving, request: int) -> int:
    """Tokens of a waiting request that the host tier keeps; 0 without one."""
    return int(serving.facts[request, HOST_TOKENS])


@inner
def find_host_run(serving: Serving, request: int) -> int:
    """The host run that holds the written tokens of a running request; the number of runs when there is none."""
    return first_fit(serving.host, _units(serving, request))


@inner
def refuse_swap(serving: Serving, request: int) -> None:
    """Count and write that the host tier has no room for `request`."""
    serving.tally[SWAPS_REFUSED] += 1
    if not serving.journal.state[ON]:
        return
    need = _units(serving, request)
    free = serving.host.tally[_FREE]
    reason = _EXHAUSTED if free < need else _NO_RUN
    put1(serving.journal, USE_POOL, 2)
    put8(serving.journal, FAIL, request, need, _REQUIRED, free, 0, largest_run(serving.host), reason, _OUTCOME_REFUSED)
    put1(serving.journal, USE_POOL, 1)


@inner
def swap_out(serving: Serving, request: int, at: int) -> None:
    """Copy the written tokens of a running request into host run `at`; its memory is freed afterwards by the caller."""
    units = _units(serving, request)
    facts = serving.facts
    facts[request, HOST_START] = take_run(serving.host, at, units)
    facts[request, HOST_COUNT] = units
    facts[request, HOST_TOKENS] = serving.live[request, COMPUTED]
    serving.tally[SWAPPED_OUT_TOKENS] += facts[request, HOST_TOKENS]
    if serving.journal.state[ON]:
        _put_copy(serving, OFFLOAD, request, units)


@inner
def put_host_block(serving: Serving, request: int) -> None:
    """Write the block and the tokens that the host tier keeps for a request that was just preempted."""
    if serving.journal.state[ON]:
        put2(serving.journal, COMMIT, request, serving.facts[request, HOST_TOKENS])
        put1(serving.journal, USE_POOL, 2)
        put3(
            serving.journal, ALLOC_RUN, request, serving.facts[request, HOST_START], serving.facts[request, HOST_COUNT]
        )
        put3(
            serving.journal, ASSIGN_RUN, request, serving.facts[request, HOST_START], serving.facts[request, HOST_COUNT]
        )
        put1(serving.journal, USE_POOL, 1)


@inner
def swap_in(serving: Serving, request: int, running: bool) -> None:
    """Give up the host block of a request, copied back when it is `running` again, dropped when it has ended."""
    facts = serving.facts
    units = facts[request, HOST_COUNT]
    if running:
        serving.tally[SWAPPED_IN_TOKENS] += facts[request, HOST_TOKENS]
        if serving.journal.state[ON]:
            _put_copy(serving, ONBOARD, request, units)
    give_run(serving.host, facts[request, HOST_START], units)
    if serving.journal.state[ON]:
        put1(serving.journal, USE_POOL, 2)
        put3(serving.journal, FREE_RUN, request, facts[request, HOST_START], units)
        put1(serving.journal, USE_POOL, 1)
    facts[request, HOST_TOKENS] = 0
    facts[request, HOST_COUNT] = 0


@inner
def _put_copy(serving: Serving, code: int, request: int, units: int) -> None:
    seat = serving.live[request, SEAT]
    if serving.config[PAGED]:
        put_units(serving.journal, code, request, serving.table[seat], 0, units)
    else:
        put_range(serving.journal, code, request, serving.held[seat, START], units)

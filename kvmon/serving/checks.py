"""Invariant walk of the scheduler and the pool below it.

Invariant: changes nothing; raises InvariantError naming the first contradiction. Trusts no counter: units are counted
again from the block tables and blocks of the running requests.
"""

from __future__ import annotations

from collections import Counter

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.checks import check_page_pool, check_run_pool
from kvmon.errors import InvariantError
from kvmon.serving import state as at

__all__ = ["check_serving"]


def check_serving(state: at.Serving) -> None:
    """Requests, seats, queue, memory and counters agree; call it between two steps or after a schedule."""
    tally = state.tally
    running = state.running[: tally[at.RUNNING]].tolist()
    ring = state.waiting
    waiting = [int(ring[(int(tally[at.QUEUE_HEAD]) + i) % ring.size]) for i in range(int(tally[at.QUEUED]))]
    if len(set(running + waiting)) != len(running) + len(waiting):
        raise InvariantError("a request stands twice in running and waiting")
    for request in running:
        phase = state.live[request, at.PHASE]
        if phase not in (at.PREFILL, at.DECODE):
            raise InvariantError(f"request {request} runs in phase {phase}")
        if not 0 <= state.live[request, at.COMPUTED] <= state.live[request, at.ROOM]:
            raise InvariantError(f"request {request} has more computed tokens than room")
        if not state.live[request, at.COMPUTED] < state.live[request, at.TOTAL] <= state.live[request, at.STOP]:
            raise InvariantError(f"request {request}: computed < total <= stop does not hold")
    for request in waiting:
        if state.live[request, at.PHASE] not in (at.WAITING, at.WAITING_AGAIN) or state.live[request, at.ROOM]:
            raise InvariantError(f"request {request} waits while holding memory or in a wrong phase")
    seats = [int(state.live[request, at.SEAT]) for request in running]
    spare = state.spare[: tally[at.SPARE]].tolist()
    if sorted(seats + spare) != list(range(int(state.config[at.SEATS]))):
        raise InvariantError("seats are taken twice or lost")
    written = sum(int(state.live[request, at.COMPUTED]) for request in running)
    if written != tally[at.WRITTEN_TOKENS]:
        raise InvariantError(f"running requests have {written} computed tokens, {tally[at.WRITTEN_TOKENS]} are counted")
    if state.config[at.PAGED]:
        _check_tables(state, running)
    else:
        _check_blocks(state, running)


def _check_tables(state: at.Serving, running: list[int]) -> None:
    check_page_pool(state.pages)
    references: Counter[int] = Counter()
    held = 0
    for request in running:
        seat = int(state.live[request, at.SEAT])
        pages = int(state.held[seat, at.PAGES])
        held += pages
        row = state.table[seat, :pages].tolist()
        if len(set(row)) != pages:
            raise InvariantError(f"request {request} holds a page twice")
        if state.live[request, at.ROOM] != pages * state.config[at.UNIT_TOKENS]:
            raise InvariantError(f"request {request}: room does not match its {pages} pages")
        references.update(row)
    counted = state.pages.node[:, page_pool.REF].tolist()
    for page in range(1, int(state.config[at.CAPACITY_UNITS]) + 1):
        if counted[page] != references[page]:
            raise InvariantError(f"page {page} has {counted[page]} references, tables hold {references[page]}")
    if held != state.tally[at.HELD_PAGES]:
        raise InvariantError(f"tables hold {held} pages, {state.tally[at.HELD_PAGES]} are counted")


def _check_blocks(state: at.Serving, running: list[int]) -> None:
    check_run_pool(state.runs)
    pieces = []
    for request in running:
        seat = int(state.live[request, at.SEAT])
        pieces.append((int(state.held[seat, at.START]), int(state.held[seat, at.UNITS])))
    taken = sum(units for _, units in pieces)
    count = int(state.runs.tally[run_pool.RUNS])
    pieces += list(zip(state.runs.starts[:count].tolist(), state.runs.lengths[:count].tolist(), strict=True))
    end = 1
    for start, units in sorted(pieces):
        if start != end or units < 1:
            raise InvariantError(f"units {end}..{start - 1} belong to nobody or to two")
        end = start + units
    if end != state.config[at.CAPACITY_UNITS] + 1:
        raise InvariantError(f"blocks and free runs end at unit {end - 1} of {state.config[at.CAPACITY_UNITS]}")
    if taken != state.tally[at.HELD_PAGES]:
        raise InvariantError(f"blocks hold {taken} units, {state.tally[at.HELD_PAGES]} are counted")

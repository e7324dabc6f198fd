"""Invariant walk of the scheduler and the pools below it.

Invariant: changes nothing; raises InvariantError naming the first contradiction. Trusts no counter: units are counted
again from the block tables, blocks and regions, and every counter is compared with what was found.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.checks import check_page_pool, check_run_pool
from kvmon.errors import InvariantError
from kvmon.serving import retention
from kvmon.serving import state as at
from kvmon.serving.lifecycle import full_units

__all__ = ["check_serving"]


def check_serving(state: at.Serving) -> None:
    """Requests, seats, queue, plan, memory and counters agree; call it between two steps or after a schedule."""
    running = state.running[: state.tally[at.RUNNING]].tolist()
    waiting = _queue(state)
    if len(set(running + waiting)) != len(running) + len(waiting):
        raise InvariantError("a request stands twice in running and waiting")
    planned = _check_plan(state, running)
    _check_running(state, running, planned)
    _check_waiting(state, waiting)
    _check_seats(state, running)
    if state.config[at.PAGED]:
        _check_tables(state, running)
        _check_parked(state)
    else:
        _check_blocks(state, running)
    _check_promises(state, running)
    _check_quotas(state, running)
    _check_host(state, waiting)


def _queue(state: at.Serving) -> list[int]:
    ring = state.waiting
    head, queued = int(state.tally[at.QUEUE_HEAD]), int(state.tally[at.QUEUED])
    return [int(ring[(head + place) % ring.size]) for place in range(queued)]


def _check_plan(state: at.Serving, running: list[int]) -> dict[int, int]:
    """The plan is a subsequence of `running` within the budget; returns the planned tokens by request."""
    plan = state.plan[: state.tally[at.PLANNED]].tolist()
    rest = iter(running)
    planned = {}
    for row in plan:
        if row[at.WHO] not in rest:
            raise InvariantError(f"request {row[at.WHO]} is planned and does not run, or not in this order")
        if row[at.TOKENS] < 1:
            raise InvariantError(f"request {row[at.WHO]} is planned with {row[at.TOKENS]} tokens")
        planned[row[at.WHO]] = row[at.TOKENS]
    if sum(planned.values()) > state.config[at.BUDGET] and state.config[at.CHUNKED]:
        raise InvariantError(f"{sum(planned.values())} tokens are planned, the budget is {state.config[at.BUDGET]}")
    return planned


def _check_running(state: at.Serving, running: list[int], planned: dict[int, int]) -> None:
    unit_tokens = int(state.config[at.UNIT_TOKENS])
    written = 0
    for request in running:
        live = state.live[request].tolist()
        written += live[at.COMPUTED]
        if live[at.PHASE] not in (at.PREFILL, at.DECODE):
            raise InvariantError(f"request {request} runs in phase {live[at.PHASE]}")
        reached = live[at.COMPUTED] + planned.get(request, 0)
        if not 0 <= live[at.COMPUTED] <= reached <= live[at.ROOM]:
            raise InvariantError(f"request {request} has more computed tokens than room")
        if not live[at.COMPUTED] < live[at.TOTAL] <= live[at.STOP]:
            raise InvariantError(f"request {request}: computed < total <= stop does not hold")
        registered = int(state.held[live[at.SEAT], at.REGISTERED])
        if registered * unit_tokens > min(reached, live[at.TOTAL]):
            raise InvariantError(f"request {request} has content of tokens that nobody computed")
        if state.config[at.PREFIX] and live[at.NEXT_FULL] != (registered + 1) * unit_tokens:
            raise InvariantError(f"request {request}: the next full page is not behind the registered ones")
    if written != state.tally[at.WRITTEN_TOKENS]:
        raise InvariantError(
            f"running requests have {written} computed tokens, {state.tally[at.WRITTEN_TOKENS]} are counted"
        )


def _check_waiting(state: at.Serving, waiting: list[int]) -> None:
    for request in waiting:
        if state.live[request, at.PHASE] not in (at.WAITING, at.WAITING_AGAIN) or state.live[request, at.ROOM]:
            raise InvariantError(f"request {request} waits while holding memory or in a wrong phase")
    levels = state.facts[waiting, at.PRIORITY].tolist()
    if state.config[at.LEVELS] and levels != sorted(levels):
        raise InvariantError(f"levels in the queue are out of order: {levels}")


def _check_seats(state: at.Serving, running: list[int]) -> None:
    seats = [int(state.live[request, at.SEAT]) for request in running]
    spare = state.spare[: state.tally[at.SPARE]].tolist()
    if sorted(seats + spare) != list(range(int(state.config[at.SEATS]))):
        raise InvariantError("seats are taken twice or lost")


def _check_tables(state: at.Serving, running: list[int]) -> None:
    check_page_pool(state.pages)
    config = state.config
    content = state.pages.content
    references: Counter[int] = Counter()
    window: list[int] = []
    held = 0
    for request in running:
        seat = int(state.live[request, at.SEAT])
        pages = int(state.held[seat, at.PAGES])
        held += pages
        row = state.table[seat, :pages].tolist()
        if len(set(row)) != pages:
            raise InvariantError(f"request {request} holds a page twice")
        if state.live[request, at.ROOM] != pages * config[at.UNIT_TOKENS]:
            raise InvariantError(f"request {request}: room does not match its {pages} pages")
        unfilled = row[state.held[seat, at.REGISTERED] :]
        if content[unfilled].any():
            raise InvariantError(f"request {request} has content in pages that it has not filled")
        references.update(row)
        if config[at.WINDOW]:
            window += _window_row(state, request, seat)
    if len(window) != state.tally[at.WINDOW_HELD]:
        raise InvariantError(f"window tables hold {len(window)} pages, {state.tally[at.WINDOW_HELD]} are counted")
    if config[at.WINDOW_OWN]:
        spare = state.window[: state.tally[at.WINDOW_SPARE]].tolist()
        if sorted(window + spare) != list(range(1, int(config[at.WINDOW_OWN]) + 1)):
            raise InvariantError("pages of the window group's pool are taken twice or lost")
    else:
        references.update(window)
    if not state.pages.tally[page_pool.PLAIN]:
        references.update(np.flatnonzero(state.pages.more[:, page_pool.MARK] & page_pool.LEAKED).tolist())
    counted = state.pages.node[:, page_pool.REF].tolist()
    for page in range(1, int(config[at.CAPACITY_UNITS]) + 1):
        if counted[page] != references[page]:
            raise InvariantError(
                f"page {page} has {counted[page]} references, tables and leaks hold {references[page]}"
            )
    if held != state.tally[at.HELD_PAGES]:
        raise InvariantError(f"tables hold {held} pages, {state.tally[at.HELD_PAGES]} are counted")


def _window_row(state: at.Serving, request: int, seat: int) -> list[int]:
    """The pages of the window group of a running request, which are those of its last tokens."""
    unit_tokens = int(state.config[at.UNIT_TOKENS])
    first, end = state.held[seat, [at.WINDOW_FIRST, at.WINDOW_PAGES]].tolist()
    computed = int(state.live[request, at.COMPUTED])
    oldest = max(computed - int(state.config[at.WINDOW]) + 1, 0)
    if not 0 <= first <= end or first * unit_tokens > oldest or end * unit_tokens < computed:
        raise InvariantError(
            f"request {request} at token {computed} lacks pages of its window: it holds {first} to {end - 1}"
        )
    row: list[int] = state.table[int(state.config[at.SEATS]) + seat, first:end].tolist()
    return row


def _check_parked(state: at.Serving) -> None:
    """Each transfer under way holds its pages; only a stranded one holds pages without being on the list."""
    pool = state.pages
    if pool.tally[page_pool.PLAIN]:
        if state.tally[at.PARKED]:
            raise InvariantError("transfers are under way in a pool that knows none")
        return
    chained: list[int] = []
    for first, count, _, request, _ in state.apart[: state.tally[at.PARKED]].tolist():
        page = first
        for _ in range(count):
            if not pool.more[page, page_pool.MARK] & page_pool.HELD:
                raise InvariantError(f"the transfer of request {request} reads page {page}, which is not held")
            chained.append(page)
            page = int(pool.node[page, page_pool.NEXT])
        if count < 1:
            raise InvariantError(f"the transfer of request {request} reads nothing")
    marked = np.flatnonzero(pool.more[:, page_pool.MARK] & page_pool.HELD).tolist()
    if len(set(chained)) != len(chained) or not set(chained) <= set(marked):
        raise InvariantError("two transfers hold the same page")
    if len(chained) < len(marked) and not state.tally[at.STRANDED]:
        raise InvariantError(f"{len(marked) - len(chained)} pages are held by no transfer, and none is stranded")
    if state.tally[at.LEAKED_UNITS] != pool.tally[page_pool.LEAKED_PAGES]:
        raise InvariantError("the leaked units of scheduler and pool differ")


def _check_blocks(state: at.Serving, running: list[int]) -> None:
    """Blocks, regions that stay behind and free runs tile the pool."""
    check_run_pool(state.runs)
    pieces = []
    for request in running:
        seat = int(state.live[request, at.SEAT])
        start, units = int(state.held[seat, at.START]), int(state.held[seat, at.UNITS])
        if state.live[request, at.ROOM] != units * state.config[at.UNIT_TOKENS]:
            raise InvariantError(f"request {request}: room does not match its {units} units")
        if not state.live[request, at.COMPUTED] <= state.live[request, at.ROOM] >= state.held[seat, at.ASKED]:
            raise InvariantError(f"request {request} asked for more than its block has")
        if state.config[at.PLACEMENT] == run_pool.BUDDY and (units & (units - 1) or (start - 1) % units):
            raise InvariantError(f"block {start}+{units} of request {request} is no buddy")
        pieces.append((start, units))
    if sum(units for _, units in pieces) != state.tally[at.HELD_PAGES]:
        raise InvariantError(
            f"blocks hold {sum(units for _, units in pieces)} units, {state.tally[at.HELD_PAGES]} are counted"
        )
    regions = state.apart[: state.tally[at.REGIONS]].tolist()
    if len(regions) > state.config[at.RETAINED]:
        raise InvariantError(f"{len(regions)} regions stay behind, {state.config[at.RETAINED]} may")
    if len({region[retention.IDENTITY] for region in regions}) < len(regions):
        raise InvariantError("two regions hold the same prefix")
    for region in regions:
        if not 0 < region[retention.TOKENS] <= region[retention.COUNT] * state.config[at.UNIT_TOKENS]:
            raise InvariantError(f"the region at unit {region[retention.FIRST]} holds more tokens than it has room for")
    pieces += [(region[retention.FIRST], region[retention.COUNT]) for region in regions]
    if sum(region[retention.COUNT] for region in regions) != state.tally[at.REGION_UNITS]:
        raise InvariantError(f"{state.tally[at.REGION_UNITS]} units of regions are counted, others are there")
    _check_tiling(state.runs, pieces, "blocks, regions")


def _check_tiling(pool: run_pool.RunPool, pieces: list[tuple[int, int]], what: str) -> None:
    count = int(pool.tally[run_pool.RUNS])
    free = zip(pool.starts[:count].tolist(), pool.lengths[:count].tolist(), strict=True)
    end = 1
    for start, units in sorted([*pieces, *free]):
        if start != end or units < 1:
            raise InvariantError(f"{what} and free runs: units {end}..{start - 1} belong to nobody or to two")
        end = start + units
    if end != pool.tally[run_pool.CAPACITY] + 1:
        raise InvariantError(f"{what} and free runs end at unit {end - 1} of {pool.tally[run_pool.CAPACITY]}")


def _check_promises(state: at.Serving, running: list[int]) -> None:
    """What running requests may become is counted where admission promises it, and fits beside what is kept."""
    promised = 0
    if state.config[at.ADMIT_BY] == at.BY_FULL:
        promised = sum(int(full_units(state, request)) for request in running)
    if promised != state.tally[at.COMMITTED_UNITS]:
        raise InvariantError(f"{promised} units are promised, {state.tally[at.COMMITTED_UNITS]} are counted")
    if promised and state.config[at.PAGED]:
        kept = int(state.pages.tally[[page_pool.PIN_CAP, page_pool.DEFERRED, page_pool.LEAKED_PAGES]].sum())
        if promised + kept > state.config[at.CAPACITY_UNITS]:
            raise InvariantError(f"{promised} units are promised beside {kept} that pins, transfers and leaks keep")


def _check_quotas(state: at.Serving, running: list[int]) -> None:
    config = state.config
    if not config[at.QUOTAS]:
        return
    held: Counter[int] = Counter()
    for request in running:
        place = min(int(state.facts[request, at.CLASS]), 63)
        row = state.held[state.live[request, at.SEAT]].tolist()
        if config[at.ADMIT_BY] == at.BY_FULL:
            held[place] += int(full_units(state, request))
        elif config[at.PAGED]:
            held[place] += row[at.PAGES]
            if config[at.WINDOW] and not config[at.WINDOW_OWN]:
                held[place] += row[at.WINDOW_PAGES] - row[at.WINDOW_FIRST]
        else:
            held[place] += row[at.UNITS]
    for place in range(64):
        counted, most = int(state.tally[at.QUOTA_HELD + place]), int(state.tally[at.QUOTA_MOST + place])
        if counted != held[place]:
            raise InvariantError(f"class {place} holds {held[place]} units, {counted} are counted")
        if 0 <= most < counted:
            raise InvariantError(f"class {place} holds {counted} units, its quota is {most}")


def _check_host(state: at.Serving, waiting: list[int]) -> None:
    """Blocks of waiting requests and free runs tile the host tier; nobody else has one."""
    kept = np.flatnonzero((state.facts[:, at.HOST_TOKENS] != 0) | (state.facts[:, at.HOST_COUNT] != 0)).tolist()
    if not set(kept) <= set(waiting):
        raise InvariantError("a request that does not wait has a block in the host tier")
    if not state.config[at.HOST_UNITS]:
        if kept:
            raise InvariantError(f"request {kept[0]} has a block in a host tier that is not there")
        return
    check_run_pool(state.host)
    unit_tokens = int(state.config[at.UNIT_TOKENS])
    pieces = []
    for request in kept:
        start, units, tokens = state.facts[request, [at.HOST_START, at.HOST_COUNT, at.HOST_TOKENS]].tolist()
        if not 0 < tokens < state.live[request, at.TOTAL] or units != -(-tokens // unit_tokens):
            raise InvariantError(f"the host tier keeps {tokens} tokens of request {request} in {units} units")
        pieces.append((start, units))
    _check_tiling(state.host, pieces, "host blocks")

"""Whether a folded state is what the naive model remembers: every unit, every request, every table, the queue."""

from __future__ import annotations

import numpy as np

from kvmon.events import RequestState
from kvmon.state import StreamState
from kvmon.state.requests import computed_tokens
from tests.naive.timeline import NaiveTimeline


def assert_same_state(state: StreamState, naive: NaiveTimeline, *, whole: bool = True) -> None:
    """Compare everything that a moment shows; tokens only where the frame is `whole`: what is said of them holds at its
    end."""
    for number, pool in naive.pools.items():
        folded = state.pools[number]
        assert folded.units == pool.state_sums()
        status = folded.status
        assert (status & 0xFFFFFF).tolist() == [pool.references[unit] for unit in range(1, pool.capacity + 1)]
        names = ("free", "active", "cached", "pinned", "deferred")
        mine = {name: _units_in(status, name) for name in names}
        assert mine == {name: [u for u in range(1, pool.capacity + 1) if pool.state(u) == name] for name in names}
        if whole:
            slots = folded.slots()
            said = {"written": slots.written, "tail": slots.tail, "reserved": slots.reserved}
            assert said == naive.slots(number), (number, said, naive.slots(number))
        if naive.facts[number].contiguous:
            assert folded.free_runs().tolist() == pool.free_runs()
            assert folded.largest_free == naive._largest(number, ["free"])
            assert folded.largest_after_eviction == naive._largest(number, ["free", "cached"])
        if number in naive.named:
            assert folded.unowned == len(naive.unowned(number))
    requests = state.requests
    rows = {int(requests.id[row]): row for row in np.flatnonzero(requests.id).tolist()}
    assert set(rows) == naive.live
    for request, row in rows.items():
        waits = RequestState.PREEMPTED if request in naive.was_preempted else RequestState.WAITING
        assert requests.state[row] == (RequestState.RUNNING if request in naive.running else waits)
        assert not whole or computed_tokens(requests, row, state.steps) == naive.computed[request]
        assert (requests.starved[row] > 0) == (request in naive.starving)
        for number in naive.pools:
            tables = [table.units.tolist() for table in state.tables(row, number)]
            assert tables == [naive.table(request, number, group) for group in range(len(tables))] or (
                len(tables) == 1 and tables[0] == naive.table(request, number, 1)  # one group draws from this pool
            )
    if naive.step_said:
        step = state.last_step
        assert step is not None
        assert (step.running, step.waiting) == (naive.step_said["running"], naive.step_said["waiting"])
        assert (step.head_need or 0) == naive.step_said["head_need"]


def _units_in(status: object, name: str) -> list[int]:
    words = np.asarray(status).astype(np.int64)
    held, later, content = words & 0xFFFFFF, words >> 26 & 1, words >> 24 & 1
    pinned = words >> 25 & 1
    masks = {
        "active": held > 0,
        "deferred": (held == 0) & (later > 0),
        "pinned": (held == 0) & (later == 0) & (content > 0) & (pinned > 0),
        "cached": (held == 0) & (later == 0) & (content > 0) & (pinned == 0),
        "free": (held == 0) & (later == 0) & (content == 0),
    }
    units: list[int] = (np.flatnonzero(masks[name]) + 1).tolist()
    return units

"""From the events of a stream to its demand: who came when, who hung up when, and what is not known of them.

Invariant: a moment that events tell only as "between two steps" is set where a replay on the recorded steps does the
same as the engine, in the order of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import Described, read_described
from kvmon.capture.pieces import Frames, Piece
from kvmon.errors import InputError
from kvmon.events import FailureOutcome, FinishReason, Kind
from kvmon.replay.demand import Demand, Steps
from kvmon.replay.demand_events import DemandEvents, DemandReader
from kvmon.replay.page_names import page_names
from kvmon.state import StreamState
from kvmon.state.requests import computed_tokens

__all__ = ["DemandOfStream"]

Ints = npt.NDArray[np.int64]

_ENDS_IT = (int(FailureOutcome.REFUSED), int(FailureOutcome.ABORTED))
_OPEN_LOOP = "clients send what they sent when they sent it, however long answers take (closed-loop clients would not)"


class DemandOfStream:
    """Collects the demand of one life of one engine; `state` is its fold, before the first piece."""

    def __init__(self, name: str, state: StreamState) -> None:
        self._name = name
        self._state = state
        self._reader = DemandReader()
        self._before = _live(state)
        self._first_ns: int | None = None

    def apply(self, piece: Piece) -> None:
        """Read the next piece, which the fold has seen."""
        if isinstance(piece, Frames):
            if self._first_ns is None and len(piece.table.times):
                self._first_ns = int(piece.table.times[0])
            self._reader.apply(piece.words, piece.table)

    def demand(self) -> Demand:
        """What was read, once the stream is at its end."""
        return _Building(self._name, self._state, self._reader.events(), self._before, self._first_ns or 0).build()


def _live(state: StreamState) -> Ints:
    """(fields, n) of the requests that a fold knows: number, arrival, class, prompt, limit."""
    requests = state.requests
    rows = np.flatnonzero(requests.id)
    found = np.stack(
        [
            requests.id[rows].astype(np.int64),
            requests.arrived[rows],
            requests.class_id[rows].astype(np.int64),
            requests.prompt[rows],
            requests.limit[rows],
        ]
    )
    return found[:, np.argsort(found[0])]


class _Building:
    def __init__(self, name: str, state: StreamState, events: DemandEvents, before: Ints, first_ns: int) -> None:
        self._name, self._state, self._events = name, state, events
        start, duration, prefill, decode, context = events.rows[Kind.STEP][:5]
        self._steps = Steps(start, duration, prefill, decode, context)
        ended = int(start[-1] + duration[-1]) if len(start) else 0
        self._begin, self._end = first_ns, max(state.time_ns, ended, _last_moment(events, len(start)))
        self._before = self._restated(before)

    def build(self) -> Demand:
        events = self._events
        arrived = events.rows[Kind.REQUEST_ARRIVED]
        _, once = np.unique(arrived[0], return_index=True)
        arrived = arrived[:, np.sort(once)]
        known = ~np.isin(self._before[0], arrived[0])
        before = self._before[:, known]
        number = np.concatenate([before[0], arrived[0]])
        was_before = np.arange(len(number)) < len(before[0])
        begin = int(self._steps.start_ns[0]) if len(self._steps) else self._begin
        steps = np.concatenate([np.zeros(len(before[0]), np.int64), arrived[-2]])
        orders = np.concatenate([np.full(len(before[0]), -1), arrived[-1]])
        at = np.concatenate([np.full(len(before[0]), begin), arrived[1]])
        lowest, highest = self._between(steps)
        due = np.maximum.accumulate(np.clip(at, lowest, highest)) if len(at) else at
        end, generated, ended_step, ended_order = self._ends(number)
        hang_up = self._hang_ups(number, due, orders, end, ended_step, ended_order)
        columns = {
            "arrived_ns": np.concatenate([before[1], arrived[1]]),
            "due_ns": due,
            "class_id": np.concatenate([before[2], arrived[2]]),
            "prompt": np.maximum(np.concatenate([before[3], arrived[3]]), 1),
            "limit": np.concatenate([before[4], arrived[4]]),
            "intended": np.concatenate([np.full(len(before[0]), -1), arrived[5]]),
            "generated": generated,
            "end": end,
            "hang_up_ns": hang_up,
            "patience_ns": np.concatenate([np.full(len(before[0]), -1), arrived[8]]),
            "pause_ns": np.concatenate([np.full(len(before[0]), -1), arrived[7]]),
            "before": was_before,
        }
        follows = np.concatenate([np.zeros(len(before[0]), np.int64), np.maximum(arrived[6], 0)])
        numbered, places = self._order(number, due, follows, was_before)
        columns = {name: column[places] for name, column in columns.items()}
        number, follows = number[places], _places_of(follows[places], number[places])
        # one that waits for somebody unknown, or behind it, comes when it came
        follows = np.where(follows <= np.arange(len(number)), follows, 0)
        follows = np.where(columns["pause_ns"] >= 0, follows, 0)
        named = page_names(events, number, columns["prompt"])
        engine, missing = self._engine(len(number))
        assumptions = list(engine.notes if engine else ()) + list(named.notes)
        if len(number) and not follows.any():
            assumptions.append(_OPEN_LOOP)
        if (columns["hang_up_ns"] > 0).any() and (columns["patience_ns"] < 0).all():
            assumptions.append("clients that hung up do so again after the same time; all others wait for ever")
        if (columns["limit"] < 0).any():
            assumptions.append("requests without a limit may become as long as the model or the longest answer seen")
        return Demand(
            name=self._name,
            request=number,
            follows=follows,
            offsets=named.offsets,
            hashes=named.hashes,
            hash_tokens=named.hash_tokens,
            steps=self._steps,
            engine=engine,
            begin_ns=self._begin,
            end_ns=self._end,
            numbered=numbered,
            unknown=_skipped(arrived[0]) if self._state.gaps else 0,
            missing=missing,
            gaps=self._gaps(),
            assumptions=tuple(assumptions),
            **columns,
        )

    def _restated(self, before: Ints) -> Ints:
        """Those who were there before: of the fold that reading began with, and of audits."""
        audits = self._events.rows[Kind.AUDIT_REQUEST]
        _, first = np.unique(audits[0], return_index=True)
        said = audits[:, first][[0, 0, 1, 2, 3]]
        said[1] = self._begin
        said = said[:, ~np.isin(said[0], before[0])]
        both = np.concatenate([before, said], axis=1)
        return both[:, np.argsort(both[0])]

    def _between(self, steps: Ints) -> tuple[Ints, Ints]:
        """The first and the last ns at which something between step k - 1 and step k can have happened."""
        starts = np.concatenate([self._steps.start_ns, [self._end]])
        lowest = np.concatenate([[0], self._steps.start_ns + 1])
        return lowest[steps], np.maximum(starts[steps], lowest[steps])

    def _ends(self, number: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Reason (-1 = it has not ended), tokens generated by then, and where its end stands in the stream."""
        finished = self._events.rows[Kind.REQUEST_FINISHED]
        place, there = _find(number, finished[0])
        reason, generated, step, order = (np.full(len(number), value, np.int64) for value in (-1, 0, 0, -1))
        place, finished = place[there], finished[:, there]
        reason[place], generated[place], step[place], order[place] = finished[1], finished[2], finished[3], finished[4]
        requests, now = self._state.requests, self._state.steps
        rows = np.flatnonzero(requests.id)
        place, there = _find(number, requests.id[rows].astype(np.int64))
        for row, at in zip(rows[there].tolist(), place[there].tolist(), strict=True):
            if reason[at] < 0:
                generated[at] = max(int(computed_tokens(requests, row, now)) - int(requests.prompt[row]) + 1, 0)
        return reason, generated, step, order

    def _hang_ups(self, number: Ints, due: Ints, orders: Ints, end: Ints, steps: Ints, ended: Ints) -> Ints:
        """When a client hung up, after its request was due: between two steps, in the order of the stream."""
        failed = self._events.rows[Kind.ALLOC_FAILED]
        by_memory = np.isin(number, failed[0][np.isin(failed[1], _ENDS_IT)])
        elsewhere = (end == FinishReason.ERROR) & ~by_memory
        if self._state.config.get("faults", {}).get("errors"):
            elsewhere &= False  # they strike again
        gone = np.flatnonzero((end == FinishReason.ABORT) | elsewhere)
        found = np.zeros(len(number), np.int64)
        if not len(gone):
            return found
        lowest, highest = self._between(steps[gone])
        # Within a gap between two steps, from its end: who came behind it in the stream came later.
        here = np.searchsorted(np.sort(orders), ended[gone])
        by_order = np.argsort(orders, kind="stable")
        sequence = np.argsort(ended[gone])[::-1]
        later: tuple[int, int] = (-1, 0)  # step and time of what was placed last
        for index in sequence.tolist():
            step, moment = int(steps[gone[index]]), int(highest[index])
            following = int(here[index])
            if following < len(by_order):
                comer = by_order[following]
                if due[comer] <= moment:
                    moment = int(due[comer]) - 1
            if later[0] == step and later[1] <= moment:
                moment = later[1] - 1
            moment = max(moment, int(lowest[index]))
            later = (step, moment)
            found[gone[index]] = max(moment - int(due[gone[index]]), 1)
        return found

    def _order(self, number: Ints, due: Ints, follows: Ints, before: npt.NDArray[np.bool_]) -> tuple[bool, Ints]:
        """Whether requests can keep their numbers, and their order."""
        by_number = np.argsort(number, kind="stable")
        whole = len(number) > 0 and number[by_number[0]] == 1 and int(number.max()) == len(number) and not before.any()
        alone = by_number[follows[by_number] == 0]
        if whole and (np.diff(due[alone]) >= 0).all() and (follows < number).all():
            return True, by_number
        return False, np.arange(len(number))

    def _engine(self, requests: int) -> tuple[Described | None, str]:
        """How the engine is configured, and why this cannot be replayed."""
        config: Mapping[str, Any] = self._state.config
        if config.get("fidelity") == "cache_only":
            return None, "its adapter sees the prefix cache alone (fidelity cache_only), and no request"
        if not requests:
            return None, "it holds no request: nobody came while it was recorded, or its adapter does not see them"
        if not len(self._steps):
            return None, "it holds no step: the engine took none while it was recorded"
        try:
            return read_described(config, {number: pool.info for number, pool in self._state.pools.items()}), ""
        except InputError as error:
            return None, str(error)

    def _gaps(self) -> tuple[str, ...]:
        found = []
        if self._state.gaps:
            lost = self._state.lost_records
            what = f", {lost:,} records in all" if lost else ""
            found.append(f"events are missing in {self._state.gaps:,} places{what}: who came or ended there is unknown")
        resets = self._events.rows[Kind.POOL_RESET].shape[1]
        if resets:
            found.append(f"the engine forgot its whole prefix cache {resets:,} times: a replay does not")
        if self._events.rows[Kind.POOL_CHANGED].shape[1]:
            found.append("the pool changed its size: the last one is replayed")
        return tuple(found)


def _skipped(number: Ints) -> int:
    """Numbers that are missing among these."""
    return int(number.max() - number.min() + 1 - len(number)) if len(number) else 0


def _last_moment(events: DemandEvents, steps: int) -> int:
    """When the last one behind the last step came, or hung up as was said beforehand; no frame tells the time there."""
    arrived, finished = events.rows[Kind.REQUEST_ARRIVED], events.rows[Kind.REQUEST_FINISHED]
    gone = finished[0][(finished[1] == FinishReason.ABORT) & (finished[-2] == steps)]
    came = arrived[1][arrived[-2] == steps]
    left = (arrived[1] + arrived[8])[np.isin(arrived[0], gone) & (arrived[8] >= 0)]
    return max(int(came.max(initial=0)), int(left.max(initial=0)))


def _find(sorted_or_not: Ints, wanted: Ints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Where each of `wanted` stands in a list of different numbers, and whether it does."""
    order = np.argsort(sorted_or_not, kind="stable")
    at = np.minimum(np.searchsorted(sorted_or_not[order], wanted), max(len(order) - 1, 0))
    if not len(order):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    return order[at], sorted_or_not[order[at]] == wanted


def _places_of(follows: Ints, number: Ints) -> Ints:
    """The place (from 1) of the request that each follows; 0 where it follows nobody that is known."""
    place, there = _find(number, follows)
    return np.where(there & (follows > 0), place + 1, 0)

"""Rows of every table from one life, batch by batch.

Invariant: each row says whose it is in the same columns; what the recording's fidelity cannot know is absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kvmon.diagnosis import HEALTHY
from kvmon.events import FAILURE_REASONS, Contiguity, FailureOutcome, RequestState
from kvmon.replay.export.columns import constant, integers, table_of, times, words
from kvmon.replay.export.event_rows import FINISH_REASONS, event_columns
from kvmon.replay.export.failure_rows import Failures, Refused
from kvmon.replay.export.following import Batch, Follower, Holding
from kvmon.replay.export.request_rows import Request, RequestBook
from kvmon.replay.export.state_rows import state_columns
from kvmon.replay.lives import Life
from kvmon.state.watch import R

__all__ = ["LifeRows"]

_FAILURES = {
    "frame": R.FRAME,
    "word": R.WORD,
    "need": R.NEED,
    "free": R.FREE,
    "evictable": R.EVICTABLE,
    "largest_free": R.LARGEST,
    "capacity": R.CAPACITY,
    "unit_tokens": R.UNIT_TOKENS,
    "class": R.CLASS,
}
_OF_THE_PAST = {
    "active": R.ACTIVE,
    "pinned": R.PINNED,
    "deferred": R.DEFERRED,
    "running": R.RUNNING,
    "waiting": R.WAITING,
}
_OF_EVERYTHING = {"unowned": R.UNOWNED, "tail": R.TAIL, "reserved": R.RESERVED}
_REQUESTS = {
    "request": "number",
    "class": "class_id",
    "arrived_ns": "arrived_ns",
    "admitted_ns": "admitted_ns",
    "first_token_ns": "first_token_ns",
    "finished_ns": "finished_ns",
    "memory_wait_ns": "memory_wait_ns",
    "prompt_tokens": "prompt",
    "token_limit": "limit",
    "intended_tokens": "intended",
    "output_tokens": "output",
    "lookup_tokens": "lookup",
    "hit_tokens": "hit",
    "refused": "refused",
    "preemptions": "preemptions",
    "lost_tokens": "lost",
}
_STATES = [state.name.lower() for state in RequestState]

Rows = Iterator[tuple[str, Any]]


class LifeRows:
    """`schemas` are those of the tables that are wanted; tables of the others are not made."""

    def __init__(self, pa: Any, capture: str, life: Life, follower: Follower, schemas: Mapping[str, Any]) -> None:
        self._pa = pa
        self._capture = capture
        self._life = life
        self._follower = follower
        self._schemas = schemas
        facts = life.facts
        self._offset = facts.wall_time_ns(0) if facts.wall_ns else None
        self._book = RequestBook(follower.state)
        self._failures = Failures(follower.refused_before)
        self._steps_before = follower.state.steps
        self._gaps_before = follower.state.gaps

    def of_batch(self, batch: Batch) -> Rows:
        """Tables of what is settled with this batch."""
        exact = self._follower.exact
        if "events" in self._schemas:
            yield self._table("events", len(batch.records), event_columns(self._pa, batch.records, self._offset))
        if "states" in self._schemas:
            for curves in batch.curves:
                for count, columns in state_columns(self._pa, curves, self._offset):
                    yield self._table("states", count, columns)
        ended = self._book.apply(batch) if "requests" in self._schemas else []
        yield self._requests(ended)
        yield self._refused(self._failures.apply(batch.refusals, exact=exact), exact=exact)
        yield self._holdings(batch.holdings)

    def at_the_end(self) -> Rows:
        """Tables of what has not ended, and of the life itself."""
        exact = self._follower.exact
        yield self._requests(self._book.rest(self._follower.state.time_ns))
        yield self._refused(self._failures.rest(), exact=exact)
        yield self._stream()

    # -- tables --

    def _table(self, table: str, count: int, columns: Mapping[str, Any]) -> tuple[str, Any]:
        facts, pa = self._life.facts, self._pa
        whose = {
            "capture": constant(pa, count, self._capture),
            "engine": constant(pa, count, facts.engine),
            "rank": pa.array(np.full(count, facts.rank, np.int32)),
            "life": constant(pa, count, self._life.name),
        }
        return table, table_of(
            pa, self._schemas[table], count, {**whose, **columns}
        ) if table in self._schemas else None

    def _times(self, values: Sequence[int | None]) -> Any:
        if self._offset is None:
            return None
        known = np.array([0 if value is None else value for value in values], np.int64)
        column = times(self._pa, known + self._offset, True)
        absent = self._pa.array([value is None for value in values], self._pa.bool_())
        return self._pa.compute.if_else(absent, self._pa.scalar(None, column.type), column)

    def _requests(self, requests: Sequence[Request]) -> tuple[str, Any]:
        pa = self._pa
        columns = {
            name: pa.array([getattr(request, field) for request in requests], pa.int64())
            for name, field in _REQUESTS.items()
        }
        columns |= {
            "arrived": self._times([request.arrived_ns for request in requests]),
            "finish_reason": words(pa, np.array([request.reason for request in requests], np.int64), FINISH_REASONS),
            "queued_ns": pa.array([_between(one.arrived_ns, one.admitted_ns) for one in requests], pa.int64()),
            "ttft_ns": pa.array([_between(one.arrived_ns, one.first_token_ns) for one in requests], pa.int64()),
            "from_before": pa.array([request.from_before for request in requests], pa.bool_()),
            "incomplete": pa.array([request.incomplete for request in requests], pa.bool_()),
        }
        return self._table("requests", len(requests), columns)

    def _refused(self, refused: Sequence[Refused], *, exact: bool) -> tuple[str, Any]:
        pa, pools = self._pa, self._follower.state.pools
        rows = np.array([one.row for one in refused], np.int64).reshape(len(refused), R.WIDTH)
        known = rows[:, R.KNOWN] > 0
        past = {name: np.where(known, rows[:, column], -1) for name, column in _OF_THE_PAST.items()}
        if exact:
            past |= {name: np.where(known, rows[:, column], -1) for name, column in _OF_EVERYTHING.items()}
        facts = [pools.get(number) for number in rows[:, R.POOL].tolist()]
        columns = {name: integers(pa, rows[:, column]) for name, column in _FAILURES.items()}
        columns |= {name: integers(pa, values) for name, values in past.items()}
        request = np.where(rows[:, R.REQUEST] > 0, rows[:, R.REQUEST], -1)
        reason = np.where(rows[:, R.REASON] < len(FAILURE_REASONS), rows[:, R.REASON], 0)
        columns |= {
            "time_ns": pa.array(rows[:, R.TIME]),
            "time": times(pa, rows[:, R.TIME] + (self._offset or 0), self._offset is not None),
            "number": pa.array([one.number for one in refused], pa.int64()),
            "pool": pa.array(rows[:, R.POOL].astype(np.int32)),
            "pool_name": _named(pa, [None if pool is None else pool.name for pool in facts]),
            "request": integers(pa, request),
            "reason": words(pa, reason, FAILURE_REASONS),
            "cause": _named(pa, [one.cause for one in refused]),
            "outcome": words(pa, rows[:, R.OUTCOME], [outcome.name.lower() for outcome in FailureOutcome]),
            "contiguity": words(pa, rows[:, R.CONTIGUITY], [need.name.lower() for need in Contiguity]),
            "mid_stream": pa.array(rows[:, R.MID_STREAM] > 0),
            "waited_ns": pa.array([one.waited_ns for one in refused], pa.int64()),
            "waits": pa.array(rows[:, R.SEQ] > 0),
            "known": pa.array(known),
            "unit_bytes": pa.array([pool.unit_bytes or None if pool else None for pool in facts], pa.int64()),
        }
        return self._table("failures", len(refused), columns)

    def _holdings(self, holdings: Sequence[Holding]) -> tuple[str, Any]:
        pa, pools = self._pa, self._follower.state.pools
        moments = np.array([holding.time_ns for holding in holdings], np.int64)
        columns = {
            "time_ns": pa.array(moments),
            "time": times(pa, moments + (self._offset or 0), self._offset is not None),
            "frame": pa.array([holding.frame for holding in holdings], pa.int64()),
            "pool": pa.array([holding.pool for holding in holdings], pa.int32()),
            "class": pa.array([holding.class_id for holding in holdings], pa.int64()),
            "state": words(pa, np.array([holding.state for holding in holdings], np.int64), _STATES),
            "requests": pa.array([holding.requests for holding in holdings], pa.int64()),
            "units": pa.array([holding.units for holding in holdings], pa.int64()),
            "unit_bytes": pa.array([pools[holding.pool].unit_bytes or None for holding in holdings], pa.int64()),
        }
        return self._table("holders", len(holdings), columns)

    def _stream(self) -> tuple[str, Any]:
        pa, follower, state = self._pa, self._follower, self._follower.state
        findings = [finding for finding in follower.told.findings if finding.end_ns > follower.begin_ns]
        begin, end = self._life.first_ns, self._life.last_ns
        begin = None if begin is None else max(begin, follower.begin_ns)
        end = None if end is None else min(end, follower.end_ns)
        said: dict[str, int | None] = {
            "begin_ns": begin,
            "end_ns": end,
            "steps": state.steps - self._steps_before,
            "refused": self._failures.count - follower.refused_before,
            "gaps": state.gaps - self._gaps_before,
            "lost_records": state.lost_records,
            "missing_frames": state.missing_frames,
            "damaged": state.damaged_frames,
        }
        columns = {name: pa.array([value], pa.int64()) for name, value in said.items()}
        config = state.config
        columns |= {
            "adapter": _named(pa, [_said(config, "adapter")]),
            "engine_version": _named(pa, [_said(config, "engine_version", "version")]),
            "fidelity": _named(pa, [str(config.get("fidelity", "exact")) if config else None]),
            "begin": self._times([begin]),
            "end": self._times([end]),
            "verdict": _named(pa, [findings[0].verdict if findings else HEALTHY]),
            "summary": pa.array([findings[0].summary if findings else None], pa.string()),
            "pools": pa.array([len(state.pools)], pa.int32()),
            "damage": pa.array(["; ".join(dict.fromkeys(follower.told.damage)) or None], pa.string()),
            "config": pa.array([json.dumps(config, sort_keys=True) if config else None], pa.string()),
        }
        return self._table("streams", 1, columns)


def _named(pa: Any, names: Sequence[str | None]) -> Any:
    """A column of words from the words themselves."""
    return pa.array(names, pa.string()).dictionary_encode()


def _said(config: Mapping[str, Any], *keys: str) -> str | None:
    return next((str(config[key]) for key in keys if config.get(key)), None)


def _between(begin: int | None, end: int | None) -> int | None:
    return None if begin is None or end is None else end - begin

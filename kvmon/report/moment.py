"""The state at a moment of a recording: what was known then, as a view that the panels draw, as lines and as JSON.

The same words and the same map as `kvmon top` and `kvmon holders`. Only collects and draws: every number is asked of
the folded state or of the timeline up to the moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from kvmon.diagnosis import HEALTHY, Finding
from kvmon.events import FAILURE_REASONS, RequestState
from kvmon.events.totals import POOL_SLOTS, STREAM_SLOTS, PoolTotal, StreamTotal
from kvmon.replay.moment import Moment, spoken_time
from kvmon.replay.timeline_model import Timeline
from kvmon.replay.when import rfc3339
from kvmon.report.collect import Liveness, stream_view
from kvmon.report.gauges import ASCII, UNICODE
from kvmon.report.holders import KEYS, holders_of, holders_table
from kvmon.report.terminal import grid, heading
from kvmon.report.view import PoolView, Screen, StreamView
from kvmon.report.words import refusal_sentence

__all__ = ["SCHEMA", "MomentView", "draw_moments", "moment_view", "moments_json"]

SCHEMA = 1
"""Version of what `moments_json` gives; fields may be added to a version, never changed."""
_COUNTERS = {
    "steps": ("steps", StreamTotal.STEPS),
    "prefill_tokens": ("prefill_tokens", StreamTotal.PREFILL_TOKENS),
    "decode_tokens": ("decode_tokens", StreamTotal.DECODE_TOKENS),
    "arrived": ("arrived", StreamTotal.ARRIVED),
    "preempted": ("preemptions", StreamTotal.PREEMPTED),
    "lost_tokens": ("recomputed_tokens", StreamTotal.LOST_TOKENS),
    "lookup_tokens": ("lookup_tokens", StreamTotal.LOOKUP_TOKENS),
    "hit_tokens": ("hit_tokens", StreamTotal.HIT_TOKENS),
}


@dataclass(frozen=True)
class MomentView:
    """One life at a moment.

    stream      as the panels draw it; its counters run since the engine began to record
    requests    live requests by state, and how many of them wait for memory
    holders     a pool each, as `holders_of` gives it
    findings    those that held then, most important first
    sentence    what was refused, where the moment is a refused allocation
    """

    moment: Moment
    stream: StreamView
    requests: dict[str, int]
    holders: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]
    sentence: str | None = None

    @property
    def verdict(self) -> str:
        """The one word."""
        return self.findings[0].verdict if self.findings else HEALTHY


def moment_view(moment: Moment, so_far: Timeline) -> MomentView:
    """The view of a moment; `so_far` is the timeline of its life up to there, in one bucket."""
    life, state, failure = moment.life, moment.state, moment.failure
    facts = life.facts
    refused = None if failure is None else (failure.refusal.pool, failure.refusal.need)
    said = Liveness("replayed", moment=spoken_time(life, moment.time_ns))
    stream = stream_view(facts.engine, facts.rank, state, said, refused=refused)
    counters = {
        name: facts.totals[slot] + int(np.nansum(so_far.counts[counted])) for name, (counted, slot) in _COUNTERS.items()
    }
    pools = tuple(replace(pool, failures=_failures(pool.number, moment, so_far)) for pool in stream.pools)
    sentence = None
    if failure is not None:
        pool = state.pools.get(failure.refusal.pool)
        contiguous = pool is not None and pool.contiguity == "required"
        sentence = f"{refusal_sentence(failure.refusal, contiguous=contiguous)} Cause: {failure.refusal.cause}."
    return MomentView(
        moment=moment,
        stream=replace(stream, counters=counters, pools=pools),
        requests=_requests(moment),
        holders=tuple(
            holders_of(facts.engine, facts.rank, state, pool, KEYS) for _, pool in sorted(state.pools.items())
        ),
        findings=tuple(finding for finding in so_far.findings if finding.end_ns >= so_far.end_ns),
        sentence=sentence,
    )


def moments_json(path: str, at: str, views: Sequence[MomentView]) -> dict[str, Any]:
    """Plain data for `json.dumps`."""
    screen = Screen(path, 0, tuple(view.stream for view in views)).as_json()
    return {
        "schema": SCHEMA,
        "path": path,
        "at": at,
        "moments": [
            {**_as_json(view), "stream": stream} for view, stream in zip(views, screen["streams"], strict=True)
        ],
    }


def draw_moments(path: str, at: str, views: Sequence[MomentView], width: int, *, ascii_only: bool) -> RenderableType:
    """All of them below each other, nothing wider than `width`."""
    parts: list[RenderableType] = [heading(path, f"--at {at}", "", width)]
    for view in views:
        parts += [Text(line, "bold") for line in wrap(_answer(view), width)]
        if view.sentence is not None:
            parts += [Text(line) for line in wrap(view.sentence, width)]
        panels: list[tuple[StreamView, PoolView | None]] = [
            (view.stream, pool) for pool in (view.stream.pools or (None,))
        ]
        parts.append(grid(panels, width, None, ASCII if ascii_only else UNICODE))
        said = ", ".join(f"{count:,} {name}" for name, count in view.requests.items() if count)
        parts += [Text(line) for line in wrap(f"Requests: {said or 'none'}.", width)]
        for pool in view.holders:
            parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in holders_table(pool, KEYS)]
    return Group(*parts)


def _answer(view: MomentView) -> str:
    name, failure = view.moment.life.name, view.moment.failure
    where = f"{name} at {spoken_time(view.moment.life, view.moment.time_ns)}"
    if failure is not None:
        where += f", before refused allocation {failure.number:,}"
    held = f"{view.verdict}: {view.findings[0].summary}" if view.findings else "nothing was wrong by then"
    return f"{where}: {held}."


def _failures(pool: int, moment: Moment, so_far: Timeline) -> dict[str, int]:
    """Refused allocations of a pool by reason since the engine began to record."""
    known = {one.number: one.failures for one in so_far.pools}.get(pool, {})
    counts = {}
    for index, reason in enumerate(FAILURE_REASONS):
        before = moment.life.facts.totals[STREAM_SLOTS + POOL_SLOTS * (pool - 1) + PoolTotal.FAILED_FIRST + index]
        count = before + int(np.nansum(known[reason]) if reason in known else 0)
        if count:
            counts[reason] = count
    return counts


def _requests(moment: Moment) -> dict[str, int]:
    requests = moment.state.requests
    live = requests.id != 0
    states = {state.name.lower(): int((requests.state[live] == state).sum()) for state in RequestState}
    return {**states, "waiting for memory": int((requests.starved[live] > 0).sum())}


def _as_json(view: MomentView) -> dict[str, Any]:
    moment, state = view.moment, view.moment.state
    life, step = moment.life, state.last_step
    first = state.pools.get(1)
    return {
        "name": life.name,
        "time_ns": moment.time_ns,
        "after_begin_ns": moment.time_ns - moment.begin_ns,
        "wall_time": rfc3339(life.facts.wall_time_ns(moment.time_ns)) if life.facts.wall_ns else None,
        "frame": state.frame,
        "verdict": view.verdict,
        "findings": [finding.to_json() for finding in view.findings],
        "failure": None if moment.failure is None else moment.failure.as_json(),
        "requests": view.requests,
        "head": None
        if step is None or step.head_need is None or first is None
        else {
            "need_units": step.head_need,
            "free_units": first.free,
            "evictable_units": first.evictable,
            "largest_free_units": first.largest_free,
            "largest_after_eviction_units": first.largest_after_eviction,
            "fits": step.head_need <= first.largest_after_eviction,
        },
        "holders": [dict(pool) for pool in view.holders],
    }

"""One life over one stretch of time as numbers that can be set beside another's: use, waits, lengths, settings.

Means are by time, over what is known; extremes are over every event; shares are of the pool. Made in one pass by the
follower of an export, from the same curves, in memory that does not depend on the length. Invariant: a number that the
recording cannot know is absent, never zero; rates are over the time that was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvmon.diagnosis import HEALTHY, Finding
from kvmon.events import FAILURE_REASONS, FailureOutcome
from kvmon.replay.export.following import Follower
from kvmon.replay.export.request_rows import RequestBook
from kvmon.replay.lives import Life
from kvmon.replay.picture_numbers import of_failures, of_pool, of_requests, of_steps, sees_requests
from kvmon.replay.picture_sums import Measured, RequestSums, StreamSums
from kvmon.state import PoolState
from kvmon.state.watch import R
from kvmon.units import counted, format_ratio

__all__ = ["Picture", "PoolPicture", "picture_of"]

_BUCKETS = 500
_LOST = (int(FailureOutcome.REFUSED), int(FailureOutcome.ABORTED))
_WHOLE = 0.999  # known from begin to end, but for the first frame
# What a pool says of itself that is said otherwise, or is no setting.
_NO_SETTING = {"name", "fresh", "first_engine_unit", "capacity_units", "unit_bytes", "unit_tokens"}


@dataclass(frozen=True)
class PoolPicture:
    """One pool: how it is called, its numbers and what it says of itself."""

    name: str
    numbers: Mapping[str, Measured]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """See `NUMBERS` of `kvmon.replay.diff_changes` for what each of `numbers` is.

    frames      that ended in it
    seen_s      of its seconds, those in which frames follow each other
    known       the share of it in which the state was known
    counts      of what happened: requests that `arrived`, `ended` and `failed`, `refused` allocations, those `lost` by
                them, `preemptions`; empty where an adapter sees no requests
    causes      refused allocations by the verdict that explains them; `reasons` by what the engine said
    settings    what the engine says of itself, flat, by path
    missing     what of it was not seen, in words
    """

    name: str
    begin_ns: int
    end_ns: int
    frames: int
    seen_s: float
    known: float
    findings: tuple[Finding, ...]
    numbers: Mapping[str, Measured]
    pools: Mapping[int, PoolPicture]
    counts: Mapping[str, int]
    causes: Mapping[str, int]
    reasons: Mapping[str, int]
    settings: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end_ns - self.begin_ns) / 1e9

    @property
    def verdict(self) -> str | None:
        """The one word; None where nothing was found and nothing is known, or only what a cache has."""
        if self.findings:
            return self.findings[0].verdict
        return HEALTHY if self.known > 0 and self.counts else None

    def as_json(self) -> dict[str, Any]:
        """Plain data; a number that is not known is not there."""
        return {
            "stream": self.name,
            "begin_ns": self.begin_ns,
            "end_ns": self.end_ns,
            "seconds": self.seconds,
            "seen_seconds": _rounded(self.seen_s),
            "known_ratio": _rounded(self.known),
            "missing": list(self.missing),
            "verdict": self.verdict,
            "verdicts": list(dict.fromkeys(finding.verdict for finding in self.findings)),
            "summary": self.findings[0].summary if self.findings else None,
            "counts": dict(self.counts),
            "causes": dict(self.causes),
            "reasons": dict(self.reasons),
            "numbers": {name: _rounded(number.value) for name, number in self.numbers.items()},
            "pools": {
                str(number): {
                    "name": pool.name,
                    "settings": dict(pool.settings),
                    "numbers": {name: _rounded(measured.value) for name, measured in pool.numbers.items()},
                }
                for number, pool in self.pools.items()
            },
            "settings": dict(self.settings),
        }


def picture_of(
    life: Life,
    begin_ns: int | None = None,
    end_ns: int | None = None,
    progress: Callable[[int], None] = lambda words: None,
) -> Picture:
    """What a life was like behind `begin_ns`, up to `end_ns`; None = from its begin, to its end."""
    first, last = life.first_ns or 0, life.last_ns or 0
    span = (last if end_ns is None else min(end_ns, last)) - (first if begin_ns is None else max(begin_ns, first))
    every = max(span // _BUCKETS, 1)
    follower = Follower(life, every_ns=every, begin_ns=begin_ns, end_ns=end_ns, progress=progress)
    state = follower.state
    lost_before = state.missing_frames, state.lost_records
    book, sums, requests = RequestBook(state), StreamSums(), RequestSums()
    reasons: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    frames = lost = 0
    for batch in follower.batches():
        frames += len(np.unique(batch.records.frame))
        for curves in batch.curves:
            sums.add(curves)
        for request in book.apply(batch):
            requests.add(request, None)
        refused = batch.refusals[batch.refusals[:, R.KIND] == R.REFUSED]
        lost += int(np.isin(refused[:, R.OUTCOME], _LOST).sum())
        reasons.update(_reason(code) for code in refused[:, R.REASON].tolist())
        causes.update(follower.causes(refused))
    alive = set(state.requests.id.tolist()) if state.converged else set()
    for request in book.rest(state.time_ns):
        requests.add(request, state.time_ns if request.number in alive else None)
    counts = {
        "arrived": requests.arrived,
        "ended": requests.ended,
        "failed": requests.failed,
        "refused": reasons.total(),
        "lost": lost,
        "preemptions": round(sums.counts.get("preemptions", 0)),
    }
    seen_s, length = sums.seen_ns / 1e9, follower.end_ns - follower.begin_ns
    known = sums.known_ns / max(length, 1)
    return Picture(
        name=life.name,
        begin_ns=follower.begin_ns,
        end_ns=follower.end_ns,
        frames=frames,
        seen_s=seen_s,
        known=known,
        findings=tuple(finding for finding in follower.told.findings if finding.end_ns > follower.begin_ns),
        numbers={
            **of_failures(state, counts, seen_s),
            **of_requests(state, requests, seen_s, length / 1e9 - seen_s),
            **of_steps(sums, requests.arrived, seen_s),
        },
        pools={
            number: PoolPicture(pool.name, of_pool(pool, sums.pools[number], seen_s), _pool_settings(pool))
            for number, pool in sorted(state.pools.items())
            if number in sums.pools
        },
        counts=counts if sees_requests(state) else {},
        causes=dict(sorted(causes.items())),
        reasons=dict(sorted(reasons.items())),
        settings=dict(_flat("", state.config)),
        missing=tuple(_missing(follower, known, lost_before)),
    )


def _pool_settings(pool: PoolState) -> dict[str, Any]:
    """What a pool says of itself: sizes in tokens, so that pools of other pages can be set beside it."""
    found: dict[str, Any] = {
        "tokens": pool.capacity_units * pool.unit_tokens,
        "page_tokens": pool.unit_tokens,
        **({"token_bytes": pool.unit_bytes / pool.unit_tokens} if pool.unit_bytes else {}),
    }
    found["layout"], found["contiguity"], found["tier"] = pool.layout, pool.contiguity, pool.tier
    return found | dict(_flat("", {key: value for key, value in pool.info.items() if key not in _NO_SETTING}))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _flat(f"{path} {key}".lstrip(), value[key])
    else:
        yield path, value


def _missing(follower: Follower, known: float, before: tuple[int, int]) -> Iterator[str]:
    """What was not seen here; what was lost before it is of no account."""
    state = follower.state
    yield from dict.fromkeys(follower.told.damage)
    frames, records = state.missing_frames - before[0], state.lost_records - before[1]
    if frames or records:
        yield f"{counted(frames, 'frame')} and {counted(records, 'record')} are missing"
    if known < _WHOLE:
        yield f"the state is known for {format_ratio(known)} of the time"


def _reason(code: int) -> str:
    return FAILURE_REASONS[code] if code < len(FAILURE_REASONS) else FAILURE_REASONS[0]


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")

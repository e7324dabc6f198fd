"""What is summed up while a life is followed: curves by time, requests one by one, values as a bounded histogram.

Invariant: memory does not depend on how long the life is, and what comes out not on how it is cut into batches. A
number that was not seen is absent, never zero.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import inf, isfinite, sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.events import FinishReason, RequestState
from kvmon.replay.export.request_rows import NOT_ENDED, Request
from kvmon.replay.timeline_model import Curve, PoolTimeline, Timeline

__all__ = ["Measured", "PoolSums", "RequestSums", "StreamSums", "TimeMean", "Values", "count_up"]

Floats = npt.NDArray[np.float64]

_SIGMAS = 2.0
"""Standard deviations that chance alone makes once in twenty times."""
_DIGITS = 8  # bits of a value that a histogram keeps
_FAILED = (int(FinishReason.ERROR), int(FinishReason.REFUSED))
_COUNTS = ("steps", "prefill_tokens", "decode_tokens", "preemptions", "recomputed_tokens", "lookup_tokens")
_POOL_SHARES = ("active", "available", "cached", "pinned", "deferred", "largest_free", "unowned")
_POOL_SLOTS = ("tail", "reserved")
_POOL_RATIOS = ("external_fragmentation", "lost_at_head", "page_utilization")


class Measured(NamedTuple):
    """A number, and how far from it chance alone may have put it: two standard deviations of what was sampled."""

    value: float
    chance: float = 0.0

    @classmethod
    def rate(cls, count: float, seconds: float, each: float = 1.0) -> Measured:
        """In `each` so many seconds; of events that come one by one, as in a Poisson process."""
        return cls(count * each / seconds, _SIGMAS * sqrt(count) * each / seconds)

    @classmethod
    def share(cls, part: float, whole: float, samples: float) -> Measured:
        """Part of a whole of which so many samples were taken."""
        ratio = part / whole
        return cls(ratio, _SIGMAS * sqrt(max(ratio * (1 - ratio), 0.0) / samples))


class Values:
    """Whole numbers of 0 and more, of which the mean is exact and a percentile right to one part in 256."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._squares = 0
        self._buckets: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """One more of them."""
        value = max(value, 0)
        self.count += 1
        self._sum += value
        self._squares += value * value
        shift = max(value.bit_length() - _DIGITS, 0)
        self._buckets[shift << _DIGITS | value >> shift] += 1

    def mean(self) -> Measured | None:
        """Their mean."""
        if not self.count:
            return None
        variance = (self._squares * self.count - self._sum * self._sum) / self.count**2
        return Measured(self._sum / self.count, _SIGMAS * sqrt(variance / self.count))

    def percentile(self, share: float, scale: float = 1.0) -> Measured | None:
        """The least value that so large a share of them does not pass, times `scale`."""
        if not self.count:
            return None
        rank, off = share * self.count, _SIGMAS * sqrt(share * (1 - share) * self.count)
        low, value, high = (self._at(place) for place in (rank - off, rank, rank + off))
        return Measured(value * scale, (high - low) / 2 * scale)

    def _at(self, rank: float) -> float:
        passed, middle = 0, 0.0
        for key in sorted(self._buckets):
            shift, head = key >> _DIGITS, key & (1 << _DIGITS) - 1
            middle = (head << shift) + ((1 << shift) - 1) / 2
            passed += self._buckets[key]
            if passed >= rank:
                break
        return middle


class TimeMean:
    """A mean by time, and the extremes over every event."""

    def __init__(self) -> None:
        self._area = self._time = 0.0
        self._least, self._most = inf, -inf

    def add(self, curve: Curve, weights: Floats, scale: Floats | float = 1.0) -> None:
        """A stretch of a curve; `weights` = known time of each bucket, or what else it is a mean by."""
        mean = (curve.last if curve.mean is None else curve.mean) * scale
        there = np.isfinite(mean) & (weights > 0)
        self._area += float((mean[there] * weights[there]).sum())
        self._time += float(weights[there].sum())
        known = np.isfinite(curve.least)
        if known.any():
            self._least = min(self._least, float((curve.least * scale)[known].min()))
            self._most = max(self._most, float((curve.most * scale)[known].max()))

    @property
    def mean(self) -> float | None:
        """None where nothing was known."""
        return self._area / self._time if self._time else None

    @property
    def least(self) -> float | None:
        """None where nothing was known."""
        return self._least if isfinite(self._least) else None

    @property
    def most(self) -> float | None:
        """None where nothing was known."""
        return self._most if isfinite(self._most) else None


class StreamSums:
    """Curves and counts of a stream, and of each pool by its number.

    counts      what happened, where somebody looked; a name is absent where nobody did
    seen_ns     the time in which frames follow each other; known_ns: in which the whole past is known
    """

    def __init__(self) -> None:
        self.means: dict[str, TimeMean] = defaultdict(TimeMean)
        self.counts: dict[str, float] = {}
        self.seen_ns = self.known_ns = 0.0
        self.pools: dict[int, PoolSums] = {}

    def add(self, curves: Timeline) -> None:
        """A stretch of curves."""
        widths = np.diff(curves.edges_ns).astype(np.float64)
        known, steps = widths * curves.known, curves.counts["steps"]
        self.known_ns += float(known.sum())
        self.seen_ns += float(widths[np.isfinite(steps)].sum())
        for name in ("running", "waiting", "waiting_for_memory"):
            self.means[name].add(curves.curves[name], known)
        self.means["step_seconds"].add(curves.curves["step_seconds"], np.nan_to_num(steps))
        for name in (*_COUNTS, "hit_tokens"):
            count_up(self.counts, name, curves.counts[name])
        for pool in curves.pools:
            self.pools.setdefault(pool.number, PoolSums()).add(pool, widths * pool.known)


class PoolSums:
    """Curves of a pool as shares of it."""

    def __init__(self) -> None:
        self.means: dict[str, TimeMean] = defaultdict(TimeMean)
        self.counts: dict[str, float] = {}

    def add(self, pool: PoolTimeline, known: Floats) -> None:
        """A stretch of curves; `known` = time of each bucket in which the pool's past is known."""
        capacity = pool.curves["capacity"].last
        share = 1.0 / np.where(capacity > 0, capacity, max(pool.capacity, 1))
        for name in _POOL_SHARES:
            self.means[name].add(pool.curves[name], known, share)
        for name in _POOL_SLOTS:
            self.means[name].add(pool.curves[name], known, share / pool.unit_tokens)
        for name in _POOL_RATIOS:
            self.means[name].add(pool.curves[name], known)
        count_up(self.counts, "evicted_tokens", pool.counts["evicted"] * pool.unit_tokens)


def count_up(counts: dict[str, float], name: str, values: Floats) -> None:
    """Add what was counted in some buckets, where it was."""
    there = values[np.isfinite(values)]
    if len(there):
        counts[name] = counts.get(name, 0.0) + float(there.sum())


class RequestSums:
    """Lengths and waits of the requests that came in a stretch of time, and how any ended in it."""

    def __init__(self) -> None:
        self.arrived = self.ended = self.failed = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.prompt, self.output = Values(), Values()
        self.queued, self.first_token, self.memory_wait = Values(), Values(), Values()

    def add(self, request: Request, upto_ns: int | None) -> None:
        """One that has ended, or one that has not: if it waits, it counts with what it has waited by `upto_ns`; None =
        nobody knows what has become of it."""
        ended = request.reason != NOT_ENDED
        if ended:
            upto_ns = request.finished_ns
            self.ended += 1
            self.failed += request.reason in _FAILED
            if request.output is not None:
                self.output.add(request.output)
        at = request.arrived_ns
        if request.from_before or at is None:
            return
        self.arrived += 1
        self.first_ns = at if self.first_ns is None else min(self.first_ns, at)
        self.last_ns = at if self.last_ns is None else max(self.last_ns, at)
        if request.prompt is not None:
            self.prompt.add(request.prompt)
        if upto_ns is None:
            return
        self.memory_wait.add(request.memory_wait_ns)
        never = not request.output if ended else request.state == RequestState.WAITING
        if request.admitted_ns is not None:
            self.queued.add(request.admitted_ns - at)
        elif never:
            self.queued.add(upto_ns - at)
        if request.first_token_ns is not None:
            self.first_token.add(request.first_token_ns - at)
        elif not ended:
            self.first_token.add(upto_ns - at)

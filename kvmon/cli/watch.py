"""Look at a recording directory again and again: follow its streams and make a screen of what is known now.

Shared by `kvmon top` and `kvmon demo`. Folding is bounded by the time a caller gives, so that a screen stays
responsive while much is read. Heavy imports: only verbs import this module, when they run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from kvmon.diagnosis import VERDICTS, Finding, Holds
from kvmon.events.totals import StreamTotal
from kvmon.exporter.follow import DEFAULT_STALL_SECONDS, DirectoryFollower, Life, StreamFollower
from kvmon.recording import find_streams
from kvmon.report import Liveness, Rates, Screen, StreamView, stream_view

__all__ = ["Watch"]

_RATE_NS = 5_000_000_000
_VERDICT_AGE_NS = 500_000_000


class Watch:
    """Follows the streams of `directory`, or the one stream whose own directory it is.

    `engines` picks engines by name, all when empty. `clock` is the monotonic clock that engines and watcher share,
    `wall` the time of day, both in ns. Raises RecordingError where there is no such directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        engines: Collection[str] = (),
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        find_streams(directory)
        self.directory = directory
        self._only = directory.name if (directory / "lock").is_file() else None
        self._engines = frozenset(engines)
        self._clock, self._wall = clock, wall
        root = directory.parent if self._only else directory
        self._follower = DirectoryFollower(root, stall_seconds=stall_seconds, clock=clock)
        self._paces: dict[Path, _Pace] = {}

    def poll(self, seconds: float) -> bool:
        """Fold what is new for at most about `seconds`; True when everything was read."""
        until = time.monotonic() + seconds
        while self._follower.poll():
            for stream in self._follower.streams:
                self._paces.setdefault(stream.path, _Pace()).note(stream)
            if time.monotonic() >= until:
                return False
        return True

    def catch_up(self) -> None:
        """Fold everything that is there."""
        while not self.poll(1.0):
            pass

    @property
    def engines(self) -> set[str]:
        """Names of all engines that have recorded here, picked or not."""
        return {stream.engine for stream in self._follower.streams if stream.header is not None}

    def streams(self) -> list[StreamFollower]:
        """The followers of the streams that were picked and have anything recorded."""
        return [
            stream
            for stream in self._follower.streams
            if stream.header is not None
            and (self._only is None or stream.path.name == self._only)
            and (not self._engines or stream.engine in self._engines)
        ]

    def screen(self, *, holders: int = 5) -> Screen:
        """What is known now, and what cannot be read."""
        problems = [*self._follower.problems.values()]
        problems += [stream.problem for stream in self._follower.streams if stream.problem is not None]
        views = tuple(self._view(one, holders) for one in self.streams())
        return Screen(str(self.directory), self._wall(), views, tuple(problems))

    def verdicts(self) -> dict[str, dict[str, Holds]]:
        """What holds in the last minute of each engine, over all of its pools, most important first."""
        found = {}
        for stream in self.streams():
            pools = stream.diagnose(_VERDICT_AGE_NS).holding.values()
            held = [(name, holds) for pool in pools for name, holds in pool.items()]
            found[stream.engine] = dict(sorted(held, key=lambda pair: VERDICTS[pair[0]].rank))
        return found

    def findings(self) -> dict[str, list[Finding]]:
        """What was found of each engine since its recording began, as `kvmon replay` finds it."""
        return {stream.engine: stream.diagnosis.findings() for stream in self.streams()}

    def close(self) -> None:
        """Let go of every file."""
        self._follower.close()

    def _view(self, stream: StreamFollower, holders: int) -> StreamView:
        header = stream.header
        age = stream.heartbeat_age_ns
        liveness = Liveness(
            condition=_condition(stream),
            silent_seconds=None if age is None else age / 1e9,
            last_event_wall_ns=None if header is None else header.wall_ns + stream.state.time_ns - header.mono_ns,
            pid=None if header is None else header.pid,
        )
        pace = self._paces.get(stream.path)
        return stream_view(
            stream.engine,
            stream.rank,
            stream.state,
            liveness,
            totals=stream.counts,
            rates=None if pace is None else pace.rates(),
            holders=holders,
        )


def _condition(stream: StreamFollower) -> str:
    """One of `report.view.CONDITIONS`: what the follower says of its life, told apart by what it was doing."""
    if stream.life is Life.DEAD:
        return "ended" if stream.ended else "dead"
    if stream.life is Life.UNKNOWN:
        return "unseen"
    if stream.life is Life.STALLED:
        return "stalled"
    return "idle" if stream.state.last_step is not None and not stream.has_work else "alive"


class _Pace:
    """Steps and tokens a second of engine time over its last five seconds."""

    def __init__(self) -> None:
        self._epoch: bytes | None = None
        self._samples: deque[tuple[int, int, int]] = deque()

    def note(self, stream: StreamFollower) -> None:
        """Remember where the stream is; what is older than needed is dropped."""
        header, counts = stream.header, stream.counts
        if header is None:
            return
        if header.epoch != self._epoch:
            self._epoch = header.epoch
            self._samples.clear()
            tokens = header.totals[StreamTotal.PREFILL_TOKENS] + header.totals[StreamTotal.DECODE_TOKENS]
            self._samples.append((header.mono_ns, header.totals[StreamTotal.STEPS], tokens))
        tokens = counts.stream(StreamTotal.PREFILL_TOKENS) + counts.stream(StreamTotal.DECODE_TOKENS)
        self._samples.append((stream.state.time_ns, counts.stream(StreamTotal.STEPS), tokens))
        newest = self._samples[-1][0]
        while len(self._samples) > 2 and self._samples[1][0] <= newest - _RATE_NS:
            self._samples.popleft()

    def rates(self) -> Rates:
        """The rates; absent while less than a tenth of a second was seen."""
        if len(self._samples) < 2:
            return Rates()
        (start, steps, tokens), (end, last_steps, last_tokens) = self._samples[0], self._samples[-1]
        if end - start < _RATE_NS // 50:
            return Rates()
        seconds = (end - start) / 1e9
        return Rates((last_steps - steps) / seconds, (last_tokens - tokens) / seconds)

"""What Prometheus would have scraped while a scenario ran: the exporter's own page at intervals of event time.

A scenario is simulated, its frames are written into a recording as an engine writes them, and a real `Sidecar` follows
that recording on a clock that moves from scrape to scrape. Invariants: every sample comes out of the exporter's page;
the same scenario, seed and arguments give the same samples, except `kvmon_collector_duration_seconds`, which is this
machine's time. Nothing here invents a number: where a run is too short, `lasting` gives it more of the same traffic,
and `after_s` goes on scraping an engine that has nothing to do, hangs, or is gone.

    scraped = scrape("fragmentation", seed=0)
    scraped.samples['kvmon_verdict{engine="sim",pool="kv",rank="0",verdict="fragmentation"}']  # [None, 1.0, 1.0, ...]
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from kvmon.cli.record import run_setup
from kvmon.events import Kind, decode
from kvmon.exporter.follow import Counts
from kvmon.exporter.sidecar import Sidecar
from kvmon.recording import StreamWriter
from kvmon.recording.layout import CLOSED, CURSOR, HEARTBEAT, LOST, LOST_WHY
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import Setup, find
from kvmon.serving.scenarios.traffic import delayed
from kvmon.serving.workloads import merge
from kvmon.state.frames import scan

__all__ = ["INTERVAL_S", "After", "Scraped", "lasting", "parse_page", "scrape", "setup_of"]

Words = npt.NDArray[np.uint32]

INTERVAL_S = 15
"""Seconds of event time between two scrapes: what most Prometheus servers are set to."""

_SECOND = 1_000_000_000
_BEGIN_NS = 1_000 * _SECOND  # the engine's machine has been up for a while
_EPOCH = bytes(range(16))

After = Literal["idle", "hung", "killed", "closed"]
"""How the engine is after its last frame. idle: alive, nothing recorded; hung: the same, for a run that ends in the
middle of work (it is the follower that calls it stalled); killed: gone without a word; closed: ended in order."""


@dataclass(frozen=True)
class Scraped:
    """Pages of one run. `pages[i]` was scraped `times_s[i]` seconds after the run began: series, as the exposition
    writes them, with their values. The first scrape sees an engine that has recorded nothing yet."""

    times_s: list[float]
    pages: list[dict[str, float]]

    @cached_property
    def samples(self) -> dict[str, list[float | None]]:
        """Every series with its value at each scrape, None where the page did not have it."""
        names = sorted({name for page in self.pages for name in page})
        return {name: [page.get(name) for page in self.pages] for name in names}


def setup_of(name: str, seed: int = 0, *, policy: str = "max") -> Setup:
    """The run of a scenario or its twin; `policy` picks one where a scenario compares several."""
    setups = find(name).setups(seed)[0]
    return setups[""] if "" in setups else setups[policy]


def lasting(setup: Setup, seconds: float) -> Setup:
    """The same traffic again and again, until it lasts for `seconds`; a run in which nothing can go on stays so.

    A round begins when the requests of the one before have arrived, or, where requests wait for the answer to another
    one or come all at once, when they have been served.
    """
    work = setup.workload
    longer = replace(setup, linger_s=max(setup.linger_s, seconds))
    span = float(work.arrival_ns[work.independent].max()) / _SECOND
    if span == 0.0 or not work.independent.all():
        span = run_setup(setup).duration_s
    span = max(span, 1.0)
    rounds = math.ceil(seconds / span)
    if rounds < 2:
        return longer
    repeated = merge(*(delayed(work, number * span) for number in range(rounds)), name=work.name)
    return replace(longer, workload=repeated)


def scrape(
    scenario: str | Setup,
    seed: int = 0,
    *,
    interval_s: float = INTERVAL_S,
    until_s: float = math.inf,
    idle_s: float = 0.0,
    after: After = "idle",
    after_s: float = 0.0,
    engine: str = "sim",
) -> Scraped:
    """Run a scenario (or twin, or setup) and scrape its exporter every `interval_s` of event time.

    `until_s` stops the run there, in the middle of whatever it did. The engine then records nothing for `idle_s`, and
    `after` says what becomes of it; scrapes go on for `after_s`.
    """
    setup = setup_of(scenario, seed) if isinstance(scenario, str) else scenario
    words = _recorded(setup)
    times, pages = [], []
    with tempfile.TemporaryDirectory(prefix="kvmon-scrape-") as place:
        playback = _Playback(Path(place), engine, words, until_s, lossy=bool(setup.lost_s))
        clock = _Clock()
        sidecar = Sidecar([Path(place)], state_dir=Path(place), survey_seconds=0.0, clock=clock)
        ends_s = playback.seconds + idle_s
        scrapes = math.ceil((ends_s + after_s) / interval_s) + 1
        for number in range(scrapes):
            at_s = number * interval_s
            clock.now = _BEGIN_NS + round(at_s * _SECOND)
            playback.publish(clock.now)
            if at_s >= ends_s and number:
                playback.end(after)
            _settle(sidecar, clock)
            times.append(at_s)
            pages.append(parse_page(sidecar.render(False).decode()))
        sidecar.stop()
        playback.end("closed")
    return Scraped(times, pages)


def parse_page(page: str) -> dict[str, float]:
    """Every series of a page in the text format, as it is written there, with its value."""
    lines = (line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


class _Clock:
    """The machine's clock, which engine and exporter share; ns."""

    def __init__(self) -> None:
        self.now = _BEGIN_NS

    def __call__(self) -> int:
        return self.now


def _settle(sidecar: Sidecar, clock: _Clock) -> None:
    """Let the sidecar read all there is; a microsecond a round, so that each look at the units is of its own time."""
    while sidecar.poll() or not sidecar.followers.caught_up:
        clock.now += 1_000
    clock.now += 1_000
    sidecar.poll()


def _recorded(setup: Setup) -> Words:
    """Every frame of a run."""
    pieces: list[Words] = []
    record_setup(lambda words: pieces.append(words.copy()), setup)
    return np.concatenate(pieces)


class _Playback:
    """Writes the frames of a run into a recording as their time comes, as the probe would have: published, closed,
    with totals in the header of each segment."""

    def __init__(self, directory: Path, engine: str, words: Words, until_s: float, *, lossy: bool) -> None:
        table = scan(words, verify=False)
        used = len(table.ends) if until_s == math.inf else int(np.sum(table.times <= until_s * _SECOND))
        self._words, self._ends, self._times = words, table.ends[:used], table.times[:used] + _BEGIN_NS
        self.seconds = float(self._times[-1] - _BEGIN_NS) / _SECOND if used else 0.0
        self._counts = Counts()
        self._frame = self._at = self._lost = 0
        self._lossy = lossy
        self._now = _BEGIN_NS
        self._writer: StreamWriter | None = StreamWriter(
            directory, engine, epoch=_EPOCH, clock=lambda: self._now, wall=lambda: self._now
        )
        self._segment = self._writer.next_segment(0, self._counts.totals)

    def publish(self, now_ns: int) -> None:
        """Write the frames until `now_ns`."""
        self._now = now_ns
        for begin, end, frame in self._due(now_ns):
            size = end - begin
            if self._at + size > len(self._segment.words):
                assert self._writer is not None
                self._segment = self._writer.next_segment(self._frame, self._counts.totals)
                self._at = 0
            self._segment.words[self._at : self._at + size] = memoryview(np.ascontiguousarray(self._words[begin:end]))
            self._counts.add(self._words, begin, end)
            self._at += size
            self._frame = frame
            self._segment.live[CLOSED] = self._segment.live[CURSOR] = self._at
            self._segment.live[HEARTBEAT] = int(self._times[frame - 1])
            if self._lossy:
                self._tell_loss(begin, end)

    def end(self, how: After) -> None:
        """Let the engine be gone, in order or not; nothing while it lives on, and the second time."""
        if self._writer is None or how in ("idle", "hung"):
            return
        if how == "closed":
            self._writer.close()
        else:
            self._writer.release()
        self._writer = None

    def _tell_loss(self, begin: int, end: int) -> None:
        """What the gaps among these words lack stands in the segment's header."""
        gaps = [event.fields for event in decode(self._words[begin:end].tolist()) if event.kind is Kind.GAP]
        self._lost += sum(gap["lost"] for gap in gaps)
        self._segment.live[LOST] = self._lost
        self._segment.live[LOST_WHY] = gaps[-1]["reason"] if gaps else self._segment.live[LOST_WHY]

    def _due(self, now_ns: int) -> Iterator[tuple[int, int, int]]:
        """Whole frames that are due, as many at once as half a segment holds: words from, to, and the frame after."""
        last = int(np.searchsorted(self._times, now_ns, side="right"))
        room = len(self._segment.words) // 2
        while self._frame < last:
            begin = int(self._ends[self._frame - 1]) if self._frame else 0
            frame = max(int(np.searchsorted(self._ends[:last], begin + room, side="right")), self._frame + 1)
            yield begin, int(self._ends[frame - 1]), frame

"""One life followed for an export: its records, refused allocations and curves, batch by batch, in bounded memory.

Curves are those of `kvmon.replay.timeline`, made for some hundred buckets at a time; each stretch begins with what held
when the one before ended, so where they are cut shows nowhere. Invariant: what comes out follows from the frames and
from the edges of the intervals alone, never from how the frames are cut into batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, Hole, Piece, Tail
from kvmon.diagnosis import Diagnosis, Finding, cause_of
from kvmon.errors import ConfigError
from kvmon.events import Kind
from kvmon.replay.export.records import RecordReader, Records
from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.lives import Life, split
from kvmon.replay.marked import MarkedFailures
from kvmon.replay.timeline_build import build
from kvmon.replay.timeline_model import Timeline
from kvmon.state import FrameTable, ScanEnd, StreamState, scan
from kvmon.state.curves import Curves
from kvmon.state.frames import whole_records
from kvmon.state.track import N, S
from kvmon.state.watch import R

__all__ = ["Batch", "Follower", "Holding"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_BATCH_WORDS = 1 << 17
_FRAMES, _INTERVALS = 512, 64  # buckets of one stretch of curves, at most
_MOST_INTERVALS = 20_000_000


@dataclass(frozen=True, slots=True)
class Holding:
    """What requests of one class in one state held of a pool when a frame with refused allocations began."""

    frame: int
    time_ns: int
    pool: int
    class_id: int
    state: int
    requests: int
    units: int


@dataclass(frozen=True)
class Batch:
    """Some frames of a life. `records` are good until the next batch is asked for.

    refusals    rows of the log (`state.watch.R`), refused allocations and ends of waits, in their order
    curves      the stretches of time that ended within this batch
    jumps       (place of a frame in `records.table`, how many are missing before it; 0 = that is not known)
    """

    records: Records
    refusals: Ints
    curves: tuple[Timeline, ...]
    holdings: tuple[Holding, ...]
    jumps: tuple[tuple[int, int], ...] = ()


@dataclass
class _Told(StreamDiagnosis):
    """A diagnosis that also lets the rows of the log pass on.

    A stretch of curves asks for findings, and nobody asks it for them: while it is made they are `unasked`.
    """

    taken: list[Ints] = field(default_factory=list)
    unasked: bool = False

    @property
    def findings(self) -> list[Finding]:
        return [] if self.unasked else super().findings

    def begin_anew(self) -> None:
        """What was found so far is about what came before, and does not count."""
        self.taken.clear()
        self.diagnosis = Diagnosis()
        self.diagnosis.follow(self.state)
        self.state.log_to(self.take)

    def take(self, refusals: Ints, windows: Ints) -> None:
        self.taken.append(refusals.copy())
        super().take(refusals, windows)


class Follower:
    """Follows `life` from behind `begin_ns` up to `end_ns` (ns of the engine's clock, None = all of it).

    every_ns    length of an interval of the curves; 0 = one for each frame. Where the wall clock is known, intervals
                end at its multiples
    progress    is told words as they are folded

    Raises ConfigError for intervals that are too many.
    """

    def __init__(
        self,
        life: Life,
        *,
        every_ns: int = 0,
        begin_ns: int | None = None,
        end_ns: int | None = None,
        progress: Callable[[int], None] = lambda words: None,
    ) -> None:
        first, last = life.first_ns or 0, life.last_ns or 0
        self.life = life
        self.begin_ns = first - 1 if begin_ns is None else max(begin_ns, first - 1)
        self.end_ns = last if end_ns is None else min(end_ns, last)
        self._every = every_ns
        self._phase = life.facts.wall_time_ns(0) % every_ns if every_ns and life.facts.wall_ns else 0
        self._progress = progress
        if every_ns and (self.end_ns - self.begin_ns) // every_ns > _MOST_INTERVALS:
            count = (self.end_ns - self.begin_ns) // every_ns
            raise ConfigError(f"{life.name} has {count:,} of these intervals: give a longer one")
        self._reader = RecordReader()
        self._curves: Curves | None = None
        self._failures: MarkedFailures | None = None
        self._before: Curves | None = None
        self._upto = self.begin_ns
        whole = self.begin_ns < first
        state, pieces = life.begin(None if whole else self.begin_ns, self.end_ns)
        self.told = _Told(life.facts, state, damage=list(life.damage))
        self._pieces = self._folded_until_begin(pieces)
        state.drain()
        self.told.begin_anew()
        self.refused_before = 0 if whole else state.refused - life.begin()[0].refused
        """Refused allocations of this life that came before `begin_ns`."""

    @property
    def state(self) -> StreamState:
        """The fold so far: before the first batch, what was there at the begin."""
        return self.told.state

    @property
    def exact(self) -> bool:
        """Whether the recording has everything, as its fidelity says."""
        return bool(self.state.config.get("fidelity", "exact") == "exact")

    def batches(self) -> Iterator[Batch]:
        """All of it, once."""
        for piece in self._pieces:
            until, later = split(piece, self.end_ns)
            if isinstance(until, Frames):
                yield from self._frames(until)
            elif isinstance(until, Tail):
                if self.end_ns == self.life.last_ns:
                    yield from self._tail(until)
            elif isinstance(until, Hole):
                self._hole(until)
            if later is not None:
                break
        yield Batch(self._nothing(), self._refusals(), tuple(self._until_the_end()), ())

    def missing(self) -> list[str]:
        """What of this life is not there, in words; whole when all batches were taken."""
        state, name = self.state, self.life.name
        found = [f"{name}: {reason}" for reason in dict.fromkeys(self.told.damage)]
        if state.missing_frames or state.lost_records:
            found.append(f"{name}: {state.missing_frames:,} frames and {state.lost_records:,} records are missing")
        if not state.converged and state.converged_from is None:
            found.append(f"{name}: its begin is not there, and no audit has gone round since: no state is known")
        return found

    def causes(self, refused: Ints) -> list[str]:
        """The verdict that explains each of these rows of the log of refusals."""
        exact = self.exact
        return [cause_of(row, exact) for row in refused]

    # -- pieces --

    def _folded_until_begin(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            until, later = split(piece, self.begin_ns)
            if isinstance(until, Hole):
                self._hole(until)
            elif until is not None:
                self.told.apply(until)
            if later is not None:
                return chain([later], pieces)
        return iter(())

    def _hole(self, hole: Hole) -> None:
        if self._curves is not None:
            self._curves.expect(hole.reason)
        self.told.apply(hole)
        if hole.damaged:
            self.told.damage.append(hole.reason)

    def _frames(self, piece: Frames) -> Iterator[Batch]:
        table, first = piece.table, 0
        while first < len(table.ends):
            start = int(table.ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(table.ends, start + _BATCH_WORDS, "right")), first + 1)
            if not self._every:  # a bucket for each time
                changes = np.flatnonzero(np.diff(table.times[first:last])) + 1
                last = first + int(changes[_FRAMES - 1]) if len(changes) >= _FRAMES else last
            yield self._batch(_part(piece, first, last))
            first = last

    def _tail(self, tail: Tail) -> Iterator[Batch]:
        """Records of a frame that was never closed; its time is not known, it is later than the last frame's."""
        table = scan(tail.words)
        if table.end not in (ScanEnd.ALL, ScanEnd.INCOMPLETE):
            return
        if len(table.ends):
            yield from self._frames(Frames(tail.words[: table.consumed], table))
        words = tail.words[table.consumed :]
        words = words[: whole_records(words)]
        if len(words):
            number = self.state.next_frame or 0
            ends, numbers, times = (np.array([value], np.int64) for value in (len(words), number, self.state.time_ns))
            opened = Frames(words, FrameTable(ends, numbers, times, len(words), ScanEnd.ALL))
            records = self._reader.read(opened.words, opened.table)
            self.state.apply_open(words)
            yield Batch(records, self._refusals(), (), ())

    def _nothing(self) -> Records:
        empty = np.zeros(0, np.int64)
        return self._reader.read(np.zeros(0, np.uint32), FrameTable(empty, empty, empty, 0, ScanEnd.ALL))

    # -- a batch --

    def _batch(self, part: Frames) -> Batch:
        records, jumps = self._reader.read(part.words, part.table), self._jumps(part.table.numbers)
        refusing = np.unique(records.frame[records.kind == Kind.ALLOC_FAILED]).tolist()
        curves: list[Timeline] = []
        if not self._every:
            times = np.unique(part.table.times)
            times = times[times > self._upto]
            self._open(times if len(times) else np.array([self._upto + 1], np.int64))
        holdings: list[Holding] = []
        for first, last in zip([0, *refusing], [*refusing, len(part.table.ends)], strict=True):
            if first == last:  # the first frame is one that refuses
                continue
            if first in refusing:
                holdings += self._holdings(int(part.table.numbers[first]), int(part.table.times[first]))
            curves += self._fold(_part(part, first, last))
        if not self._every:
            curves.append(self._finish())
        self._progress(len(part.words))
        return Batch(records, self._refusals(), tuple(curves), tuple(holdings), jumps)

    def _jumps(self, numbers: Ints) -> tuple[tuple[int, int], ...]:
        """Where numbers of frames do not follow each other, the frame that was folded last included."""
        expected = self.state.next_frame
        follow = np.append(numbers[0] if expected is None else expected, numbers[:-1] + 1)
        missing = numbers - follow
        return tuple((place, max(int(missing[place]), 0)) for place in np.flatnonzero(missing).tolist())

    def _fold(self, part: Frames) -> Iterator[Timeline]:
        later: Frames | None = part
        while later is not None:
            if self._curves is None:
                self._open(self._intervals())
            if self._every:
                until, later = split(later, self._upto)
            else:
                until, later = later, None
            if until is not None:
                self.told.apply(until)
            if later is not None:
                self._foresee(int(later.table.numbers[0]))
                yield self._finish()

    def _foresee(self, number: int) -> None:
        """A stretch that ends before the next frame does not know the time behind its last one, if that is lost."""
        expected = self.state.next_frame
        if self._curves is not None and expected is not None and number != expected:
            self._curves.lost(max(number - expected, 0), 0)

    def _refusals(self) -> Ints:
        """Rows of the log since the last batch."""
        self.state.drain()
        rows = np.concatenate([np.zeros((0, R.WIDTH), np.int64), *self.told.taken])
        self.told.taken.clear()
        return rows

    def _holdings(self, frame: int, time_ns: int) -> list[Holding]:
        """What live requests hold now, while that is known."""
        state = self.state
        if not state.converged:
            return []
        requests, found = state.requests, []
        rows = np.flatnonzero(requests.id)
        groups = requests.class_id[rows].astype(np.int64) << 8 | requests.state[rows]
        for number in state.pools:
            units = requests.units[rows, number].astype(np.int64)
            mine = units > 0
            keys, places = np.unique(groups[mine], return_inverse=True)
            counts, sums = np.bincount(places), np.bincount(places, units[mine])
            found += [
                Holding(frame, time_ns, number, key >> 8, key & 255, int(counts[place]), int(sums[place]))
                for place, key in enumerate(keys.tolist())
            ]
        return found

    # -- stretches of curves --

    def _intervals(self) -> Ints:
        """Ends of the next intervals."""
        first = (self._upto + self._phase) // self._every + 1
        ends = np.arange(first, first + _INTERVALS, dtype=np.int64) * self._every - self._phase
        ends = ends[ends < self.end_ns]
        return ends if len(ends) == _INTERVALS else np.append(ends, self.end_ns)

    def _open(self, ends: Ints) -> None:
        """Begin a stretch of curves behind the last one; `ends` are those of its buckets."""
        edges = np.concatenate([np.array([self._upto], np.int64), ends])
        before = self.state.refused
        self._failures = MarkedFailures(self.told, edges, before)
        self._curves = curves = Curves(self.state, edges)
        if self._before is not None:
            _continue(curves, self._before)
        elif self.state.converged:
            curves.track.now[N.DIRTY] = 1  # what holds now is looked at when the first bucket ends
            step = self.state.last_step
            if step is not None:
                said = (step.running, step.waiting, step.head_need or 0)
                curves.track.value[0, [S.RUNNING, S.WAITING, S.NEED]] = said
        self._upto = int(edges[-1])

    def _finish(self) -> Timeline:
        """The open stretch ends."""
        curves, failures = self._curves, self._failures
        if curves is None or failures is None:
            raise RuntimeError("no stretch of curves is open")
        curves.finish()
        self._before, self._curves, self._failures = curves, None, None
        self.told.unasked = True
        timeline = build(self.life, self.told, failures, curves)
        self.told.unasked = False
        return timeline

    def _until_the_end(self) -> Iterator[Timeline]:
        if self._curves is not None:
            yield self._finish()
        while self._every and self._upto < self.end_ns:
            self._open(self._intervals())
            yield self._finish()


def _continue(curves: Curves, before: Curves) -> None:
    """Begin with what held when the stretch before ended, as a bucket begins behind another one."""
    track, old = curves.track, before.track
    track.value[:] = old.value
    known = np.isfinite(old.value)
    track.least[:] = np.where(known, old.value, np.inf)
    track.most[:] = np.where(known, old.value, -np.inf)
    slots = [N.BEFORE, N.CREDIT, N.DIRTY]
    track.now[slots] = old.now[slots]


def _part(piece: Frames, first: int, last: int) -> Frames:
    """Frames `first` to `last` - 1 of a piece."""
    table = piece.table
    start, end = int(table.ends[first - 1]) if first else 0, int(table.ends[last - 1])
    places = slice(first, last)
    part = FrameTable(table.ends[places] - start, table.numbers[places], table.times[places], end - start, ScanEnd.ALL)
    return Frames(piece.words[start:end], part)

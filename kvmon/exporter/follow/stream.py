"""Follow one stream of a recording: read what is new, fold it, count it, and say how its engine is.

For everything that looks at running engines: the exporter, `kvmon top`, `kvmon status`. Invariants: what was folded
is whole and in order, and every hole is told to the state as a gap; a call of `poll` folds one piece at most, so that
nobody waits long for it. Nothing is written and nothing is served here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import Diagnosis
from kvmon.errors import NewerFormatError, RecordingError, SystemRefused
from kvmon.exporter.follow.continuation import Continuation, Saved
from kvmon.exporter.follow.recount import Counts
from kvmon.recording import Header, Live, Piece, Position, StreamReader, headers, is_alive
from kvmon.recording.layout import SEALED_CLOSED
from kvmon.state import FrameTable, ScanEnd, StreamState, Survey, find_frame, scan

__all__ = ["DEFAULT_STALL_SECONDS", "Life", "Progress", "StreamFollower", "Surveyed"]

Words = npt.NDArray[np.uint32]

DEFAULT_STALL_SECONDS = 10.0
_PERCENTILES = (50, 95, 99)
_TAIL_PATIENCE_NS = 1_000_000_000  # how long a bad tail may be words that are still on their way to this processor


class Life(Enum):
    """How an engine is, as far as its recording tells."""

    ALIVE = "alive"  # its process lives; it works or has nothing to do
    STALLED = "stalled"  # its process lives and has work, but recorded nothing for too long
    DEAD = "dead"  # the kernel dropped its lock
    UNKNOWN = "unknown"  # no permission to look at the lock


class Progress(Enum):
    """What a poll did."""

    NOTHING = 0  # nothing new
    FOLDED = 1  # folded a piece; there may be more
    RESTARTED = 2  # as FOLDED, and a new life of the engine began


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A look at every unit of a pool: when, after which frame, and the sizes of requests that it was asked about."""

    time_ns: int
    frame: int | None
    sizes: dict[str, int]
    survey: Survey


class StreamFollower:
    """Follows the stream in directory `path`, from the oldest segment of the engine's present life on.

    `fold_dead`: also fold what an engine left that is dead already; without it only who it was is read. `diagnosing`:
    judge what is folded, for `diagnose`, which knows nothing otherwise. `continued` gives the cumulative numbers of an
    earlier life of this program for an epoch. `clock` is the monotonic clock that engine and follower share, in ns.
    """

    def __init__(
        self,
        path: Path,
        *,
        fold_dead: bool = True,
        diagnosing: bool = True,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        continued: Callable[[bytes], Saved | None] = lambda epoch: None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.path = path
        self.header: Header | None = None
        self._diagnosing = diagnosing
        self._diagnosed: tuple[int, int | None, Diagnosis] | None = None
        self._began = 0
        self._begin_anew()
        self.continuation = Continuation()
        self.caught_up = False
        self.problem: str | None = None
        self.unowned: dict[int, int | None] = {}
        self._fold_dead = fold_dead
        self._stall_ns = int(stall_seconds * 1e9)
        self._continued = continued
        self._clock = clock
        self._reader: StreamReader | None = None
        self._alive: bool | None = None
        self._live: Live | None = None
        self._bad_tail: tuple[Position, int] | None = None
        self._tail_done = False
        self._epoch: bytes | None = None
        self._lost = 0
        self._surveys: dict[int, Surveyed] = {}
        self._ended: tuple[bytes, int] | None = None
        self._kept: Saved | None = None

    # -- who and how --

    @property
    def engine(self) -> str:
        """The engine's name; the directory's name until a header was read."""
        return self.header.engine if self.header else self.path.name

    @property
    def rank(self) -> int:
        """The rank; 0 until a header was read."""
        return self.header.rank if self.header else 0

    @property
    def began_ns(self) -> int:
        """Since when the cumulative numbers count: wall clock of the first segment of this life that was ever met."""
        return self._began

    @property
    def fidelity(self) -> str:
        """What the adapter sees, as it says; `exact` where it says nothing."""
        return str(self.state.config.get("fidelity", "exact"))

    @property
    def life(self) -> Life:
        """How the engine was at the last poll."""
        if self._alive is None:
            return Life.UNKNOWN
        if not self._alive:
            return Life.DEAD
        age = self.heartbeat_age_ns
        return Life.STALLED if self.has_work and age is not None and age > self._stall_ns else Life.ALIVE

    @property
    def ended(self) -> bool:
        """Whether the engine closed its recording in order."""
        return self._live is not None and self._live.state == SEALED_CLOSED

    @property
    def has_work(self) -> bool:
        """Whether something ran or waited in the last step."""
        step = self.state.last_step
        return step is not None and (step.running > 0 or step.waiting > 0)

    @property
    def heartbeat_age_ns(self) -> int | None:
        """Time since the engine last closed a frame; None before anything was read."""
        return None if self._live is None else max(0, self._clock() - self._live.heartbeat_ns)

    @property
    def backlog_bytes(self) -> int:
        """Published in the segment being read and not folded yet."""
        return 4 * max(0, self._live.cursor - self._reader.position.word) if self._live and self._reader else 0

    @property
    def lost_events(self) -> int:
        """Records that the probe could not write, and frames that were gone or damaged before they were read."""
        return self._lost + self.continuation.missing_frames

    def head_need(self, pool: int) -> int | None:
        """Units that the request at the head of the queue waits for; it waits in the first pool."""
        step = self.state.last_step
        return step.head_need if step is not None and pool == 1 else None

    def typical_sizes(self, pool: int) -> dict[str, int]:
        """Units of a request by name: percentiles of recent placements, and the head of the queue.

        Empty where requests need no contiguity: every size fits that is free.
        """
        recent = self.counts.placement_sizes(pool)
        if self.state.pools[pool].contiguity == "none" or len(recent) == 0:
            return {}
        values = np.percentile(recent, _PERCENTILES, method="inverted_cdf").tolist()
        sizes = {f"p{percent}": int(value) for percent, value in zip(_PERCENTILES, values, strict=True)}
        head = self.head_need(pool)
        return sizes if head is None else {**sizes, "head": head}

    def survey(self, pool: int, age_ns: int = 0) -> Surveyed:
        """A look at every unit of a pool; one that is not older than `age_ns` will do, and one of the same frame."""
        seen, now = self._surveys.get(pool), self._clock()
        if seen is None or (seen.frame != self.state.next_frame and now - seen.time_ns > age_ns):
            sizes = self.typical_sizes(pool)
            look = self.state.pools[pool].survey(tuple(sizes.values()))
            seen = self._surveys[pool] = Surveyed(now, self.state.next_frame, sizes, look)
        return seen

    def diagnose(self, age_ns: int = 0) -> Diagnosis:
        """The diagnosis as of now; one that is not older than `age_ns` will do, and one of the same frame."""
        seen, now, frame = self._diagnosed, self._clock(), self.state.next_frame
        if seen is None or (seen[1] != frame and now - seen[0] > age_ns):
            seen = self._diagnosed = (now, frame, self.diagnosis.as_of_now())
        return seen[2]

    # -- following --

    def poll(self) -> Progress:
        """Look at the engine and fold the next piece of what it recorded.

        A stream that cannot be read (no permission, newer format, gone) says why in `problem` and is looked at again.
        """
        try:
            progress = self._poll()
        except (RecordingError, NewerFormatError, SystemRefused) as error:
            self.problem = str(error)
            self.caught_up = True
            return Progress.NOTHING
        self.problem = None
        return progress

    def close(self) -> None:
        """Let go of the file being read."""
        if self._reader is not None:
            self._reader.close()

    def saved(self) -> Saved | None:
        """What a later life of this program needs to continue the cumulative numbers; None before they are known."""
        return None if self._epoch is None else self.continuation.save(self._epoch, self._began)

    def release(self) -> None:
        """Forget what was folded, of an engine that is dead; who it was stays known."""
        self.close()
        if self._epoch is not None and self._reader is not None:
            self._ended = (self._epoch, self._reader.position.segment)
            self._kept = self.saved()
        self._reader = self._live = self._epoch = None
        self._surveys.clear()
        self._begin_anew()
        self.continuation = Continuation()

    def _begin_anew(self) -> None:
        """Nothing was folded yet."""
        self.state, self.counts, self.diagnosis = StreamState(), Counts(), Diagnosis()
        if self._diagnosing:
            self.diagnosis.follow(self.state)
        self._diagnosed = None

    def _poll(self) -> Progress:
        self._alive = is_alive(self.path / "lock")
        reader = self._reader or self._begin()
        if reader is None:
            self.caught_up = True
            return Progress.NOTHING
        piece = reader.poll()
        if piece is None and self._alive is False and not self._tail_done:
            piece = reader.open_tail()
            self._tail_done = True
        self._live = reader.live() or self._live
        self._lost = max(self._lost, self._live.lost if self._live else 0)
        if piece is None:
            self.caught_up = True
            if self._alive is False and not self._fold_dead:
                self.release()
            return Progress.NOTHING
        restarted = self._meet(piece)
        moved = self._fold_open(piece) if piece.open_tail else self._fold(piece)
        return Progress.RESTARTED if restarted else Progress.FOLDED if moved else Progress.NOTHING

    def _begin(self) -> StreamReader | None:
        """Find the first segment of the present life; None where there is none, or nobody wants it folded."""
        dead = self._alive is False and not self._fold_dead
        if dead and self.header is not None:
            return None
        first: Header | None = None
        newest: Header | None = None
        for header in headers(self.path):
            newest = newest or header
            if first is not None and header.epoch != first.epoch:
                break  # earlier lives are over, and their numbers with them
            first = header
            if dead:
                break
        over = newest is not None and (newest.epoch, newest.index) == self._ended
        if dead or over:
            self.header = first or self.header
            return None  # where it is over but not dead, the engine is back and has not written anything yet
        # a reader says why nothing can be read, if so
        self._reader = StreamReader(self.path, Position(first.index, 0) if first else None)
        return self._reader

    def _meet(self, piece: Piece) -> bool:
        """Look at the segment that a piece is of; True when a new life of the engine begins with it."""
        header, before = piece.header, self._epoch
        if header.epoch != before:
            self.header, self._epoch = header, header.epoch
            self._begin_anew()
            kept = self._kept if self._kept is not None and self._kept.epoch == header.epoch else None
            continued = kept or self._continued(header.epoch)
            self.continuation = Continuation(continued)
            self._began = (continued.began if continued else 0) or header.wall_ns
            if header.first_frame == 0 and piece.at.word == 0 and self.continuation.resume_at is None:
                self.continuation.count_from_the_start()
            self._tail_done = self.caught_up = False
            self._surveys.clear()
            self._lost = self._live.lost if self._live else 0
        elif not piece.follows:
            self.state.gap()
        if piece.at.word == 0:
            self.counts.begin_segment(header.totals)
        return before is not None and before != header.epoch

    def _fold(self, piece: Piece) -> bool:
        words: Words = np.frombuffer(piece.data, np.uint32)
        table = scan(words)
        self._apply(words, table)
        if table.end is ScanEnd.ALL:
            self._bad_tail = None
            return True
        reader, live = self._reader, self._live
        if reader is None or live is None:
            return True
        bad = Position(piece.at.segment, piece.at.word + table.consumed)
        if table.end is ScanEnd.INCOMPLETE and piece.at.word + len(words) < live.closed and table.consumed:
            reader.rewind(bad)  # the piece was cut within a frame
            return True
        if self._alive and self._may_still_come(bad):
            reader.rewind(bad)
            return table.consumed > 0
        self._bad_tail = None
        found = find_frame(words, table.consumed + 1)
        if found is not None:
            reader.rewind(Position(piece.at.segment, piece.at.word + found))
        self.state.gap(damaged=1)
        return True

    def _may_still_come(self, bad: Position) -> bool:
        now = self._clock()
        if self._bad_tail is None or self._bad_tail[0] != bad:
            self._bad_tail = (bad, now)
        return now - self._bad_tail[1] < _TAIL_PATIENCE_NS

    def _fold_open(self, piece: Piece) -> bool:
        words: Words = np.frombuffer(piece.data, np.uint32)
        if not self.state.apply_open(words):
            self.state.gap(damaged=1)
        return True

    def _apply(self, words: Words, table: FrameTable) -> None:
        """Fold and count whole frames, with a stop where an earlier life of this program had come to."""
        resume, split = self.continuation.resume_at, 0
        if resume is not None and len(table.numbers):
            split = int(np.searchsorted(table.numbers, resume))
            self._apply_some(words, table, 0, split, counted=False)
            if split < len(table.numbers):
                missing = int(table.numbers[split]) - resume
                self.continuation.add_records(0, max(0, missing) if self.state.next_frame is None else 0)
                self.continuation.reach(self.state, self.counts)
        self._apply_some(words, table, split, len(table.numbers), counted=True)

    def _apply_some(self, words: Words, table: FrameTable, first: int, last: int, *, counted: bool) -> None:
        if first == last:
            return
        begin = int(table.ends[first - 1]) if first else 0
        end = int(table.ends[last - 1])
        part = FrameTable(
            table.ends[first:last] - begin, table.numbers[first:last], table.times[first:last], end - begin, ScanEnd.ALL
        )
        missing = self.state.missing_frames
        self.state.apply_frames(words[begin:end], part)
        if (
            self.state.time_ns == self.state.last_step_time_ns
        ):  # between steps an engine may not have named an owner yet
            self.unowned = {number: pool.unowned for number, pool in self.state.pools.items()}
        records = self.counts.add(words, begin, end)
        if counted:
            self.continuation.add_records(records, self.state.missing_frames - missing)
            self.continuation.update(self.state, self.counts)

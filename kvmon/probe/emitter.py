"""The one place where words enter a recording: publish, close frames, go on to the next segment, count what was lost.

Invariant: everything before `live[CURSOR]` in the segment is whole words of whole records, everything before
`live[CLOSED]` whole frames. A guest in somebody else's process: nothing here raises, blocks, prints, starts a thread
or computes a metric. What cannot be written is counted, and a GAP stands where it is missing: no frame that lacks a
record is closed without one.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from enum import IntFlag
from threading import get_ident
from zlib import crc32

from kvmon.events.kinds import Kind
from kvmon.events.totals import MAX_POOLS, POOL_SLOTS, STREAM_SLOTS, StreamTotal
from kvmon.events.wire import ABSENT, LONG, MAX_LONG, OP_POOL
from kvmon.recording.layout import CLOSED, CURSOR, HEARTBEAT, LOST, LOST_WHY
from kvmon.recording.writer import StreamWriter

__all__ = ["Emitter", "Loss"]

_LOW31 = (1 << 31) - 1
_STEP = LONG << 27 | Kind.STEP << 19 | 16
_TICK = LONG << 27 | Kind.TICK << 19 | 5
_GAP = LONG << 27 | Kind.GAP << 19 | 3
_CLOSING_WORDS = 32  # kept back in every segment, so that a gap can be told and a frame closed at any time
_RETRY_NS = 1_000_000_000

Step = tuple[int, int, int, int, int, int, int, int | None]
"""Start and duration in ns, prefill and decode tokens, context tokens read, running, waiting, need at the head in
units.
"""


class Loss(IntFlag):
    """Why records were lost; a bit each, as the segment's header carries them."""

    DISK = 1  # no next segment: disk full, directory gone or read-only
    SECOND_WRITER = 2
    THREAD = 4
    FORK = 8
    VALUE = 16  # a value that fits no word
    HOOK = 32  # a hook of an adapter failed and was switched off


class Emitter:
    """Publishes words for the probes of one stream.

    `owner` is the number of the pool that the records of the open frame are about, and 0 while nothing can be
    written, so that one comparison on the hot path covers both. `largest` is how many words a record may have; longer
    lists are cut in parts.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_epoch",
        "_first",
        "_gap",
        "_gap_said",
        "_make_writer",
        "_restate",
        "_retry_at",
        "_roll_at",
        "_view",
        "_writer",
        "at",
        "frame",
        "largest",
        "live",
        "lost",
        "lost_why",
        "owner",
        "pools",
        "thread",
        "time",
        "totals",
        "words",
    )

    def __init__(
        self, make_writer: Callable[[bytes], StreamWriter], clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`make_writer` opens the stream for the epoch it is given and may raise OSError; `clock` gives nanoseconds."""
        self._make_writer = make_writer
        self._clock = clock
        self._epoch = os.urandom(16)
        self._writer: StreamWriter | None = None
        self._restate: Callable[[], None] = lambda: None
        self._view = self.words = memoryview(array("I"))
        self.live = memoryview(array("Q", bytes(64)))
        self.at = self._first = self.frame = self._roll_at = self.time = 0
        self.lost = self._gap = self.largest = 0
        self._gap_said = False
        self._retry_at: int | None = None
        self.lost_why = Loss(0)
        self.owner = 0
        self.pools: list[list[int]] = []
        self.totals = [0] * STREAM_SLOTS
        self.thread = get_ident()
        os.register_at_fork(after_in_child=_forgetter(weakref.ref(self)))

    def open(self, restate: Callable[[], None]) -> bool:
        """Begin writing; `restate` is called at the start of every segment to say again what a late reader must
        know.
        """
        self._restate = restate
        return self._reopen()

    @property
    def writing(self) -> bool:
        """Whether records reach a file at this moment."""
        return self._writer is not None

    @property
    def pending(self) -> bool:
        """Whether something was recorded since the last frame closed."""
        return self.at > self._first

    def adopt_thread(self) -> None:
        """The calling thread is the one that writes from now on; call it while no other thread does."""
        self.thread = get_ident()

    def put(self, words: Sequence[int]) -> bool:
        """Publish one whole record about the current pool; False when it was lost, which is counted."""
        if not self.owner or get_ident() != self.thread:
            return self.refuse()
        try:
            record = array("I", words)
            if 0 in words:
                return self.lose(1, Loss.VALUE)
        except (TypeError, OverflowError):
            return self.lose(1, Loss.VALUE)
        at = self.at
        end = at + len(record)
        try:
            self.words[at:end] = record
        except ValueError:
            if not self._make_room(len(record)):
                return False
            at = self.at
            end = at + len(record)
            self.words[at:end] = record
        self.at = self.live[CURSOR] = end
        return True

    def select(self, pool: int) -> bool:
        """The records that follow in this frame are about `pool`; False where nothing can be written from here."""
        if not self.owner or get_ident() != self.thread:
            return self.refuse()
        if pool != self.owner:
            if pool > MAX_POOLS:
                return self.complain(Loss.VALUE)
            if not self.put((OP_POOL << 27 | pool,)):
                return False
            self.owner = pool
        return True

    def close_frame(self, step: Step | None) -> bool:
        """Close the open frame with a STEP of these numbers, or with a TICK; False where what was asked could not
        be written.
        """
        if self._writer is None:
            return False
        if self._gap:
            self._say_gap()
        at, view, live = self.at, self._view, self.live
        now = self.time = max(self._clock(), self.time)
        clock = (now & _LOW31) + 1, (now >> 31) + 1
        if step is None:
            words: tuple[int, ...] = (_TICK, self.frame + 1, at - self._first + 7, *clock)
        else:
            try:
                start, duration, prefill, decode, context, running, waiting, need = step
                words = (
                    _STEP,
                    self.frame + 1,
                    at - self._first + 18,
                    *clock,
                    (start & _LOW31) + 1,
                    (start >> 31) + 1,
                    (duration & _LOW31) + 1,
                    (duration >> 31) + 1,
                    prefill + 1,
                    decode + 1,
                    (context & _LOW31) + 1,
                    (context >> 31) + 1,
                    running + 1,
                    waiting + 1,
                    ABSENT if need is None else need + 1,
                )
                view[at : at + 16] = array("I", words)
            except (TypeError, ValueError, OverflowError):
                words = (0,)
            if 0 in words:
                self.lose(1, Loss.VALUE)
                self.close_frame(None)
                return False
        sealed = at + len(words)
        if step is None:
            view[at:sealed] = array("I", words)
        view[sealed] = crc32(view[self._first : sealed]) or 1
        # closed first: a process killed between the two leaves a whole frame, never a tail that is one
        self.at = self._first = live[CLOSED] = live[CURSOR] = sealed + 1
        live[HEARTBEAT] = now
        self.frame += 1
        self.totals[StreamTotal.FRAMES] += 1
        self.owner = 1
        return True

    def after_frame(self) -> bool:
        """Between two frames: go on to the next segment when this one is nearly full, try again where writing had
        stopped.

        True when a gap was told since the last call: the caller then begins a new sweep.
        """
        if get_ident() != self.thread:
            return False
        if self._writer is None:
            # a clock that jumps backwards must not put the next attempt off for hours
            if self._retry_at is not None and not 0 < self._retry_at - self._clock() <= _RETRY_NS:
                self._reopen()
        elif self.at > self._roll_at:
            self._roll()
        said, self._gap_said = self._gap_said, False
        return said

    def refuse(self) -> bool:
        """Count a record that cannot be written from here: from a second thread, or while nothing is written."""
        return self.lose(1, Loss.THREAD if self.owner else Loss(0))

    def lose(self, records: int, why: Loss) -> bool:
        """Count records that will never be written, where a reader can see it, and say so in the stream; always
        False.
        """
        self._gap += records
        self._count(records, why)
        # told at once, so that nothing that follows is taken for a fault of the engine; once a frame, the
        # rest when it closes
        if self.owner and not self._gap_said and get_ident() == self.thread:
            self._say_gap()
        return False

    def complain(self, why: Loss) -> bool:
        """Count something that is missing although the stream lacks nothing that a reader builds on; always False."""
        self._count(1, why)
        return False

    def close(self) -> None:
        """Close the open frame and the stream in order; what comes afterwards is counted as lost."""
        if self._writer is not None:
            if (self.at > self._first or self._gap) and get_ident() == self.thread:
                self.close_frame(None)
            writer = self._writer
            self._let_go()
            writer.close()

    def leave_to_parent(self) -> None:
        """In the child after a fork: never write into the parent's recording again."""
        if self._writer is not None:
            self._writer.abandon()
        self._let_go()
        self.lost_why |= Loss.FORK

    def _let_go(self) -> None:
        self.owner = self.largest = 0
        self.words = self._view = memoryview(array("I"))
        self.live = memoryview(array("Q", bytes(64)))
        self._writer = None
        self._retry_at = None

    def _say_gap(self) -> None:
        """Put a GAP where records are missing; there is always room for it."""
        lost, self._gap = min(self._gap, _LOW31), 0
        at = self.at
        self._view[at : at + 4] = array("I", (_GAP, lost + 1, 1, int(self.lost_why) + 1))
        self.at = self.live[CURSOR] = at + 4
        self._gap_said = True

    def _make_room(self, words: int) -> bool:
        """Close the frame early and go on to the next segment; False where a record of so many words fits nowhere."""
        if words > self.largest:
            return self.lose(1, Loss.VALUE)
        pool = self.owner
        if self.at > self._first:
            self.close_frame(None)
        self._roll()
        return self.select(pool)

    def _roll(self) -> None:
        if self._writer is None:
            return
        flat = list(self.totals)
        for pool in self.pools:
            flat += pool
        flat += [0] * (POOL_SLOTS * (MAX_POOLS - len(self.pools)))
        try:
            segment = self._writer.next_segment(self.frame, flat)
        except Exception as error:  # a guest: whatever the machine says, the engine goes on
            self._stop(Loss.DISK if isinstance(error, OSError) else Loss.VALUE)
            return
        self._view = segment.words
        self.words = segment.words[: len(segment.words) - _CLOSING_WORDS]
        self._roll_at = len(self.words) * 15 // 16
        self.largest = min(len(self.words) // 2, MAX_LONG)
        self.live = segment.live
        self.at = self._first = 0
        self._tell_loss()
        self.owner = 1
        self._restate()
        if self._gap:
            self._say_gap()

    def _reopen(self) -> bool:
        try:
            self._writer = self._make_writer(self._epoch)
        except BlockingIOError:
            self._stop(Loss.SECOND_WRITER)
            return False
        except Exception as error:  # a guest, as above
            self._stop(Loss.DISK if isinstance(error, OSError) else Loss.VALUE)
            return False
        self._roll()
        return self.writing

    def _stop(self, why: Loss) -> None:
        """Nothing can be written; the last segment stays mapped, so that its header goes on saying what is lost."""
        self.owner = self.largest = 0
        self.lost_why |= why
        self._tell_loss()
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        self._retry_at = self._clock() + _RETRY_NS

    def _count(self, records: int, why: Loss) -> None:
        self.lost += records
        self.lost_why |= why
        self._tell_loss()

    def _tell_loss(self) -> None:
        with contextlib.suppress(ValueError):  # the mapping is gone: only `lost` itself still says it
            self.live[LOST] = self.lost
            self.live[LOST_WHY] = int(self.lost_why)


def _forgetter(reference: weakref.ref[Emitter]) -> Callable[[], None]:
    def forget() -> None:
        emitter = reference()
        if emitter is not None:
            emitter.leave_to_parent()

    return forget

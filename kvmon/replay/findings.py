"""Read a whole recording or capture through a diagnosis: its findings, and the refused allocations themselves.

Invariant: the source is read and never changed, and its findings are those that were live at the end of it. Of the
refused allocations the last MOST_REFUSALS are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.capture.copying import select_streams
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, apply_piece
from kvmon.capture.reader import CaptureReader
from kvmon.capture.recorded import Life, read_recorded
from kvmon.diagnosis import HEALTHY, Diagnosis, Finding, cause_of
from kvmon.errors import InputError
from kvmon.events import FailureOutcome
from kvmon.state import StreamState
from kvmon.state.watch import R

__all__ = ["MOST_REFUSALS", "Refusal", "StreamDiagnosis", "diagnose_path", "read_pieces"]

Ints = npt.NDArray[np.int64]

MOST_REFUSALS = 20_000


@dataclass(frozen=True)
class Refusal:
    """One refused allocation with the state around it, in units of its pool where a name says nothing else.

    None is what is not known. `ended_ns`: when the wait that it began was over (None: it still lasts, or there was
    none); `past_known`: whether the state around it rests on the whole past.
    """

    time_ns: int
    frame: int
    word: int
    pool: int
    request: int | None
    class_id: int | None
    cause: str
    reason: int
    outcome: FailureOutcome
    mid_stream: bool
    waited: bool
    ended_ns: int | None
    past_known: bool
    unit_tokens: int
    need: int
    free: int
    evictable: int
    largest: int | None
    capacity: int
    active: int
    pinned: int
    deferred: int
    unowned: int | None
    reserved_slots: int
    tail_slots: int

    @classmethod
    def of_row(cls, row: list[int], cause: str, ended_ns: int | None) -> Refusal:
        """From a row of the log (`state.watch.R`)."""
        return cls(
            time_ns=row[R.TIME],
            frame=row[R.FRAME],
            word=row[R.WORD],
            pool=row[R.POOL],
            request=row[R.REQUEST] or None,
            class_id=_known(row[R.CLASS]),
            cause=cause,
            reason=row[R.REASON],
            outcome=FailureOutcome(row[R.OUTCOME]),
            mid_stream=bool(row[R.MID_STREAM]),
            waited=row[R.SEQ] > 0,
            ended_ns=ended_ns,
            past_known=bool(row[R.KNOWN]),
            unit_tokens=row[R.UNIT_TOKENS],
            need=row[R.NEED],
            free=row[R.FREE],
            evictable=row[R.EVICTABLE],
            largest=_known(row[R.LARGEST]),
            capacity=row[R.CAPACITY],
            active=row[R.ACTIVE],
            pinned=row[R.PINNED],
            deferred=row[R.DEFERRED],
            unowned=_known(row[R.UNOWNED]),
            reserved_slots=row[R.RESERVED],
            tail_slots=row[R.TAIL],
        )


def _known(value: int) -> int | None:
    return value if value >= 0 else None


@dataclass
class StreamDiagnosis:
    """One life of one stream, read to its end; `damage`: what could not be read."""

    facts: StreamFacts
    state: StreamState = field(default_factory=StreamState)
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    first_ns: int | None = None
    damage: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.diagnosis.follow(self.state)
        self.state.log_to(self.take)
        self._refused: list[list[int]] = []
        self._ended: dict[int, int] = {}

    @property
    def findings(self) -> list[Finding]:
        """What was found, most important first."""
        return self.diagnosis.findings()

    @property
    def verdict(self) -> str:
        """The one word."""
        found = self.findings
        return found[0].verdict if found else HEALTHY

    def refusals(self) -> list[Refusal]:
        """The last refused allocations, oldest first."""
        self.state.drain()
        exact = self.state.config.get("fidelity", "exact") == "exact"
        return [
            Refusal.of_row(row, cause_of(np.array(row, np.int64), exact), self._ended.get(row[R.SEQ]))
            for row in self._refused
        ]

    def apply(self, piece: Piece) -> None:
        """Fold the next piece."""
        if self.first_ns is None and isinstance(piece, Frames) and len(piece.table.times):
            self.first_ns = int(piece.table.times[0])
        apply_piece(self.state, piece)

    def take(self, refusals: Ints, windows: Ints) -> None:
        """Take rows of the two logs (`state.watch`); they are copied."""
        for row in refusals.tolist():
            if row[R.KIND] == R.REFUSED:
                self._refused.append(row)
            else:
                self._ended[row[R.SEQ]] = row[R.TIME]
        if len(self._refused) > MOST_REFUSALS:
            for row in self._refused[:-MOST_REFUSALS]:
                self._ended.pop(row[R.SEQ], None)
            del self._refused[:-MOST_REFUSALS]
        self.diagnosis.take(refusals, windows)


def diagnose_path(path: Path, progress: Callable[[int], None] = lambda words: None) -> list[StreamDiagnosis]:
    """Diagnose a capture file, or all streams of a recording directory; `progress` is told words as they are folded.

    A life of an engine is a diagnosis of its own. Raises InputError where `path` is neither, or holds nothing that a
    diagnosis can be made from.
    """
    found: list[StreamDiagnosis] = []
    for piece in read_pieces(path):
        if isinstance(piece, StreamDiagnosis):
            found.append(piece)
            continue
        if not found:
            continue  # damage before the first life
        found[-1].apply(piece)
        if isinstance(piece, Hole) and piece.damaged:
            found[-1].damage.append(piece.reason)
        progress(len(piece.words) if isinstance(piece, Frames) else 0)
    if not any(stream.state.pools or stream.state.steps for stream in found):
        raise InputError(f"{path} holds no step and no pool that can be read: 'kvmon verify {path}' says what is there")
    return found


def read_pieces(path: Path) -> Iterator[StreamDiagnosis | Piece]:
    """Everything in a capture file or a recording directory: a diagnosis where a life begins, then its pieces, which
    are good until the next one. Raises InputError where `path` is neither."""
    if path.is_dir():
        for stream in select_streams(path):
            for piece in read_recorded(stream):
                yield StreamDiagnosis(piece.facts) if isinstance(piece, Life) else piece
        return
    with CaptureReader(path) as reader:
        damage = [str(damage) for damage in reader.damage]
        for captured in reader.streams:
            state, after = reader.begin(captured)
            yield StreamDiagnosis(captured.facts, state, damage=list(damage))
            yield from reader.pieces(captured, after=after, reuse=True)

"""Is a recording or a capture whole, and did the allocator keep its own rules: what `kvmon verify` says.

Every event is folded with all checks on. The fold's own counts are not trusted: after each piece the states of all
units are counted again from their status words, by other code. What cannot be verified (damage, a late start) is said,
never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.capture.column_kernels import count_events
from kvmon.capture.copying import select_streams
from kvmon.capture.index import Damage, damaged_headers
from kvmon.capture.pieces import Frames, Hole, Piece, StreamFacts, Tail, apply_piece
from kvmon.capture.reader import CaptureReader
from kvmon.capture.recorded import Life, read_recorded
from kvmon.errors import InvariantError
from kvmon.events.wire import CACHED, DEFERRED, PINNED, REFS
from kvmon.state import Fault, FaultKind, StreamState
from kvmon.state.arrays import STATES

__all__ = ["StreamReport", "Verification", "recount", "verify_path", "verify_pieces"]

_NO_PROGRESS: Callable[[int], None] = lambda words: None  # noqa: E731


@dataclass
class StreamReport:
    """What was found in one life of one stream. Frames are counted from the start of that life."""

    facts: StreamFacts
    frames: int = 0
    events: int = 0
    unit_operations: int = 0
    first_frame: int | None = None
    first_time_ns: int | None = None
    last_time_ns: int | None = None
    verified_from: int | None = None
    converged: bool = False
    recounts: int = 0
    open_records: bool = False
    lost_records: int = 0
    fault_count: int = 0
    faults: list[Fault] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Everything that is there could be verified, and no rule was broken."""
        return not self.fault_count and not any(hole.damaged for hole in self.holes) and self.verified_from is not None

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "engine": self.facts.engine,
            "rank": self.facts.rank,
            "clean": self.clean,
            "frames": self.frames,
            "events": self.events,
            "unit_operations": self.unit_operations,
            "first_frame": self.first_frame,
            "first_time_ns": self.first_time_ns,
            "last_time_ns": self.last_time_ns,
            "verified_from_frame": self.verified_from,
            "converged_at_end": self.converged,
            "recounts": self.recounts,
            "open_frame": self.open_records,
            "lost_records": self.lost_records,
            "fault_count": self.fault_count,
            "faults": [_fault_json(fault) for fault in self.faults],
            "holes": [
                {"reason": hole.reason, "frame": hole.frame, "frames": hole.frames, "damaged": hole.damaged}
                for hole in self.holes
            ],
        }


@dataclass
class Verification:
    """What was found in a file or directory."""

    path: str
    streams: list[StreamReport]
    damage: list[Damage] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is damaged, and every stream is clean, of which there is at least one."""
        return not self.damage and bool(self.streams) and all(stream.clean for stream in self.streams)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "path": self.path,
            "clean": self.clean,
            "damage": [
                {"what": damage.what, "offset": damage.offset, "stream": damage.stream} for damage in self.damage
            ],
            "streams": [stream.as_json() for stream in self.streams],
        }


def verify_path(path: Path, progress: Callable[[int], None] = _NO_PROGRESS) -> Verification:
    """Verify a capture file, or all streams of a recording directory; `progress` is told words as they are folded.

    Raises InputError where `path` is neither, InvariantError where kvmon's own counts contradict a recount.
    """
    if path.is_dir():
        reports: list[StreamReport] = []
        for stream in select_streams(path):
            reports += _verify_recorded(stream, progress)
        return Verification(str(path), reports)
    with CaptureReader(path) as reader:
        reports = []
        for captured in reader.streams:
            state, after = reader.begin(captured, verify=True)
            pieces = reader.pieces(captured, after=after, reuse=True)
            reports.append(verify_pieces(captured.facts, pieces, state, progress))
        chunks = [chunk for captured in reader.streams for chunk in captured.chunks]
        damage = reader.check() + damaged_headers(path, chunks)
        return Verification(str(path), reports, sorted(damage, key=lambda one: one.offset))


def verify_pieces(
    facts: StreamFacts,
    pieces: Iterable[Piece],
    state: StreamState | None = None,
    progress: Callable[[int], None] = _NO_PROGRESS,
) -> StreamReport:
    """Verify the pieces of one life of a stream; `state` is what came before them, where that is known."""
    check = _Check(facts, state or StreamState(verify=True))
    for piece in pieces:
        check.take(piece)
        progress(len(piece.words) if isinstance(piece, Frames) else 0)
    return check.finish()


def recount(state: StreamState) -> None:
    """Count the states of all units again, from their status words, and compare.

    Raises InvariantError where the fold's counts differ or do not sum to the capacity.
    """
    for pool in state.pools.values():
        status = pool.status
        held = (status & REFS) > 0
        which = np.select(
            [held, (status & DEFERRED) > 0, (status & CACHED) == 0, (status & PINNED) > 0],
            [STATES.index(name) for name in ("active", "deferred", "free", "pinned")],
            STATES.index("cached"),
        )
        counted = dict(zip(STATES, np.bincount(which, minlength=len(STATES)).tolist(), strict=True))
        shared = int(((status & REFS) > 1).sum())
        if counted != pool.units or shared != pool.shared or sum(pool.units.values()) != pool.capacity_units:
            raise InvariantError(
                f"pool {pool.name}: the fold says {pool.units}, {pool.shared} shared; counted again it is {counted}, "
                f"{shared} shared, of {pool.capacity_units}: please report this as a bug of kvmon"
            )


def _verify_recorded(path: Path, progress: Callable[[int], None]) -> list[StreamReport]:
    reports: list[StreamReport] = []
    check: _Check | None = None
    for piece in read_recorded(path):
        if isinstance(piece, Life):
            if check is not None:
                reports.append(check.finish())
            check = _Check(piece.facts, StreamState(verify=True))
            continue
        if check is None:
            check = _Check(StreamFacts(path.name), StreamState(verify=True))
        check.take(piece)
        progress(len(piece.words) if isinstance(piece, Frames) else 0)
    return reports if check is None else [*reports, check.finish()]


class _Check:
    """Folds the pieces of one life and keeps the report."""

    def __init__(self, facts: StreamFacts, state: StreamState) -> None:
        self._state = state
        self._report = StreamReport(facts, verified_from=state.next_frame if state.converged else None)
        self._damaged: list[Fault] = []

    def take(self, piece: Piece) -> None:
        """Fold one piece and count again."""
        report, state = self._report, self._state
        if isinstance(piece, Hole):
            report.holes.append(piece)
            if piece.damaged:
                self._damage(piece.frame, piece.word)
        elif isinstance(piece, Frames):
            records, units = count_events(piece.words)
            report.events += int(records)
            report.unit_operations += int(units)
            report.frames += len(piece.table.numbers)
            if report.first_frame is None:
                report.first_frame, report.first_time_ns = int(piece.table.numbers[0]), int(piece.table.times[0])
            report.last_time_ns = int(piece.table.times[-1])
        if isinstance(piece, Tail):
            report.open_records = True
            if not state.apply_open(piece.words):
                self._damage(state.next_frame, 0)
        else:
            apply_piece(state, piece)
        if report.verified_from is None:
            report.verified_from = state.converged_from
        recount(state)
        report.recounts += 1

    def finish(self) -> StreamReport:
        """The report, with the faults of all pieces in the order of the stream."""
        report, state = self._report, self._state
        holes = {hole.frame for hole in report.holes}
        found = state.faults()
        told = [fault for fault in found if _begins_at(fault) in holes]
        faults = [fault for fault in found if fault not in told] + self._damaged
        report.faults = sorted(faults, key=lambda fault: (fault.frame, fault.word))
        report.fault_count = state.fault_count - len(told) + len(self._damaged)
        report.lost_records, report.converged = state.lost_records, state.converged
        return report

    def _damage(self, frame: int | None, word: int) -> None:
        number = frame if frame is not None else self._state.next_frame or 0
        self._damaged.append(Fault(FaultKind.DAMAGED_FRAME, number, word, self._state.time_ns, 1))


def _begins_at(fault: Fault) -> int | None:
    """The first frame that a FRAME_MISSING says is missing; None for other faults."""
    return fault.frame - (fault.value or 0) if fault.kind is FaultKind.FRAME_MISSING else None


def _fault_json(fault: Fault) -> dict[str, Any]:
    return {
        "kind": fault.kind.name.lower(),
        "frame": fault.frame,
        "word": fault.word,
        "time_ns": fault.time_ns,
        "pool": fault.pool,
        "unit": fault.unit,
        "request": fault.request,
        "value": fault.value,
        "text": str(fault),
    }

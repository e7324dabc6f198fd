"""Every stream of a recording or a capture, read once: its diagnosis, its demand, its outcome and its trail.

Invariant: the source is read and never changed. Each life of each engine is a recording of its own, so that a mixture
of engines is never replayed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kvmon.capture.pieces import Frames, Hole, Piece
from kvmon.errors import InputError
from kvmon.replay.demand import Demand
from kvmon.replay.demand_reading import DemandOfStream
from kvmon.replay.findings import StreamDiagnosis, read_pieces
from kvmon.replay.followed import Followed
from kvmon.replay.outcome import Outcome
from kvmon.replay.trail import Trail

__all__ = ["Recording", "read_recordings", "read_stream"]


@dataclass(frozen=True)
class Recording:
    """One life of one engine, read to its end. `outcome` is None where no pool was seen."""

    stream: StreamDiagnosis = field(repr=False)
    demand: Demand
    outcome: Outcome | None
    trail: Trail = field(repr=False)

    @property
    def name(self) -> str:
        """Engine and rank."""
        return self.stream.facts.name


def read_stream(stream: StreamDiagnosis, pieces: Iterable[Piece]) -> Recording:
    """Read the pieces of one life to its end."""
    reading = _Reading(stream)
    for piece in pieces:
        reading.apply(piece)
    return reading.recording()


def read_recordings(path: Path, progress: Callable[[int], None] = lambda words: None) -> list[Recording]:
    """Read a capture file, or all streams of a recording directory; `progress` is told words as they are read.

    Raises InputError where `path` is neither, or holds nothing that can be read.
    """
    found: list[_Reading] = []
    for piece in read_pieces(path):
        if isinstance(piece, StreamDiagnosis):
            found.append(_Reading(piece))
            continue
        if not found:
            continue  # damage before the first life
        found[-1].apply(piece)
        progress(len(piece.words) if isinstance(piece, Frames) else 0)
    if not any(reading.followed.state.pools or reading.followed.state.steps for reading in found):
        raise InputError(f"{path} holds no step and no pool that can be read: 'kvmon verify {path}' says what is there")
    return [reading.recording() for reading in found]


class _Reading:
    def __init__(self, stream: StreamDiagnosis) -> None:
        self.followed = Followed(stream)
        self.demand = DemandOfStream(stream.facts.name, stream.state)

    def apply(self, piece: Piece) -> None:
        self.followed.apply(piece)
        self.demand.apply(piece)
        if isinstance(piece, Hole) and piece.damaged:
            self.followed.stream.damage.append(piece.reason)

    def recording(self) -> Recording:
        demand = self.demand.demand()
        outcome = self.followed.outcome(len(demand)) if 1 in self.followed.state.pools else None
        return Recording(self.followed.stream, demand, outcome, self.followed.trail())

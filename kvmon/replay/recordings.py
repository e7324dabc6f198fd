"""Every stream of a recording or a capture, read once: its diagnosis, its demand, its outcome and its trail.

Invariant: the source is read and never changed. Each life of each engine is a recording of its own, so that a mixture
of engines is never replayed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from kvmon.capture.pieces import Frames, Hole, Piece
from kvmon.errors import InputError
from kvmon.replay.demand import Demand
from kvmon.replay.demand_reading import DemandOfStream
from kvmon.replay.findings import StreamDiagnosis, read_pieces
from kvmon.replay.followed import Followed
from kvmon.replay.outcome import Outcome
from kvmon.replay.trail import Trail
from kvmon.state import StreamState

__all__ = ["Recording", "read_recordings", "read_stream"]


@dataclass(frozen=True)
class Recording:
    """One life of one engine, read to its end, in so many steps. `outcome` is None where no pool was seen, or where the
    steps were more than anybody asked for; demand and trail are empty then."""

    stream: StreamDiagnosis = field(repr=False)
    demand: Demand
    outcome: Outcome | None
    trail: Trail = field(repr=False)
    steps: int

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


def read_recordings(
    path: Path, progress: Callable[[int], None] = lambda words: None, *, most_steps: int | None = None
) -> list[Recording]:
    """Read a capture file, or all streams of a recording directory; `progress` is told words as they are read. A life
    of more than `most_steps` is diagnosed and nothing else of it is kept, so that memory is bounded.

    Raises InputError where `path` is neither, or holds nothing that can be read.
    """
    found: list[_Reading] = []
    for piece in read_pieces(path):
        if isinstance(piece, StreamDiagnosis):
            found.append(_Reading(piece, most_steps))
            continue
        if not found:
            continue  # damage before the first life
        found[-1].apply(piece)
        progress(len(piece.words) if isinstance(piece, Frames) else 0)
    if not any(reading.stream.state.pools or reading.stream.state.steps for reading in found):
        raise InputError(f"{path} holds no step and no pool that can be read: 'kvmon verify {path}' says what is there")
    return [reading.recording() for reading in found]


class _Reading:
    def __init__(self, stream: StreamDiagnosis, most_steps: int | None = None) -> None:
        self.stream = stream
        self._most_steps, self._steps_before = most_steps, stream.state.steps
        self._followed: Followed | None = Followed(stream)
        self._demand = DemandOfStream(stream.facts.name, stream.state)

    @property
    def steps(self) -> int:
        """How many were read."""
        return self.stream.state.steps - self._steps_before

    def apply(self, piece: Piece) -> None:
        if self._followed is None:
            self.stream.apply(piece)
        else:
            self._followed.apply(piece)
            self._demand.apply(piece)
            if self._most_steps is not None and self.steps > self._most_steps:
                self._give_up()
        if isinstance(piece, Hole) and piece.damaged:
            self.stream.damage.append(piece.reason)

    def recording(self) -> Recording:
        demand = self._demand.demand()
        if self._followed is None:
            unread = replace(demand, missing=f"its {self.steps:,} steps are more than was asked for")
            return Recording(self.stream, unread, None, Followed().trail(), self.steps)
        outcome = self._followed.outcome(len(demand)) if 1 in self.stream.state.pools else None
        return Recording(self.stream, demand, outcome, self._followed.trail(), self.steps)

    def _give_up(self) -> None:
        """Go on with the diagnosis alone."""
        state = self.stream.state
        state.drain()
        state.log_to(self.stream.take)
        self._followed = None
        self._demand = DemandOfStream(self.stream.facts.name, StreamState())

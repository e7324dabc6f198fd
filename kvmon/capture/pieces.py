"""What a stream consists of when it is read, from a capture or from a recording: frames, holes and tails.

One vocabulary for both sources, so that replay, `kvmon verify` and `kvmon capture` do not ask where the words come
from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.errors import CaptureError
from kvmon.events.totals import MAX_POOLS, POOL_SLOTS, STREAM_SLOTS
from kvmon.state import FrameTable, StreamState

__all__ = ["Frames", "Hole", "Piece", "StreamFacts", "Tail", "apply_piece"]

_TOTALS = STREAM_SLOTS + POOL_SLOTS * MAX_POOLS


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One life of one rank: who wrote the stream, and what its clocks mean.

    `wall_ns` and `mono_ns` are the same moment on the wall clock and on the engine's monotonic clock, in which all
    times of the stream are given. `totals` are the cumulative counts when the first frame of the capture began
    (`events.totals`).
    """

    engine: str
    rank: int = 0
    epoch: bytes = bytes(16)
    boot_id: bytes = bytes(16)
    pid: int = 0
    wall_ns: int = 0
    mono_ns: int = 0
    totals: tuple[int, ...] = field(default=(0,) * _TOTALS, repr=False)

    @property
    def name(self) -> str:
        """Engine and rank, as people write them."""
        return f"{self.engine}-{self.rank}"

    def wall_time_ns(self, time_ns: int) -> int:
        """A time of the stream on the wall clock, ns since 1970."""
        return self.wall_ns + time_ns - self.mono_ns

    def as_json(self) -> dict[str, Any]:
        """For the STREAM chunk and for `--json`; totals without the zeros at their end."""
        totals = list(self.totals)
        while totals and totals[-1] == 0:
            totals.pop()
        return {**asdict(self), "epoch": self.epoch.hex(), "boot_id": self.boot_id.hex(), "totals": totals}

    @classmethod
    def from_json(cls, value: Any) -> StreamFacts:
        """The other way. Raises CaptureError where `value` is no description of a stream."""
        try:
            totals = tuple(int(total) for total in value["totals"])[:_TOTALS]
            return cls(
                engine=str(value["engine"]),
                epoch=bytes.fromhex(value["epoch"]),
                boot_id=bytes.fromhex(value["boot_id"]),
                totals=totals + (0,) * (_TOTALS - len(totals)),
                **{name: int(value[name]) for name in ("rank", "pid", "wall_ns", "mono_ns")},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CaptureError(f"a stream of the capture is not described: {type(error).__name__}: {error}") from None


@dataclass(frozen=True, slots=True)
class Frames:
    """Whole, sound frames in a row. Where the source reuses its room, `words` are good until the next piece."""

    words: npt.NDArray[np.uint32]
    table: FrameTable


@dataclass(frozen=True, slots=True)
class Hole:
    """Something is missing between two pieces, or was there and is not sound.

    `frame` is the number of the first frame that is missing, None where that is not known; `frames` how many are
    missing, as far as their numbers tell; `word` counts from the start of that frame to the first wrong word;
    `damaged` says that bytes were there.
    """

    reason: str
    frame: int | None = None
    frames: int = 0
    word: int = 0
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Tail:
    """Records of a frame that its writer never closed, because it died."""

    words: npt.NDArray[np.uint32]


Piece = Frames | Hole | Tail


def apply_piece(state: StreamState, piece: Piece) -> None:
    """Fold a piece. A hole takes from the state what it can no longer know."""
    if isinstance(piece, Frames):
        state.apply_frames(piece.words, piece.table)
    elif isinstance(piece, Tail):
        state.apply_open(piece.words)
    elif piece.damaged or piece.frames:
        state.gap(damaged=int(piece.damaged))

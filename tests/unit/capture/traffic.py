"""Recordings and frames for the tests of captures, and the comparison of two states to the last number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.capture import Frames
from kvmon.capture.recorded import read_recorded
from kvmon.events import Kind, checksum, encode
from kvmon.state import StreamState
from kvmon.state.arrays import Misc
from kvmon.state.checkpoint import dump, load
from tests.toy_engine import FakeClock, ToyEngine

# Where the fold stood in the batch of words that it was given last: no part of the state.
_OF_THE_BATCH = (Misc.AT, Misc.FRAME_AT, Misc.FRAME_START, Misc.POOL, Misc.LAST_FAILURE)


def record(directory: Path, steps: int, *, name: str = "toy", close: bool = True, **options: Any) -> ToyEngine:
    """A recording of a toy engine that ran so many steps."""
    options.setdefault("clock", FakeClock())
    engine = ToyEngine(directory, name, **options)
    engine.run(steps)
    if close:
        engine.close()
    return engine


def words_of(path: Path) -> npt.NDArray[np.uint32]:
    """The words of all frames of a recorded stream."""
    return np.concatenate([piece.words for piece in read_recorded(path) if isinstance(piece, Frames)])


def frame(number: int, time_ns: int, records: list[list[int]]) -> list[int]:
    """A frame that a TICK closes."""
    body = [word for words in records for word in words]
    closing = encode(Kind.TICK, seq=number, words=len(body) + 6, time=time_ns, checksum=1)
    words = np.array(body + closing, np.uint32)
    words[-1] = checksum(words[:-1].tobytes())
    return words.tolist()


def same(one: StreamState, other: StreamState) -> bool:
    """Whether two states are equal in every array and number."""
    return _picture(one) == _picture(other)


def _picture(state: StreamState) -> bytes:
    detailed = state._detail is not None
    copy = load(dump(state), detail=detailed, verify=False)
    for slot in _OF_THE_BATCH:
        copy._misc[slot] = 0
    return dump(copy)

"""The steps of a capture or a recording as columns: how long each took and what it computed.

Invariant: frames are taken as they are read, damage and all; nothing is folded, so a late start or a hole costs the
steps in it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.capture.copying import select_streams
from kvmon.capture.pieces import Frames, Hole, Piece
from kvmon.capture.reader import CaptureReader
from kvmon.capture.recorded import Life, read_recorded
from kvmon.events import FIELDS, Kind, field_offsets
from kvmon.events.wire import LONG

__all__ = ["Steps", "read_steps"]

Floats = npt.NDArray[np.float64]

_COLUMNS = ("start", "duration", "prefill", "decode", "context")
_STEP_WORDS, _TICK_WORDS = 17, 6
_TICK_HEAD = LONG << 27 | Kind.TICK << 19 | (_TICK_WORDS - 1)


@dataclass(frozen=True)
class Steps:
    """Steps of every life and rank of one engine: when each began on the engine's clock (int64, n), then float64 (n)
    each: ns, tokens, sequences, tokens of context read."""

    engine: str
    start_ns: npt.NDArray[np.int64]
    duration_ns: Floats
    prefill_tokens: Floats
    decode_sequences: Floats
    context_tokens: Floats

    def __len__(self) -> int:
        return len(self.duration_ns)


def read_steps(
    path: Path,
    progress: Callable[[int], None] = lambda words: None,
    damaged: Callable[[str], None] = lambda what: None,
) -> list[Steps]:
    """The steps of each engine in a capture file or a recording directory; `progress` is told words as they are read,
    `damaged` what could not be.

    An engine without a step has empty columns. Raises InputError where `path` is neither.
    """
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for engine, piece in _pieces(path, damaged):
        columns = found.setdefault(engine, [])
        if isinstance(piece, Hole) and piece.damaged:
            damaged(piece.reason)
        if isinstance(piece, Frames):
            columns.append(_columns(piece))
            progress(len(piece.words))
    empty = np.empty((len(_COLUMNS), 0), np.int64)
    joined = {engine: np.concatenate([empty, *columns], axis=1) for engine, columns in found.items()}
    return [Steps(engine, columns[0], *columns[1:].astype(np.float64)) for engine, columns in joined.items()]


def _pieces(path: Path, damaged: Callable[[str], None]) -> Iterator[tuple[str, Piece | None]]:
    if path.is_dir():
        for stream in select_streams(path):
            engine = stream.name.rpartition("-")[0]
            for piece in read_recorded(stream):
                if isinstance(piece, Life):
                    engine = piece.facts.engine
                yield engine, None if isinstance(piece, Life) else piece
        return
    with CaptureReader(path) as reader:
        for damage in reader.damage:
            damaged(str(damage))
        for captured in reader.streams:
            yield captured.facts.engine, None
            for piece in reader.pieces(captured, reuse=True):
                yield captured.facts.engine, piece


def _columns(piece: Frames) -> npt.NDArray[np.int64]:
    """(5, steps) of the frames that a STEP closes."""
    words, ends = piece.words, piece.table.ends
    # Every frame ends with one or the other, and no field of a STEP can look like the head of a TICK.
    starts = ends[words[ends - _TICK_WORDS] != _TICK_HEAD] - _STEP_WORDS
    at = field_offsets(Kind.STEP)
    kinds = {field.name: field.type for field in FIELDS[Kind.STEP]}
    columns = np.empty((len(_COLUMNS), len(starts)), np.int64)
    for row, name in enumerate(_COLUMNS):
        value = words[starts + at[name]].astype(np.int64) - 1
        if kinds[name] == "wide":
            value += (words[starts + at[name] + 1].astype(np.int64) - 1) << 31
        columns[row] = value
    return columns

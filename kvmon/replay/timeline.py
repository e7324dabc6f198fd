"""Read timelines: each life of a capture or a recording folded once, in memory that does not depend on its length.

Extremes are taken by the kernels of the fold after every record (`kvmon.state.track_kernels`); this module chooses the
buckets and runs the diagnosis beside, `timeline_build.py` names what came out. Invariant: the source is read and never
changed; the same source gives the same timelines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, Hole, Piece
from kvmon.errors import ConfigError, InputError
from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.lives import Life, open_lives, split
from kvmon.replay.marked import MarkedFailures
from kvmon.replay.timeline_build import build
from kvmon.replay.timeline_model import Timeline
from kvmon.state.curves import Curves

__all__ = ["BUCKETS", "CELLS", "COLUMNS", "edges_between", "read_timeline", "read_timelines"]

Ints = npt.NDArray[np.int64]

BUCKETS, COLUMNS, CELLS = 1000, 400, 128


def read_timelines(
    path: Path,
    *,
    stream: str | None = None,
    buckets: int = BUCKETS,
    columns: int = COLUMNS,
    cells: int = CELLS,
    window: tuple[int | None, int | None] = (None, None),
    progress: Callable[[int], None] = lambda words: None,
) -> list[Timeline]:
    """The timelines of a capture file or a recording directory, one a life that has frames.

    stream      the name of a rank or of one life; all without it
    buckets     how many the time is divided into; fewer where it has fewer nanoseconds
    columns, cells  of the maps; columns hold whole buckets, so there are at most as many
    window      (begin, end) in ns of the engine's clock: only what is behind begin, up to end; None = all
    progress    is told words as they are folded

    `Timeline.worst_ns`: the end of the frame at which most requests waited for memory, together with those that were
    refused or aborted in it; of several the one at which a pool had the smallest share available; of those the first.

    Raises ConfigError for impossible numbers and an unknown stream, InputError where `path` or the window holds no
    frame that can be read.
    """
    if buckets < 1 or columns < 1 or cells < 1:
        raise ConfigError(f"a timeline of {buckets} buckets, {columns} columns, {cells} cells is none: give 1 or more")
    found = []
    with open_lives(path) as source:
        for life in source.named(stream):
            bounds = _bounds(life, window)
            if bounds is not None:
                edges = edges_between(*bounds, buckets)
                found.append(read_timeline(life, edges, columns=columns, cells=cells, progress=progress))
    if not found:
        where = "that can be read" if window == (None, None) else "in that window"
        raise InputError(f"{path} holds no frame {where}: 'kvmon verify {path}' says what is there")
    return found


def read_timeline(
    life: Life,
    edges: Ints,
    *,
    columns: int = COLUMNS,
    cells: int = CELLS,
    progress: Callable[[int], None] = lambda words: None,
) -> Timeline:
    """The timeline of one life over these edges (ns, increasing), with the findings that held in that time."""
    begin, end = int(edges[0]), int(edges[-1])
    whole = life.first_ns is None or begin < life.first_ns
    state, pieces = life.begin(None if whole else begin, end)
    told = StreamDiagnosis(life.facts, state, damage=list(life.damage))
    first = state if whole else life.begin()[0]
    refused = first.refused  # those before a capture that begins with a checkpoint are not in it
    pieces = _folded_until(begin, told, pieces, progress)
    state.drain()
    failures = MarkedFailures(told, edges, state.refused - refused)
    curves = Curves(state, edges, columns=min(columns, len(edges) - 1), cells=cells)
    for piece in pieces:
        part, rest = split(piece, end)
        if isinstance(part, Hole):
            curves.expect(part.reason)
        if part is not None:
            _apply(told, part, progress)
        if rest is not None:
            break
    curves.finish()
    return build(life, told, failures, curves)


def edges_between(begin_ns: int, end_ns: int, buckets: int) -> Ints:
    """Edges (n + 1) of at most `buckets` buckets of the same width, a nanosecond or more; `end_ns` is behind
    `begin_ns`."""
    span = end_ns - begin_ns
    count = min(buckets, span)
    width, rest = divmod(span, count)
    places = np.arange(count + 1, dtype=np.int64)
    edges: Ints = begin_ns + width * places + rest * places // count
    return edges


def _bounds(life: Life, window: tuple[int | None, int | None]) -> tuple[int, int] | None:
    """The time before the first bucket and the end of the last one; None where nothing is between them."""
    if life.first_ns is None or life.last_ns is None:
        return None
    begin, end = window
    before = life.first_ns - 1
    first = before if begin is None else max(begin, before)
    last = life.last_ns if end is None else min(end, life.last_ns)
    return (first, last) if last > first else None


def _folded_until(
    begin_ns: int, told: StreamDiagnosis, pieces: Iterator[Piece], progress: Callable[[int], None]
) -> Iterator[Piece]:
    """Fold what ended at or before `begin_ns`; what follows it."""
    for piece in pieces:
        part, rest = split(piece, begin_ns)
        if part is not None:
            _apply(told, part, progress)
        if rest is not None:
            return chain([rest], pieces)
    return iter(())


def _apply(told: StreamDiagnosis, piece: Piece, progress: Callable[[int], None]) -> None:
    told.apply(piece)
    if isinstance(piece, Hole) and piece.damaged:
        told.damage.append(piece.reason)
    if isinstance(piece, Frames):
        progress(len(piece.words))

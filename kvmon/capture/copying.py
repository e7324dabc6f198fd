"""From a recording directory to a capture: every stream, or some of them, or only the last minutes.

One pass in bounded memory. Each life of an engine becomes a stream of its own, because its frames are counted from its
own start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from kvmon.capture.pieces import Hole, Piece, StreamFacts, apply_piece
from kvmon.capture.reader import CaptureReader
from kvmon.capture.recorded import Life, facts_of, read_recorded, segment_times
from kvmon.capture.sharing import Sharer
from kvmon.capture.writer import CaptureWriter, StreamSink
from kvmon.errors import CaptureError, RecordingError
from kvmon.recording import StreamReader, find_streams, headers
from kvmon.recording.reader import Position
from kvmon.state import StreamState

__all__ = ["Copied", "began_ns", "copy_capture", "copy_recording", "select_streams"]


@dataclass(frozen=True, slots=True)
class Copied:
    """One stream of the new capture and where it came from."""

    facts: StreamFacts
    sink: StreamSink
    source: str
    alive: bool | None
    holes: tuple[Hole, ...]


def select_streams(directory: Path, names: Sequence[str] = ()) -> list[Path]:
    """The streams of a recording directory, all or those named (`<engine>-<rank>`, as their directories are).

    Raises RecordingError where the directory holds none, or none of a name.
    """
    found = {path.name: path for path in find_streams(directory)}
    if not found:
        raise RecordingError(f"{directory} holds no stream: give the directory the engine has in KVMON_DIR")
    unknown = [name for name in names if name not in found]
    if unknown:
        raise RecordingError(f"no stream '{unknown[0]}' in {directory}: it has {', '.join(found)}")
    return [found[name] for name in names] if names else list(found.values())


def copy_recording(
    streams: Sequence[Path],
    writer: CaptureWriter,
    *,
    last_ns: int | None = None,
    share: Sharer | None = None,
    progress: Callable[[int], None] = lambda words: None,
) -> list[Copied]:
    """Copy recorded streams into a capture; `progress` is told the number of words after each piece. With `share`, what
    it takes out is not copied.

    With `last_ns`, a stream begins with the segment in which that much time before its end lies. What came before is
    folded, not written: the state at that point becomes the first checkpoint, so that nothing of it is unknown.

    Raises RecordingError where nothing can be read.
    """
    copied = []
    for path in streams:
        first = None if last_ns is None else _first_segment(path, last_ns)
        copied += _copy_stream(path, writer, first, share, progress)
    if not copied:
        raise RecordingError(_nothing(streams[0].parent if streams else Path()))
    return copied


def copy_capture(
    source: Path, writer: CaptureWriter, *, share: Sharer, progress: Callable[[int], None] = lambda words: None
) -> list[Copied]:
    """Copy a capture into another one, without what `share` takes out; damage becomes holes, and so does the end of one
    that was cut off.

    Raises InputError as `CaptureReader` does, and where nothing can be read.
    """
    copied = []
    with CaptureReader(source) as reader:
        cut = [] if reader.closed_in_order else list(reader.damage)
        for stream in reader.streams:
            state, after = reader.begin(stream)
            facts = share.facts(stream.facts)
            sink = writer.add_stream(facts, state=None if after is None else share.state(state))
            holes = []
            ends = [Hole(damage.what, damaged=True) for damage in cut if damage.stream in (None, stream.number)]
            for piece in chain(reader.pieces(stream, after=after, reuse=True), ends):
                clean, before = share.piece(piece), sink.words
                if clean is not None:
                    sink.add(clean)
                if isinstance(clean, Hole):
                    holes.append(clean)
                progress(sink.words - before)
            sink.flush()
            copied.append(Copied(facts, sink, facts.name, None, tuple(holes)))
    if not copied:
        raise CaptureError(_nothing(source))
    return copied


def _nothing(source: Path) -> str:
    return f"{source} holds nothing that can be read: 'kvmon verify {source}' says what is there"


def began_ns(source: Path, names: Sequence[str] = ()) -> int:
    """The earliest wall clock that a stream of a capture or recording names, ns since 1970; 0 where none does."""
    if source.is_dir():
        facts = [facts_of(header) for path in select_streams(source, names) for header in headers(path)]
    else:
        with CaptureReader(source) as reader:
            facts = [stream.facts for stream in reader.streams]
    return min((one.wall_ns for one in facts if one.wall_ns), default=0)


def _copy_stream(
    path: Path, writer: CaptureWriter, first: int | None, share: Sharer | None, progress: Callable[[int], None]
) -> list[Copied]:
    epoch, state = _fold_before(path, first) if first is not None else (None, None)
    alive = StreamReader(path).alive()
    copied: list[Copied] = []
    holes: list[Hole] = []
    for piece, facts in _shared(read_recorded(path, first=first), share):
        if isinstance(piece, Life):
            known = state if state is not None and state.converged and piece.facts.epoch == epoch else None
            if share is not None and known is not None:
                known = share.state(known)
            sink = writer.add_stream(facts or piece.facts, state=known)
            holes = []
            copied.append(Copied(facts or piece.facts, sink, path.name if share is None else "", alive, ()))
            continue
        if not copied:
            continue  # a damaged segment before the first sound one: nothing is known of its stream
        sink = copied[-1].sink
        before = sink.words
        sink.add(piece)
        if isinstance(piece, Hole):
            holes.append(piece)
            copied[-1] = replace(copied[-1], holes=tuple(holes))
        progress(sink.words - before)
    for stream in copied:
        stream.sink.flush()
    return copied


def _shared(pieces: Iterator[Life | Piece], share: Sharer | None) -> Iterator[tuple[Life | Piece, StreamFacts | None]]:
    """Each piece as it may be seen, a life with what may be known of it; everything as it is without `share`."""
    for piece in pieces:
        if share is None:
            yield piece, None
        elif isinstance(piece, Life):
            yield piece, share.facts(piece.facts)
        elif (clean := share.piece(piece)) is not None:
            yield clean, None


def _fold_before(path: Path, first: int) -> tuple[bytes | None, StreamState | None]:
    epoch, state = None, StreamState()
    for piece in read_recorded(path, stop=first):
        if isinstance(piece, Life):
            epoch, state = piece.facts.epoch, StreamState()
        else:
            apply_piece(state, piece)
    return epoch, state


def _first_segment(path: Path, last_ns: int) -> int | None:
    """The segment in which the time `last_ns` before the stream's end lies; None where that is before its beginning."""
    times = segment_times(path)
    if not times:
        return None
    reader = StreamReader(path, Position(times[-1][0], 0))
    try:
        reader.poll()
        live = reader.live()
    finally:
        reader.close()
    end = max(times[-1][1], live.heartbeat_ns if live else 0)
    early = [index for index, began in times if began <= end - last_ns]
    return early[-1] if early and early[-1] != times[0][0] else None

"""Chunks that are handed on in parts, while the rest of them is still made: nothing depends on where they are cut."""

from __future__ import annotations

import random
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from kvmon.capture import CaptureReader, CaptureWriter, Frames, StreamFacts
from kvmon.capture import reader as reading
from kvmon.errors import CaptureError
from kvmon.state import StreamState, scan
from tests.unit.capture.traffic import record, same, words_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A capture with several chunks, and the words that are in it."""
    folder = tmp_path_factory.mktemp("parts")
    record(folder, 3000)
    words = words_of(folder / "toy-0")
    with CaptureWriter(folder / "x.kvmon", checkpoint_operations=4000) as writer:
        writer.add_stream(StreamFacts("toy")).write(words)
    return folder / "x.kvmon", words


@pytest.mark.parametrize("part", [1, 64, 1000, 1 << 17])
def test_the_words_are_the_same_however_they_are_cut(
    part: int, recorded: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every frame once and whole, with its number and time, in memory that is used again and in new memory."""
    path, words = recorded
    monkeypatch.setattr(reading, "PART_WORDS", part)
    table = scan(words)
    with CaptureReader(path) as reader:
        (stream,) = reader.streams
        for reuse in (False, True):
            pieces = [
                (piece.words.copy(), piece.table)
                for piece in reader.pieces(stream, reuse=reuse)
                if isinstance(piece, Frames)
            ]
            assert np.array_equal(np.concatenate([words for words, _ in pieces]), words)
            assert [n for _, part_of in pieces for n in part_of.numbers.tolist()] == table.numbers.tolist()
            assert [t for _, part_of in pieces for t in part_of.times.tolist()] == table.times.tolist()
            assert all(len(words) == part_of.ends[-1] == part_of.consumed for words, part_of in pieces)
            chunks = sum(chunk.kind == 2 for chunk in stream.chunks)
            assert chunks > 2 and (len(pieces) > chunks if part < 1000 else len(pieces) >= chunks)


def test_an_abandoned_reading_leaves_no_trace(
    recorded: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeking here and there, and going away in the middle of a chunk: no memory is given to two at once."""
    path, words = recorded
    monkeypatch.setattr(reading, "PART_WORDS", 200)
    table, draw = scan(words), random.Random(1)
    with CaptureReader(path) as reader:
        (stream,) = reader.streams
        for _ in range(30):
            place = draw.randrange(len(table.times))
            given = reader.pieces(stream, reuse=True)
            for _ in range(draw.randrange(5)):
                next(given)
            del given
            state = StreamState()
            state.apply(words[: table.ends[place]])
            assert same(reader.state_at(stream, int(table.times[place])), state)


def test_a_reader_that_was_closed_gives_nothing_more(recorded: tuple[Path, np.ndarray]) -> None:
    """It ends, and never waits for what will not come."""
    path, _ = recorded
    reader = CaptureReader(path)
    given = reader.pieces(reader.streams[0])
    next(given)
    reader.close()
    with pytest.raises((CaptureError, CancelledError)):
        for _ in range(10_000):
            next(given)

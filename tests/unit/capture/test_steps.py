"""Steps as columns, from a recording and from its capture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvmon.capture import CaptureReader, CaptureWriter, Frames, StreamFacts
from kvmon.capture.copying import copy_recording, select_streams
from kvmon.capture.steps import read_steps
from kvmon.errors import InputError
from kvmon.events import Kind, decode
from tests.unit.capture.traffic import frame, record


def test_a_recording_and_its_capture_hold_the_same_steps(tmp_path: Path) -> None:
    """The columns are the fields of every STEP, one by one, from either source."""
    directory, path = tmp_path / "run", tmp_path / "run.kvmon"
    directory.mkdir()
    record(directory, 300)
    with CaptureWriter(path) as writer:
        copy_recording(select_streams(directory), writer)
    (recorded,), (captured,) = read_steps(directory), read_steps(path)
    assert recorded.engine == captured.engine == "toy"
    with CaptureReader(path) as reader:
        pieces = [piece for piece in reader.pieces(reader.streams[0]) if isinstance(piece, Frames)]
    events = [event for piece in pieces for event in decode(piece.words.tolist()) if event.kind is Kind.STEP]
    assert len(events) == len(recorded) > 0
    for name, column in (
        ("duration", "duration_ns"),
        ("prefill", "prefill_tokens"),
        ("decode", "decode_sequences"),
        ("context", "context_tokens"),
    ):
        expected = [event.fields[name] for event in events]
        assert getattr(recorded, column).tolist() == getattr(captured, column).tolist() == expected


def test_engines_are_told_apart_and_ranks_are_not(tmp_path: Path) -> None:
    """Ranks of one engine share its columns; another engine has its own; a progress counts the words."""
    record(tmp_path, 40, name="one")
    record(tmp_path, 40, name="two")
    words: list[int] = []
    found = {steps.engine: steps for steps in read_steps(tmp_path, words.append)}
    assert set(found) == {"one", "two"} and sum(words) > 0
    path = tmp_path / "ranks.kvmon"
    with CaptureWriter(path) as writer:
        for rank in (0, 1):
            with_frames = writer.add_stream(StreamFacts("ranked", rank))
            with_frames.write(np.array(frame(0, 1, []), np.uint32))
    (ranked,) = read_steps(path)
    assert (ranked.engine, len(ranked)) == ("ranked", 0)  # frames that a TICK closes are no steps


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    """An empty directory and a file of another kind."""
    with pytest.raises(InputError, match="holds no stream"):
        read_steps(tmp_path)
    (tmp_path / "x.kvmon").write_bytes(b"nothing")
    with pytest.raises(InputError):
        read_steps(tmp_path / "x.kvmon")

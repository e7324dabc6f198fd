"""Random damage to a small capture and to a recording: no traceback, no hang, and never another answer than that of the
whole one without a word about it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.capture import CaptureReader, Frames
from kvmon.capture.recorded import read_recorded
from kvmon.errors import InputError
from kvmon.recording.layout import HEADER_BYTES
from tests.integration.bad_captures import Inputs
from tests.integration.verbs_asked import READS, ask


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All inputs by name."""
    return Inputs(tmp_path_factory.mktemp("inputs"))


Change = Callable[[bytes], bytes]


def _flip(place: float, bit: int) -> Change:
    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + bytes(byte ^ 1 << bit for byte in data[at : at + 1]) + data[at + 1 :]

    return change


def _without(place: float, length: int) -> Change:
    return lambda data: data[: int(place * len(data))] + data[int(place * len(data)) + length :]


def _zeros(place: float, length: int) -> Change:
    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        end = min(at + length, len(data))
        return data[:at] + bytes(end - at) + data[end:]

    return change


PLACES = st.floats(0, 1, exclude_max=True)
CHANGES = st.lists(
    st.one_of(
        st.builds(_flip, PLACES, st.integers(0, 7)),
        st.builds(_without, PLACES, st.sampled_from([1, 8, 500, 1 << 30])),
        st.builds(_zeros, PLACES, st.sampled_from([4, 100, 3000])),
    ),
    min_size=1,
    max_size=3,
)
ASKED = ("replay --no-what-if", "why", "verify", "fit", "replay --at", "holders")


def captured_words(path: Path) -> list[bytes] | None:
    """The words of whole frames, stream by stream; None where it cannot be opened."""
    try:
        with CaptureReader(path) as reader:
            pieces = ((stream, reader.pieces(stream)) for stream in reader.streams)
            return [
                np.concatenate(
                    [np.empty(0, np.uint32)] + [one.words for one in some if isinstance(one, Frames)]
                ).tobytes()
                for _, some in pieces
            ]
    except InputError:
        return None


def recorded_words(path: Path) -> list[bytes] | None:
    """The same of the first stream of a recording."""
    pieces = [piece.words for piece in read_recorded(path / "toy-0") if isinstance(piece, Frames)]
    return [np.concatenate([np.empty(0, np.uint32), *pieces]).tobytes()]


def _hold(path: Path, same: bool) -> None:
    for verb in ASKED:
        said = ask(READS[verb], path)
        assert said.code in (0, 1, 3), (verb, said)
        assert "internal error" not in said.err and "Traceback" not in said.err + said.out, (verb, said)
        assert all(line.startswith("kvmon: ") for line in said.err.splitlines()), (verb, said)
        if verb == "verify" and said.code == 0:
            assert same, said
        if not same:
            assert said.damage or (said.code == 3 and said.err), (verb, said)


BOUNDED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@BOUNDED
@given(CHANGES)
def test_whatever_happens_to_a_capture(inputs: Inputs, tmp_path: Path, changes: list[Change]) -> None:
    """No traceback, no hang, and no other answer than that of the whole capture without a word about damage."""
    data = inputs["sound"].read_bytes()
    for change in changes:
        data = change(data) or b"\0"
    path = tmp_path / "x.kvmon"
    path.write_bytes(data)
    _hold(path, captured_words(path) == captured_words(inputs["sound"]))


@BOUNDED
@given(CHANGES)
def test_whatever_happens_to_a_recording(inputs: Inputs, tmp_path: Path, changes: list[Change]) -> None:
    """The same of the words in a segment."""
    path = tmp_path / "recording"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(inputs["recording"], path)
    (segment,) = path.glob("*/*.seg")
    data = segment.read_bytes()
    head, body = data[:HEADER_BYTES], data[HEADER_BYTES:]
    for change in changes:
        body = change(body)
    segment.write_bytes(head + body)
    _hold(path, recorded_words(path) == recorded_words(inputs["recording"]))

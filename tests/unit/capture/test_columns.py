"""Columns: what was split comes back bit for bit, and what is no payload is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvmon.capture import prediction
from kvmon.capture.column_kernels import SHAPES
from kvmon.capture.columns import Joiner, Splitter
from kvmon.errors import CaptureError
from kvmon.events import FIELDS, UNIT_KINDS, Kind, encode
from kvmon.events.wire import ABSENT, LONG, MAX_UNIT, OP_POOL
from kvmon.state import scan
from tests.unit.capture.traffic import frame, record, words_of

SPLITTER, JOINER = Splitter(), Joiner()
unit = st.integers(1, 40) | st.integers(1, MAX_UNIT)
COUNT = st.integers(0, 50) | st.integers(0, ABSENT - 2)
VALUES = {
    "count": COUNT,
    "maybe": st.none() | COUNT,
    "id": st.integers(1, 20) | st.integers(1, ABSENT - 1),
    "wide": st.integers(0, (1 << 62) - 1),
    "maybe_wide": st.none() | st.integers(0, (1 << 62) - 1),
    "units": st.lists(unit, max_size=20).map(tuple),
    "status": st.lists(st.integers(1 << 31, (1 << 32) - 1), min_size=1, max_size=20),
    "hashes": st.lists(st.integers(0, (1 << 64) - 1), max_size=5),
    "text": st.text(max_size=20),
}
LONG_KINDS = [kind for kind in Kind if kind > Kind.TICK]


@st.composite
def records(draw: st.DrawFn) -> list[int]:
    """Any record that is not the end of a frame, of kinds that no kvmon knows too."""
    choice = draw(st.integers(0, 9))
    if choice < 5:
        return encode(draw(st.sampled_from(UNIT_KINDS)), units=draw(st.lists(unit, min_size=1, max_size=30)))
    if choice == 5:
        return [OP_POOL << 27 | draw(st.integers(1, 16))]
    if choice == 6:
        body = draw(st.lists(st.integers(1, ABSENT), max_size=8))
        return [LONG << 27 | draw(st.sampled_from([3, 31, 200, 255])) << 19 | len(body), *body]
    kind = draw(st.sampled_from(LONG_KINDS))
    words = encode(kind, **{field.name: draw(VALUES[field.type]) for field in FIELDS[kind]})
    if kind is Kind.DEVICE_SAMPLE and draw(st.booleans()):  # as an earlier kvmon wrote it
        words = [words[0] - (len(words) - 14), *words[1:14]]
    if draw(st.booleans()):  # fields that a newer kvmon appended
        words = [words[0] + 1, *words[1:], draw(st.integers(1, ABSENT))]
    return words


@given(st.lists(st.lists(records(), max_size=12), min_size=1, max_size=6), st.integers(0, 1 << 60))
def test_what_was_split_comes_back(frames: list[list[list[int]]], time_ns: int) -> None:
    """Frames of any records come back bit for bit, with the table that a scan of them gives."""
    listed = [frame(number, time_ns + number, body) for number, body in enumerate(frames)]
    words = np.array([word for words in listed for word in words], np.uint32)
    out = np.empty(len(words), np.uint32)
    ends, numbers, times = JOINER.join(SPLITTER.split(words), out)
    table = scan(words)
    assert (out == words).all()
    assert (ends.tolist(), numbers.tolist(), times.tolist()) == (
        table.ends.tolist(),
        table.numbers.tolist(),
        table.times.tolist(),
    )


def test_the_columns_of_a_kind_never_change_their_shape() -> None:
    """Payloads in old captures are taken apart by these widths: what was appended to a kind is rest, not a column."""
    widths = {Kind.ENGINE_ERROR: 7, Kind.DEVICE_SAMPLE: 13, Kind.STEP: 16, Kind.REQUEST_ARRIVED: 7, Kind.CLAIMS: 5}
    assert {kind: int(SHAPES[kind, 0]) for kind in widths} == widths


def test_traffic_of_an_engine_comes_back(tmp_path: Path) -> None:
    """Real traffic, with steps and audits, comes back bit for bit and compressed to less than a byte a word."""
    record(tmp_path, 400)
    words = words_of(tmp_path / "toy-0")
    payload = SPLITTER.split(words)
    out = np.empty(len(words), np.uint32)
    JOINER.join(payload, out)
    assert (out == words).all()
    assert len(zstandard.compress(payload, 1)) < len(words)


def test_units_handed_out_in_order_of_release_cost_nothing() -> None:
    """A free list that is served first in, first out is guessed: the column of units is mostly zero."""
    order = np.random.default_rng(1).permutation(np.arange(1, 2001))
    body = [encode(Kind.ALLOC, units=order.tolist()), encode(Kind.FREE, units=order.tolist())]
    words = np.array(frame(0, 1, [*body, encode(Kind.ALLOC, units=order.tolist())]), np.uint32)
    payload = SPLITTER.split(words)
    _, n_ops, n_counts, n_units = np.frombuffer(payload, np.uint32, 4)
    planes = payload[28 + n_ops + 1 + payload[28 + n_ops] * n_counts]
    column = payload[28 + n_ops + 2 + payload[28 + n_ops] * n_counts :][: n_units * planes]
    last = [column[plane * n_units + n_units - 1999 : (plane + 1) * n_units] for plane in range(planes)]
    assert not any(any(plane) for plane in last)


@given(st.data())
def test_a_payload_that_contradicts_itself_is_refused(data: st.DataObject) -> None:
    """Whatever stands in a payload, joining it gives words or one error, and never more words than were promised."""
    words = np.array(
        frame(0, 5, [encode(Kind.ALLOC, units=[1, 2, 7]), encode(Kind.ENGINE_CONFIG, text="{}")]), np.uint32
    )
    payload = bytearray(SPLITTER.split(words))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    out = np.zeros(len(words), np.uint32)
    try:
        JOINER.join(bytes(payload[:cut]), out)
    except CaptureError:
        return
    assert scan(out, verify=False).consumed in (0, len(out))


def test_words_that_are_no_frames_are_refused() -> None:
    """A word that begins no record is an error that says what to do."""
    with pytest.raises(CaptureError, match=r"check them with kvmon\.state\.scan"):
        SPLITTER.split(np.array([10 << 27 | 1, 5], np.uint32))


def test_kernels_that_are_made_have_names_of_their_own() -> None:
    """Cached machine code is found by name: processes that compile at once would mix up kernels that share one."""
    made = [value for name, value in vars(prediction).items() if name.startswith(("_encode_", "_decode_"))]
    assert len(made) == len({kernel.py_func.__qualname__ for kernel in made}) == 10

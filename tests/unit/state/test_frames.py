"""Finding whole frames: damage is named, survived, and never folded."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from kvmon.events import Kind, checksum, encode
from kvmon.state import ScanEnd, StreamState, find_frame, scan


def frame(number: int, *records: list[int]) -> list[int]:
    """A frame of these records."""
    body = [word for record in records for word in record]
    tick = encode(Kind.TICK, seq=number, words=len(body) + 6, time=number, checksum=1)[:-1]
    return [*body, *tick, checksum(array("I", [*body, *tick]))]


FRAMES = [frame(number, encode(Kind.ALLOC, units=range(number + 1, number * 3 + 2))) for number in range(12)]
WHOLE = np.array([word for one in FRAMES for word in one], np.uint32)


def test_whole_frames() -> None:
    """Every frame is found with its number and time, and nothing is left over."""
    table = scan(WHOLE)
    assert table.numbers.tolist() == table.times.tolist() == list(range(12))
    assert table.consumed == len(WHOLE)
    assert table.end is ScanEnd.ALL


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 0xFFFFFFFF))
def test_one_changed_word_costs_one_frame(at: int, change: int) -> None:
    """Whatever word is changed, the frames before it pass, its own does not, and those after it are found again."""
    words = WHOLE.copy()
    words[at] ^= np.uint32(change)
    table = scan(words)
    hit = int(np.searchsorted(scan(WHOLE).ends, at, side="right"))
    assert table.numbers.tolist() == list(range(hit))
    assert table.end is not ScanEnd.ALL
    found = find_frame(words, table.consumed + 1)
    if hit < 11:
        assert found is not None
        assert scan(words, start=found).numbers.tolist() == list(range(hit + 1, 12))


@given(st.integers(0, len(WHOLE)))
def test_cut_anywhere(at: int) -> None:
    """A stream that ends within a frame is incomplete from that frame on."""
    table = scan(WHOLE[:at])
    assert table.consumed == max([0, *(end for end in scan(WHOLE).ends.tolist() if end <= at)])
    assert table.end is (ScanEnd.ALL if table.consumed == at else ScanEnd.INCOMPLETE)


def test_tail_that_is_a_whole_frame() -> None:
    """A writer killed before it could say that a frame is closed leaves a tail with that frame, and it is folded."""
    text = '{"capacity_units":40,"unit_tokens":4,"fresh":true}'
    state = StreamState()
    state.apply(np.array(frame(0, encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=text)), np.uint32))
    tail = [*frame(1, encode(Kind.ALLOC, units=[3, 5])), *encode(Kind.ALLOC, units=[7]), *encode(Kind.SHARE, units=[7])]
    assert state.apply_open(np.array(tail, np.uint32))
    assert state.next_frame == 2
    assert (state.pools[1].active, state.pools[1].shared) == (3, 1)


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=80))
def test_noise(noise: list[int]) -> None:
    """Random words are never a frame, and never crash a fold."""
    words: npt.NDArray[np.uint32] = np.array(noise, np.uint32)
    state = StreamState()
    assert len(state.apply(words).numbers) == 0
    state.apply_open(words)


@given(st.sampled_from([kind for kind in Kind if kind > 31]), st.integers(0, 3))
def test_records_too_short_for_their_kind(kind: Kind, words: int) -> None:
    """A sound checksum over a record without its fields does not make the fold read beyond it."""
    short = [31 << 27 | kind << 19 | words, *[1] * words]
    StreamState().apply(np.array(frame(0, short), np.uint32))


@given(st.lists(st.sampled_from([kind for kind in Kind if kind > 33]), max_size=9), st.data())
def test_records_that_contradict_everything(kinds: list[Kind], data: st.DataObject) -> None:
    """Sound frames of nonsense are folded without a crash, and states of units still sum to the capacity."""
    text = '{"capacity_units":20,"unit_tokens":4,"fresh":true,"contiguity":"required"}'
    attached = encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=text)
    records = [attached]
    for kind in kinds:
        count = data.draw(st.integers(11, 16))
        small = data.draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
        records.append([31 << 27 | kind << 19 | count, *small])
    records += [encode(Kind(data.draw(st.integers(1, 9))), units=data.draw(UNITS)) for _ in range(6)]
    state = StreamState(verify=True)
    state.apply(np.array(frame(0, *records), np.uint32))
    for pool in state.pools.values():
        assert sum(pool.units.values()) == pool.capacity_units
        assert pool.largest_free == max(pool.free_runs().tolist(), default=0)


UNITS = st.lists(st.integers(1, 30), min_size=1, max_size=8)

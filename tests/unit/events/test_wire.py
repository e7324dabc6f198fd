"""The wire format: what is encoded is decoded, no word is zero, and damage is an error and never a crash."""

from __future__ import annotations

import zlib
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.crc import CRC_TABLES, crc32
from kvmon.errors import InputError
from kvmon.events import FIELDS, FIRST_FIELDS, Kind, checksum, decode, encode, field_offsets, record_words, status_word
from kvmon.events.wire import ABSENT, MAX_LONG, MAX_UNIT

UNITS = st.lists(st.integers(1, MAX_UNIT), min_size=1, max_size=40)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "count": st.integers(0, ABSENT - 2),
    "maybe": st.none() | st.integers(0, ABSENT - 2),
    "id": st.integers(1, ABSENT - 1),
    "sum": st.integers(1, ABSENT),
    "wide": st.integers(0, (1 << 62) - 1),
    "maybe_wide": st.none() | st.integers(0, (1 << 62) - 1),
    "units": UNITS.map(tuple),
    "status": st.lists(st.integers(1, ABSENT), max_size=40).map(tuple),
    "hashes": st.lists(
        st.tuples(st.integers(1, ABSENT), st.integers(1, ABSENT)).map(lambda halves: halves[0] | halves[1] << 32),
        max_size=9,
    ).map(tuple),
    "text": st.text(max_size=50),
}


@st.composite
def records(draw: st.DrawFn) -> tuple[Kind, dict[str, Any]]:
    """A kind and values for all of its fields."""
    kind = draw(st.sampled_from(Kind))
    return kind, {name: draw(VALUES[type_]) for name, type_ in FIELDS[kind]}


@given(st.lists(records(), max_size=12))
def test_every_kind_comes_back(written: list[tuple[Kind, dict[str, Any]]]) -> None:
    """Records of every kind decode to what was encoded, in order, and no word of them is zero."""
    words = [word for kind, values in written for word in encode(kind, **values)]
    assert all(0 < word <= ABSENT for word in words)
    assert [(event.kind, event.fields) for event in decode(words)] == written


@given(UNITS)
def test_units_are_the_shortest_of_three_forms(units: list[int]) -> None:
    """One unit is one word, a run two, a list one more than its units."""
    words = encode(Kind.ALLOC, units=units)
    run = units == list(range(units[0], units[0] + len(units)))
    assert len(words) == (1 if len(units) == 1 else 2 if run else len(units) + 1)
    assert record_words(words, 0) == len(words)


@given(records(), st.data())
def test_cut_records_are_an_error(record: tuple[Kind, dict[str, Any]], data: st.DataObject) -> None:
    """A record that ends too early is refused, wherever it was cut."""
    words = encode(record[0], **record[1])
    if len(words) > 1:
        cut = data.draw(st.integers(1, len(words) - 1))
        with pytest.raises(InputError):
            list(decode(words[:cut]))


@given(st.lists(st.integers(0, ABSENT), max_size=60))
def test_noise_is_decoded_or_refused(words: list[int]) -> None:
    """Random words give events or an InputError, never another exception."""
    try:
        for event in decode(words):
            assert event.position < len(words)
    except InputError:
        pass


@given(st.lists(st.integers(1, ABSENT), max_size=70))
def test_compiled_checksum_is_zlibs(words: list[int]) -> None:
    """The fold's checksum is the probe's."""
    data = array("I", words)
    compiled = crc32(np.array(words, np.uint32), 0, len(words), CRC_TABLES)
    assert compiled == zlib.crc32(data)
    assert checksum(data) == (compiled or 1)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Kind.ALLOC, {"units": ()}),
        (Kind.ALLOC, {"units": (0,)}),
        (Kind.FREE, {"units": (MAX_UNIT + 1,)}),
        (Kind.REQUEST_ADMITTED, {"request": 0}),
        (Kind.REQUEST_ADMITTED, {}),
        (Kind.CLAIMS, {"available": -1}),
        (Kind.CLAIMS, {"available": ABSENT - 1}),
        (Kind.GAP, {"lost": 1 << 62, "reason": 1}),
        (Kind.AUDIT_SLICE, {"start": 1, "status": (0,)}),
        (Kind.REQUEST_HASHES, {"request": 1, "hash_tokens": 1, "first_page": 0, "hashes": (1 << 64,)}),
        (Kind.ASSIGN, {"request": 1, "group": 0, "units": range(1, MAX_LONG + 1)}),
    ],
)
def test_values_that_do_not_fit(kind: Kind, values: dict[str, Any]) -> None:
    """A value without a place on the wire is refused with the name of the kind."""
    with pytest.raises(InputError, match=kind.name.lower()):
        encode(kind, **values)


def test_status_words() -> None:
    """A status word holds references and flags, is never zero, and keeps to its bits."""
    assert status_word(0)
    assert status_word(5, cached=True) & 0xFFFFFF == 5
    assert status_word(-3) == status_word(0)
    assert status_word(1 << 30) & 0x7FFFFFFF == 0xFFFFFF
    assert len({status_word(0, cached=c, pinned=p, deferred=d) for c in (0, 1) for p in (0, 1) for d in (0, 1)}) == 8


def test_offsets_are_where_the_words_are() -> None:
    """A fold that reads by offset finds what was encoded."""
    words = encode(Kind.ALLOC_FAILED, request=7, need=9, contiguity=2, free=3, evictable=0, reason=1, outcome=1)
    offsets = field_offsets(Kind.ALLOC_FAILED)
    assert words[offsets["need"]] == 10
    assert words[offsets["largest"]] == ABSENT
    assert len(words) == offsets["outcome"] + 1


SAMPLE: dict[str, Any] = {
    **{"device": 1, "used": 2, "free": 3, "total": 4, "reserved": 5, "allocated": 6, "inactive": 7},
    **{"largest_free": 1 << 40, "kv_pool": None, "weights": 0, "retries": 8, "ooms": None, "uuid": "GPU-5d9c"},
}


def cut_short(words: list[int], fields: int) -> list[int]:
    """A DEVICE_SAMPLE with its first fields alone, as a kvmon that had no others wrote it."""
    width = {"count": 1, "maybe": 1, "wide": 2, "maybe_wide": 2}
    size = sum(width[field.type] for field in FIELDS[Kind.DEVICE_SAMPLE][:fields])
    return [words[0] - (len(words) - 1 - size), *words[1 : 1 + size]]


def test_a_record_of_an_earlier_version_lacks_what_was_appended() -> None:
    """Fields that came later are absent in it, not zero; one that ends within the first ones is damaged."""
    words = encode(Kind.DEVICE_SAMPLE, **SAMPLE)
    first = len(FIRST_FIELDS[Kind.DEVICE_SAMPLE])
    assert [field.name for field in FIRST_FIELDS[Kind.DEVICE_SAMPLE]] == [*SAMPLE][:first] and first == 7
    for fields in range(first, len(SAMPLE)):
        names = [*SAMPLE]
        expected = {**SAMPLE, **dict.fromkeys(names[fields:]), "uuid": ""}
        assert [event.fields for event in decode(cut_short(words, fields))] == [expected]
    with pytest.raises(InputError, match="ends before its field 'inactive'"):
        list(decode(cut_short(words, first - 1)))


def test_fields_can_be_appended_behind_a_text() -> None:
    """A text says how long it is: what a newer kvmon puts behind it is no part of it."""
    words = encode(Kind.DEVICE_SAMPLE, **SAMPLE)
    newer = [words[0] + 2, *words[1:], 7, 7]
    assert [event.fields for event in decode(newer)] == [SAMPLE]


def test_numbers_of_kinds_are_permanent() -> None:
    """Numbers that recordings in the world carry: a change here is a new format."""
    assert [kind.value for kind in Kind if kind < 10] == list(range(1, 10))
    assert (Kind.STEP, Kind.TICK, Kind.POOL_ATTACHED, Kind.REQUEST_ARRIVED) == (32, 33, 35, 40)
    assert (Kind.ASSIGN, Kind.ALLOC_FAILED, Kind.CLAIMS, Kind.AUDIT_SLICE, Kind.GAP) == (50, 60, 70, 90, 94)

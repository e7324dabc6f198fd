"""What is shared of a recording: nothing that names anybody, and everything that a diagnosis finds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.adapters.described import engine_config, pool_info
from kvmon.adapters.registry import ADAPTERS
from kvmon.adapters.settings import CLASSES
from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.allocators.config import EVICTIONS, PLACEMENTS, RECLAIMS, RESERVATIONS
from kvmon.capture import CaptureReader, CaptureWriter, Frames, Hole, StreamFacts, Tail
from kvmon.capture.copying import copy_capture, copy_recording
from kvmon.capture.share_said import shared_config, shared_pool
from kvmon.capture.share_words import PageNames, clean_frames, clean_records
from kvmon.capture.sharing import Sharer
from kvmon.capture.verification import verify_path
from kvmon.events import Event, Kind, decode, encode
from kvmon.events.wire import LONG
from kvmon.replay.findings import diagnose_path
from kvmon.serving import SchedulerConfig
from kvmon.serving.config import _CHOICES
from kvmon.serving.faults import Faults
from kvmon.serving.scenarios import names as scenario_names
from kvmon.serving.step_time import StepTime
from kvmon.state import scan
from kvmon.state.watch import SEEN_BITS
from tests.unit.adapters.driven import OPTIONS
from tests.unit.capture.traffic import frame, record
from tests.unit.replay.recorded import Recorded

Words = npt.NDArray[np.uint32]
SECRET = b"a secret of the test"
SAID = {"adapter": "vllm", "token_budget": 2048, "model": {"layers": 32, "model_type": "llama"}}
PRIVATE = {"model_path": "/home/ana/llama", "served_model_name": "acme-chat", "scheduler": "AcmeScheduler",
           "adapter_version": "/home/x", "quotas": {"a b c": 1}}  # fmt: skip


def events_of(words: Words) -> list[Event]:
    """The records of frames, one by one."""
    return list(decode(words.tolist()))


def cleaned(words: Words, names: PageNames | None = None) -> Words:
    """Frames as they are shared."""
    sharer = Sharer(0, secret=SECRET)
    return clean_frames(words, scan(words), names or PageNames(SECRET), sharer._rewrite)[0]


# -- names of pages --


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=60))
def test_names_of_pages_change_and_stay_equal_or_different(values: list[int]) -> None:
    """Equal names get equal ones, different ones different; what meets in the diagnosis' table meets there again."""
    names = np.array(values, np.uint64)
    other = PageNames(SECRET).renamed(names)

    def places(of: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return (of * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - SEEN_BITS)

    for before, after in ((names, other), (places(names), places(other))):
        _, first = np.unique(before, return_inverse=True)
        _, second = np.unique(after, return_inverse=True)
        pairs = {(int(a), int(b)) for a, b in zip(first, second, strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert not (other == names).any()


def test_names_depend_on_the_secret_alone() -> None:
    """Another bundle has others; the same secret gives the same."""
    names = np.arange(1000, dtype=np.uint64)
    assert (PageNames(SECRET).renamed(names) == PageNames(SECRET).renamed(names)).all()
    assert not (PageNames(SECRET).renamed(names) == PageNames(b"another").renamed(names)).any()


# -- what is said --


def test_only_what_is_known_to_name_nobody_is_kept() -> None:
    """Keys by a list, words that look like one, names that kvmon chose."""
    kept, removed = shared_config({**SAID, **PRIVATE, "watermark": "a lot"})
    assert kept == SAID
    assert sorted(removed) == sorted([*PRIVATE, "watermark"])
    kept, removed = shared_pool(3, {"name": "acme", "capacity_units": 7, "owner": "ana", "layout": "paged"})
    assert kept == {"name": "pool3", "capacity_units": 7, "layout": "paged"}
    assert removed == ["name", "owner"]
    assert shared_pool(1, {"name": "kv", "group_kinds": ["FullAttentionSpec", "AcmeSpec"]})[1] == ["group_kinds"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("0.11.1", "0.11.1"),
        ("0.11.1rc2.dev42", "0.11.1rc2.dev42"),
        ("2.13.0+cu128", "2.13.0+cu128"),
        ("0.11.1.dev42+gdeadbeef.acme", "0.11.1.dev42"),
        ("3.12.3-acme", "3.12.3"),
        ("acme", None),
        (7, None),
    ],
)
def test_a_version_keeps_its_numbers(said: Any, kept: str | None) -> None:
    """What a builder put behind them may name a company, a branch or a commit."""
    assert shared_config({"engine_version": said}) == (
        {} if kept is None else {"engine_version": kept},
        [] if kept == said else ["engine_version"],
    )


def test_words_that_kvmon_chose_are_known() -> None:
    """Names of scenarios, and every choice of its own engines, so that a new one is not forgotten here."""
    words = {
        "scenario": scenario_names(), "allocator": ["paged", *PLACEMENTS], "eviction": EVICTIONS, "reclaim": RECLAIMS,
        "class_by": CLASSES, "adapter": ADAPTERS, **_CHOICES, "admission": _CHOICES["admit_by"],
    }  # fmt: skip
    words.pop("admit_by")
    for key, values in words.items():
        for value in values:
            assert shared_config({key: value}) == ({key: value}, [])
    assert all(shared_config({"reserve": "chunk:8" if one == "chunk" else one})[1] == [] for one in RESERVATIONS)
    assert shared_config({"step_time_ns": asdict(StepTime()), "faults": asdict(Faults())})[1] == []


@pytest.mark.parametrize("allocator", [PagedConfig(40, 4, quotas=((0, 0.3),)), ContiguousConfig(64, 4, 8)])
def test_what_an_engine_of_ours_says_stays_whole(allocator: Any) -> None:
    """So that a what-if replays what is shared as it replays the original."""
    config = engine_config(allocator, SchedulerConfig(priorities=((0, 1),), host_tokens=64, preemption="swap"))
    assert shared_config(config) == (config, [])
    info = json.loads(pool_info(allocator, 64).text(True))
    assert shared_pool(1, info) == (info, [])


# -- words --


def test_records_keep_their_places_and_say_the_same() -> None:
    """Texts, devices and names change, and nothing else; lengths and checksums are right."""
    device = dict.fromkeys(("used", "free", "total", "reserved", "allocated", "inactive", "largest_free"), 5)
    hashes = {"request": 4, "hash_tokens": 16, "first_page": 0, "hashes": [7, 1 << 40, 7]}
    records = [
        encode(Kind.ENGINE_CONFIG, text=json.dumps({**SAID, **PRIVATE})),
        encode(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps({"name": "acme", "capacity_units": 9})),
        encode(Kind.ALLOC, units=[1, 2, 3]),
        encode(Kind.DEVICE_SAMPLE, device=0, **device, uuid="GPU-8a5f"),
        encode(Kind.REQUEST_HASHES, **hashes),
        [LONG << 27 | 120 << 19 | 2, 77, 88],  # of a newer kvmon
        encode(Kind.FREE, units=[2]),
    ]
    words = np.array(frame(3, 50, records) + frame(4, 60, [encode(Kind.ALLOC, units=[2])]), np.uint32)
    clean = cleaned(words)
    table = scan(clean)
    assert table.consumed == len(clean) and table.numbers.tolist() == [3, 4] and table.times.tolist() == [50, 60]
    before, after = events_of(words), events_of(clean)
    assert [event.kind for event in after] == [event.kind for event in before]
    assert json.loads(after[0].fields["text"]) == SAID
    assert json.loads(after[1].fields["text"])["name"] == "pool1"
    assert after[3].fields == {**before[3].fields, "uuid": ""}
    first, second, third = after[4].fields["hashes"]
    assert first == third != second and {first, second}.isdisjoint(hashes["hashes"])
    assert after[2].units == (1, 2, 3)
    raw = clean.tobytes()
    assert b"acme" not in raw and b"GPU" not in raw and b"ana" not in raw


def test_records_that_no_frame_closes_are_cleaned_too() -> None:
    """The end of a killed engine may hold a text or a name."""
    words = np.array(encode(Kind.ENGINE_CONFIG, text="{}") + encode(Kind.ALLOC, units=[4]), np.uint32)
    text = np.array(encode(Kind.ENGINE_CONFIG, text=json.dumps(PRIVATE)) + encode(Kind.ALLOC, units=[4]), np.uint32)
    clean, _ = clean_records(text, PageNames(SECRET), Sharer(0, secret=SECRET)._rewrite)
    assert clean.tolist() == words.tolist()


# -- whole captures --


@pytest.mark.parametrize("name", ["paged", "pins", "window-own", "swap", "chunks", "buddy", "leaks", "strands"])
def test_a_diagnosis_finds_the_same_in_what_is_shared(name: str, tmp_path: Path) -> None:
    """Findings, refusals and the state at the end are equal; `kvmon verify` finds no other fault."""
    recorded = Recorded(OPTIONS[name], 6, 400)
    source = recorded.capture(
        tmp_path / "x.kvmon", every=2000, facts=[StreamFacts("acme", pid=7, boot_id=bytes([1] * 16))]
    )
    with CaptureWriter(tmp_path / "shared.kvmon", wall=lambda: 0) as writer:
        copied = copy_capture(source, writer, share=Sharer(0))
    (one,), (other,) = diagnose_path(source), diagnose_path(tmp_path / "shared.kvmon")
    assert [finding.to_json() for finding in one.findings] == [finding.to_json() for finding in other.findings]
    assert [refusal.cause for refusal in one.refusals()] == [refusal.cause for refusal in other.refusals()]
    assert one.state.pools[1].units == other.state.pools[1].units
    assert (other.state.pools[1].status == one.state.pools[1].status).all()
    before, after = verify_path(source).streams[0], verify_path(tmp_path / "shared.kvmon").streams[0]
    assert (after.fault_count, after.unit_operations) == (before.fault_count, before.unit_operations)
    facts = copied[0].facts
    assert (facts.engine, facts.pid, facts.boot_id, facts.epoch) == ("engine1", 0, bytes(16), bytes(16))
    assert b"acme" not in (tmp_path / "shared.kvmon").read_bytes()


def test_engines_keep_apart_and_lives_stay_on_one_time_line(tmp_path: Path) -> None:
    """Two engines get two names; what was seven seconds later is so still, and the date is gone."""
    recorded, wall = Recorded(OPTIONS["no-cache"], 1, 20), 1_763_000_000_000_000_000
    facts = [
        StreamFacts("a", wall_ns=wall, mono_ns=50),
        StreamFacts("b", wall_ns=wall + 7_000_000_000, mono_ns=90),
        StreamFacts("a", 1, wall_ns=wall, mono_ns=50),
    ]
    source = recorded.capture(tmp_path / "x.kvmon", facts=facts)
    for options, names in (
        ({}, ["engine1-0", "engine2-0", "engine1-1"]),
        ({"keep_names": True}, ["a-0", "b-0", "a-1"]),
    ):
        sharer = Sharer(wall, **options)
        with CaptureWriter(tmp_path / "y.kvmon", force=True) as writer:
            shared = [one.facts for one in copy_capture(source, writer, share=sharer)]
        assert [one.name for one in shared] == names
        assert [one.wall_ns for one in shared] == [0, 0, 0]
        assert [one.wall_time_ns(50) for one in shared[:2]] == [0, 7_000_000_000 - 40]
        assert sharer.shared.removed["wall clock: when it was recorded"] == 3
    kept = Sharer(wall, keep_time=True).facts(facts[1])
    assert (kept.wall_ns, kept.mono_ns) == (facts[1].wall_ns, facts[1].mono_ns)


def test_the_end_of_a_recording_is_shared_with_its_state(tmp_path: Path) -> None:
    """With the last seconds only, what came before stands in the first checkpoint, and names nobody either."""
    (tmp_path / "rec").mkdir()
    record(tmp_path / "rec", 900, name="acme-prod", budget=1 << 20)
    streams = list((tmp_path / "rec").glob("*-0"))
    for name, share in (("plain", None), ("shared", Sharer(0))):
        with CaptureWriter(tmp_path / f"{name}.kvmon") as writer:
            copy_recording(streams, writer, last_ns=10**8, share=share)
    (one,), (other,) = diagnose_path(tmp_path / "plain.kvmon"), diagnose_path(tmp_path / "shared.kvmon")
    assert other.state.converged and one.state.pools[1].units == other.state.pools[1].units
    assert other.state.config == {
        name: value for name, value in one.state.config.items() if name not in ("engine", "adapter")
    }
    with CaptureReader(tmp_path / "shared.kvmon") as reader:
        (stream,) = reader.streams
        state, _ = reader.begin(stream)
        assert stream.name == "engine1-0" and "engine" not in state.config


def test_the_list_is_of_what_is_there(tmp_path: Path) -> None:
    """Counts of records by kind are those of the bundle, and what it says of itself is what stands in it."""
    recorded = Recorded(OPTIONS["paged"], 2, 60)
    source = recorded.capture(tmp_path / "x.kvmon")
    sharer = Sharer(0)
    with CaptureWriter(tmp_path / "y.kvmon") as writer:
        copy_capture(source, writer, share=sharer)
    counts: dict[str, int] = {}
    with CaptureReader(tmp_path / "y.kvmon") as reader:
        state = reader.fold(reader.streams[0])
        for piece in reader.pieces(reader.streams[0]):
            assert isinstance(piece, Frames)
            for event in events_of(piece.words):
                if event.kind > 9:
                    counts[event.kind.name.lower()] = counts.get(event.kind.name.lower(), 0) + 1
    assert counts == dict(sharer.shared.records)
    (stream,) = sharer.shared.streams
    assert (stream.name, stream.was) == ("engine1-0", "sim-0")
    assert stream.said == [state.config] and stream.pools == {1: [state.pools[1].info]}


def test_holes_and_tails_are_part_of_it() -> None:
    """A hole stays; a tail keeps its whole records, and nothing of one that was being written."""
    sharer = Sharer(0, secret=SECRET)
    sharer.facts(StreamFacts("x"))
    hole = Hole("chunks of the capture are lost here", 3, 2, damaged=True)
    assert sharer.piece(hole) == hole
    named = sharer.piece(Hole("/home/ana/rec/1.seg is lost", 3, 2, damaged=True))
    assert named == Hole("something is missing here", 3, 2, damaged=True)
    whole = encode(Kind.ALLOC, units=[1, 2])
    tail = sharer.piece(Tail(np.array([*whole, *encode(Kind.ENGINE_CONFIG, text="secret")[:2]], np.uint32)))
    assert isinstance(tail, Tail) and tail.words.tolist() == whole
    assert sharer.piece(Tail(np.array(encode(Kind.ENGINE_CONFIG, text="secret")[:2], np.uint32))) is None

"""The demand of a recording: what stands in the events comes back; what does not is marked, or said to be missing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.adapters.described import engine_config, pool_info, read_described, second_pool_info
from kvmon.allocators import AllocatorConfig, PagedConfig
from kvmon.capture.pieces import Frames, Hole, StreamFacts
from kvmon.errors import InputError
from kvmon.events import FinishReason, Kind, encode
from kvmon.replay.demand import Case
from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.finer_pages import finer_names
from kvmon.replay.recordings import read_stream
from kvmon.replay.whatif import begin_comparison
from kvmon.serving import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.options import allocator_config, options_of, scheduler_config
from kvmon.serving.scenarios import Setup, find
from kvmon.serving.step_time import StepTime
from kvmon.state import scan
from tests.unit.replay.replaying import recording_of, recording_of_words, words_of
from tests.unit.replay.written import Written
from tests.unit.serving.option_sets import contiguous_pools, option_sets, paged_pools


@given(st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())))
def test_a_described_engine_is_read_back_equal(options: tuple[AllocatorConfig, SchedulerConfig, Faults]) -> None:
    """Allocator, scheduler, faults and clock, through the JSON of a recording; options by name likewise."""
    allocator, scheduler, faults = options
    clock = StepTime(1000.5, 10.0, 0.1, 0.25)
    config = json.loads(json.dumps(engine_config(allocator, scheduler, faults, clock)))
    pools = {1: json.loads(pool_info(allocator, 64).text(True))}
    second = second_pool_info(allocator, scheduler, 64)
    if second is not None:
        pools[2] = json.loads(second.text(True))
    found = read_described(config, pools)
    assert (found.allocator, found.scheduler, found.faults) == (allocator, scheduler, faults)
    assert (found.step_time, found.token_bytes, found.notes) == (clock, 64, ())
    named = options_of(allocator, scheduler)
    assert allocator_config(named, allocator.capacity_units * allocator.unit_tokens) == allocator
    assert scheduler_config(named) == scheduler


@pytest.mark.parametrize("name", ["chatbot-degradation", "stranded", "post-incident", "head-of-line"])
def test_the_demand_is_the_workload_that_was_simulated(name: str) -> None:
    """Arrivals, lengths, classes, names, turns and patience: all arrays come back."""
    setup = find(name).setups(4)[0][""]
    demand = recording_of(setup).demand
    work = demand.workload(Case.RECORDED)
    for column in ("arrival_ns", "prompt_tokens", "output_tokens", "token_limit", "class_id", "follows"):
        assert (getattr(work, column) == getattr(setup.workload, column)).all(), column
    assert (work.hash_offsets == setup.workload.hash_offsets).all() and work.hash_tokens == setup.workload.hash_tokens
    same = {}
    for mine, theirs in zip(work.hashes.tolist(), setup.workload.hashes.tolist(), strict=True):
        assert same.setdefault(theirs, mine) == mine
    assert len(set(same.values())) == len(same)
    assert (work.abort_ns == setup.workload.abort_ns).all() and demand.censored.total == 0
    assert demand.workload(Case.LEAST).output_tokens.tolist() == work.output_tokens.tolist()


def test_hang_ups_stand_between_the_steps_between_which_they_happened() -> None:
    """In the order of the stream, whatever came between them."""
    with Written(PagedConfig(64, 16, prefix_cache=False)) as stream:
        for request in (1, 2, 3):
            stream.arrive(request, at=request * 100)
        stream.step(1000, 500)
        stream.finish(2, FinishReason.ABORT, 3)
        stream.arrive(4, at=1700)
        stream.finish(1, FinishReason.ABORT, 3)
        stream.finish(3, FinishReason.ABORT, 4)
        stream.step(2000, 500)
        stream.finish(4, FinishReason.LENGTH, 8)
        stream.step(3000, 500)
    demand = stream.recording().demand
    gone = (demand.due_ns + demand.hang_up_ns).tolist()
    assert 1000 < gone[1] < 1700 < gone[0] < gone[2] <= 2000
    assert demand.hang_up_ns[3] == 0 and demand.end.tolist() == [3, 3, 3, 2]
    assert (demand.censored.hung_up, demand.censored.total) == (3, 3)
    least, most = demand.workload(Case.LEAST), demand.workload(Case.MOST)
    assert least.output_tokens.tolist() == [3, 3, 4, 8] and most.output_tokens.tolist() == [20, 20, 20, 8]


def test_an_arrival_is_due_where_the_engine_had_it() -> None:
    """A stamp from before the step ahead of it, or from behind its own step, is put between the two."""
    with Written(PagedConfig(64, 16, prefix_cache=False)) as stream:
        stream.arrive(1, at=500)
        stream.step(1000, 500)
        stream.arrive(2, at=400)
        stream.arrive(3, at=9999)
        stream.step(2000, 500)
    demand = stream.recording().demand
    assert demand.due_ns.tolist() == [500, 1001, 2000]
    assert demand.arrived_ns.tolist() == [500, 400, 9999]


def test_who_was_there_before_is_marked_and_left_out_at_least() -> None:
    """A recording that begins late knows them from an audit: what they had by then is not known."""
    with Written(PagedConfig(64, 16, prefix_cache=False), fresh=False) as stream:
        stream.restate(7, prompt=40, limit=30)
        stream.step(1000, 500)
        stream.arrive(9, at=1200)
        stream.step(2000, 500)
        stream.finish(7, FinishReason.STOP, 5)
        stream.finish(9, FinishReason.STOP, 6)
        stream.step(3000, 500)
    demand = stream.recording().demand
    assert demand.request.tolist() == [7, 9] and demand.before.tolist() == [True, False]
    assert demand.censored.before == demand.censored.total == 1
    assert len(demand.workload(Case.LEAST)) == 1
    assert demand.workload(Case.MOST).prompt_tokens.tolist() == [40, 32]
    assert not demand.numbered and demand.workload(Case.MOST).drawn_as.tolist() == [7, 9]


def test_a_capture_of_the_last_minutes_begins_with_those_who_run() -> None:
    """The fold that it begins with names them."""
    pieces = np.concatenate(words_of(find("capacity").setups(0)[0][""]))
    table = scan(pieces)
    at = int(table.ends[2000])
    whole = recording_of_words([pieces[:at]])
    later = StreamDiagnosis(StreamFacts("late"), whole.stream.state)
    rest = pieces[at:].copy()
    recording = read_stream(later, [Frames(rest, scan(rest))])
    running = int(whole.demand.censored.running + (whole.demand.end < 0).sum())
    assert recording.demand.before.sum() == running > 5
    begun = begin_comparison(recording)
    assert begun.calibration.quality in ("good", "poor") and not begun.unchanged.definite
    assert any("before the recording began" in line for line in begun.unchanged.ranges)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"fidelity": "cache_only"}, "sees the prefix cache alone (fidelity cache_only), and no request"),
        ({"fidelity": "exact"}, "it holds no request: nobody came while it was recorded"),
    ],
)
def test_without_demand_it_says_what_is_missing(config: dict[str, str], why: str) -> None:
    """One line, and no what-if."""
    with Written(PagedConfig(64, 16), config=config) as stream:
        stream.step(1000, 500)
    recording = stream.recording()
    assert why in recording.demand.missing
    with pytest.raises(InputError, match="cannot be replayed"):
        begin_comparison(recording)


def test_without_a_pool_or_with_nonsense_it_says_so() -> None:
    """A begin that is lost, a description that no engine can have."""
    with Written(PagedConfig(64, 16), attach=False) as stream:
        stream.arrive(1, at=10)
        stream.step(1000, 500)
    assert "names no pool" in stream.recording().demand.missing
    with Written(PagedConfig(64, 16), config={"watermark": 7.0}) as stream:
        stream.arrive(1, at=10)
        stream.step(1000, 500)
    assert "cannot be run: a watermark of 7.0" in stream.recording().demand.missing


def test_a_foreign_engine_is_run_as_near_as_can_be_and_says_what_differs() -> None:
    """Names of allocators and queues that the simulator has none of, groups of layers, connectors."""
    pools = {1: {"capacity_units": 100, "unit_tokens": 16, "unit_bytes": 1600, "groups": 3, "window_tokens": 128}}
    config = {"allocator": "sectors", "queue": "priority", "connector": "Nixl", "async_scheduling": True}
    found = read_described({**config, "prefix_cache": True, "eviction": "lru", "admission": "chunk"}, pools)
    assert found.allocator == PagedConfig(100, 16, prefix_cache=True) and found.token_bytes == 100
    said = " | ".join(found.notes)
    for part in (
        "token budget is not recorded",
        "priorities",
        "transfers",
        "one after the other",
        "'sectors'",
        "groups",
    ):
        assert part in said


def test_holes_are_said() -> None:
    """A damaged chunk in the middle: what came there is unknown, and every answer says so."""
    pieces = np.concatenate(words_of(find("capacity").setups(0)[0][""]))
    ends = scan(pieces).ends
    first, second = pieces[: int(ends[2000])].copy(), pieces[int(ends[2400]) :].copy()
    stream = StreamDiagnosis(StreamFacts("holed"))
    recording = read_stream(
        stream,
        [
            Frames(first, scan(first)),
            Hole("this chunk is damaged", 2001, 400, damaged=True),
            Frames(second, scan(second)),
        ],
    )
    assert "events are missing in" in recording.demand.gaps[0] and recording.demand.unknown > 0
    begun = begin_comparison(recording)
    assert begun.calibration.quality == "poor" and begun.doubts[0] == recording.demand.gaps[0]


names_of = st.lists(st.lists(st.integers(1, 3), max_size=4), min_size=1, max_size=6)


@given(names_of, st.integers(1, 3), st.sampled_from([1, 2, 4]), st.data())
def test_finer_names_share_no_less_and_never_more_than_one_step(
    rows: list[list[int]], pages: int, page: int, data: st.DataObject
) -> None:
    """What was equal stays equal; behind a difference only the pages of that step but its last can still be."""
    step = pages * page
    chained = [[hash(tuple(row[: at + 1])) & 0xFFFFFFFF | 1 for at in range(len(row))] for row in rows]
    prompts = [max(len(row) * step + data.draw(st.integers(-step + 1, step)), 1) for row in rows]
    counts = np.array([len(row) for row in rows])
    names = np.array([name for row in chained for name in row], np.uint64)
    fine, many = finer_names(names, counts, np.array(prompts), step, page)
    assert many.sum() == len(fine) and (fine != 0).all()
    ends = np.cumsum(many)
    fine_rows = [fine[end - count : end].tolist() for end, count in zip(ends, many, strict=True)]
    for a in range(len(rows)):
        for b in range(a):
            both = min(len(fine_rows[a]), len(fine_rows[b]))
            equal = [fine_rows[a][at] == fine_rows[b][at] for at in range(both)]
            shared = both if all(equal) else equal.index(False)
            assert not any(equal[shared:])
            steps = 0
            while steps < min(len(chained[a]), len(chained[b])) and chained[a][steps] == chained[b][steps]:
                steps += 1
            assert min(steps * pages, both) <= shared <= steps * pages + pages - 1


def test_names_of_an_answer_are_joined_to_those_of_its_prompt() -> None:
    """Told when it ended, as foreign engines do; a hole is filled from a prompt that begins with what is behind it."""
    text = [101, 102, 103, 104, 105, 106]
    with Written(PagedConfig(64, 16)) as stream:
        stream.arrive(1, at=10, prompt=40, names=text[:2])
        stream.step(1000, 500)
        stream.names(1, text[3:5], first=3)
        stream.finish(1, FinishReason.STOP, 45)
        stream.arrive(2, at=1600, prompt=100, names=text)
        stream.step(2000, 500)
        stream.finish(2, FinishReason.STOP, 5)
        stream.step(3000, 500)
    demand = stream.recording().demand
    rows = np.split(demand.hashes, demand.offsets[1:-1])
    assert (rows[0] & 0xFFFF).tolist() == text[:5] and (rows[1] & 0xFFFF).tolist() == text


def test_an_end_of_an_error_outside_of_memory_comes_at_its_time() -> None:
    """It is no refusal of the allocator, so a replay ends it then; one that was refused ends by itself."""
    with Written(PagedConfig(64, 16, prefix_cache=False)) as stream:
        stream.arrive(1, at=10)
        stream.arrive(2, at=20)
        stream.step(1000, 500)
        stream.put(
            Kind.ALLOC_FAILED, request=2, need=9, contiguity=0, free=1, evictable=0, largest=1, reason=1, outcome=5
        )
        stream.finish(2, FinishReason.ERROR, 3)
        stream.finish(1, FinishReason.ERROR, 3)
        stream.step(2000, 500)
    demand = stream.recording().demand
    assert demand.hang_up_ns[0] > 0 and demand.hang_up_ns[1] == 0
    assert (demand.censored.hung_up, demand.censored.failed) == (1, 1)


def test_fields_that_only_the_maker_of_traffic_knows_are_optional() -> None:
    """A record of before is as long as it was, and reads as nobody said so."""
    short = encode(Kind.REQUEST_ARRIVED, request=1, at=5, class_id=0, prompt=3)[:8]
    short[0] = short[0] & ~0x7FFFF | 7
    with Written(PagedConfig(64, 16)) as stream:
        stream.words += short
        stream.step(1000, 500)
    demand = stream.recording().demand
    assert (demand.patience_ns[0], demand.follows[0], demand.pause_ns[0]) == (-1, 0, -1)
    setup = Setup(replace(find("stranded").setups(0)[0][""].workload), PagedConfig(4096, 16), SchedulerConfig())
    assert (recording_of(setup).demand.patience_ns > 0).any()

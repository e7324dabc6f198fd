"""A replay without a change does what was recorded, for every scenario, allocator and option, and says where not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.replay.calibration import calibrate
from kvmon.replay.recordings import Recording
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.faults import Faults
from kvmon.serving.scenarios import SCENARIOS, Setup, find, names
from kvmon.serving.step_time import StepTime
from tests.unit.replay.replaying import recording_of
from tests.unit.serving.option_sets import HASH_TOKENS, contiguous_pools, option_sets, paged_pools

_POOLS: dict[str, AllocatorConfig] = {
    "paged": PagedConfig(96, 16),
    "paged, lfu": PagedConfig(96, 16, evict="lfu"),
    "paged, fifo": PagedConfig(96, 16, evict="fifo", pin_after_hits=1, pin_share=0.3),
    "paged, window": PagedConfig(96, 16, prefix_cache=False, window_tokens=64),
    "first fit": ContiguousConfig(96, 16, reserve="oracle"),
    "first fit, chunks": ContiguousConfig(1536, 1, 64, retained_prefixes=4),
    "best fit": ContiguousConfig(96, 16, placement="best-fit", compaction=True, reserve="pow2"),
    "buddy": ContiguousConfig(96, 16, placement="buddy"),
}


def replayed_exactly(recording: Recording) -> None:
    """Nothing differs: no step, no number of the outcome."""
    calibration = calibrate(recording)
    assert (calibration.different_steps, calibration.reasons) == (0, ())
    assert calibration.quality == "exact" and calibration.steps == len(recording.trail)
    assert calibration.replayed == calibration.recorded
    assert calibration.curve_most_ratio in (0, None)


@pytest.mark.parametrize("name", names())
def test_every_scenario_replays_to_what_was_recorded(name: str) -> None:
    """0 differences for the catalogue and its twins, comparisons included."""
    for setup in find(name).setups(0)[0].values():
        replayed_exactly(recording_of(setup))


@pytest.mark.parametrize("seed", [2, 4])
def test_other_draws_of_the_scenarios_replay_as_well(seed: int) -> None:
    """The same for other traffic and parameters."""
    for scenario in SCENARIOS.values():
        if scenario.compare is None:
            replayed_exactly(recording_of(scenario.setups(seed)[0][""]))


@pytest.mark.parametrize("name", _POOLS)
def test_every_allocator_replays_to_what_was_recorded(name: str) -> None:
    """Too much traffic for the pool, and clients that hang up."""
    setup = find("post-incident").setups(1)[0][""]
    work = replace(setup.workload.first(120), arrival_ns=setup.workload.first(120).arrival_ns // 3)
    work = replace(work, abort_ns=np.where(np.arange(120) % 7 == 0, 3_000_000_000, 0))
    recording = recording_of(Setup(work, _POOLS[name], SchedulerConfig(on_growth_failure="abort")))
    assert recording.outcome is not None and recording.outcome.refused_allocations > 10
    replayed_exactly(recording)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """A few requests: shared prefixes, turns that follow others, clients that hang up."""
    count = draw(st.integers(1, 12))
    rows = draw(st.lists(st.tuples(*(st.integers(1, 50),) * 3), min_size=count, max_size=count))
    prompt, output, limit = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    follows = np.array([draw(st.integers(0, at)) if draw(st.booleans()) else 0 for at in range(count)], np.int32)
    pauses = np.array(draw(st.lists(st.integers(0, 40_000), min_size=count, max_size=count)), np.int64)
    arrival = np.where(follows > 0, pauses, np.cumsum(np.where(follows > 0, 0, pauses)))
    names = [[draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 4)))] for _ in range(count)]
    chained = [[sum(row[: at + 1]) * 31 + at for at in range(len(row))] for row in names]
    return Workload(
        arrival,
        prompt,
        output,
        limit,
        np.array(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in chained])]).astype(np.int64),
        np.array([name for row in chained for name in row], np.uint64),
        HASH_TOKENS,
        follows=follows,
        abort_ns=np.array(
            draw(st.lists(st.one_of(st.just(0), st.integers(1, 60_000)), min_size=count, max_size=count)), np.int64
        ),
    )


@given(workloads(), st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())), st.integers(0, 2))
@settings(max_examples=250)
def test_random_traffic_under_random_options_replays_exactly(
    work: Workload, options: tuple[AllocatorConfig, SchedulerConfig, Faults], linger: int
) -> None:
    """Whatever an engine of ours can be told to do, its recording holds all that a replay needs."""
    allocator, scheduler, faults = options
    clock = StepTime(1000.0, 10.0, 50.0, 0.5)
    recording = recording_of(Setup(work, allocator, scheduler, clock, faults, 64, linger_s=linger * 0.2))
    if recording.demand.missing:
        assert not len(recording.trail)  # everybody was refused at once, or hung up before a step
        return
    replayed_exactly(recording)


def test_another_engine_is_not_called_the_same() -> None:
    """The check can fail: with a page less than the recording had, steps differ and the reasons are named."""
    recording = recording_of(find("capacity").setups(0)[0][""])
    engine = recording.demand.engine
    assert engine is not None
    for smaller, quality in ((1023, ("good", "poor")), (512, ("poor",))):
        other = replace(engine, allocator=replace(engine.allocator, capacity_units=smaller))
        calibration = calibrate(replace(recording, demand=replace(recording.demand, engine=other)))
        assert calibration.quality in quality
        assert calibration.different_steps and calibration.first_different_ns is not None
    assert any("preemptions instead of" in reason or "memory in use" in reason for reason in calibration.reasons)


def test_a_gap_is_said_and_the_replay_marked() -> None:
    """Steps that were lost cannot be replayed: poor, with what is missing."""
    recording = recording_of(find("telemetry-untrusted").setups(1)[0][""])
    calibration = calibrate(recording)
    assert calibration.quality == "poor"
    assert "events are missing in" in calibration.reasons[0]
    assert recording.demand.unknown > 0

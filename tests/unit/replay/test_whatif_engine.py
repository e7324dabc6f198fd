"""The reference engine, recorded and replayed: nothing differs on its own steps; what was predicted, it then does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvmon.adapters.attach import attach
from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.engine.clock import PassingClock
from kvmon.engine.drive import build_driver
from kvmon.replay.calibration import calibrate
from kvmon.replay.changes import changed, parse_what_if
from kvmon.replay.outcome import Outcome
from kvmon.replay.recordings import Recording, read_recordings
from kvmon.replay.step_clock import step_clock
from kvmon.replay.whatif import LINGER_S, answer
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.scenarios import Setup
from kvmon.serving.workloads import ClosedLoop, OpenLoop, Patience, SharedPrefixes, Traffic, generate

BASE = 7_000_000_000  # when the engine's time begins on the recording's clock


def traffic(seed: int, *, patience: bool = False, rate: float = 60.0) -> Workload:
    """Forty requests with shared prefixes: more than the pools below hold."""
    return generate(
        Traffic(
            40,
            seed=seed,
            lengths="uniform:20-200/uniform:15-60",
            arrivals=OpenLoop(rate),
            prefixes=SharedPrefixes(3, 64),
            patience=Patience(0.3, 0.5) if patience else None,
            limit=64,
        )
    )


CONTIGUOUS = Setup(
    traffic(1), ContiguousConfig(96, 16, chunk_tokens=32), SchedulerConfig(on_growth_failure="abort", token_budget=300)
)
PAGED = Setup(traffic(2), PagedConfig(64, 16), SchedulerConfig(token_budget=300))


def recorded(setup: Setup, directory: Path, *, real_time: bool = False) -> Recording:
    """The engine under this traffic, recorded into `directory` by the real probe, and read again."""
    directory.mkdir()
    driver = build_driver(setup, clock=PassingClock() if real_time else None)
    clock = driver.clock
    recording = attach(driver.engine, directory, time_base_ns=BASE, clock=lambda: BASE + clock.now_ns)
    driver.run()
    recording.close()
    (found,) = read_recordings(directory)
    return found


@pytest.mark.parametrize("real_time", [False, True])
@pytest.mark.parametrize(
    "setup",
    [
        CONTIGUOUS,
        replace(PAGED, workload=traffic(3, patience=True)),
        replace(PAGED, scheduler=SchedulerConfig(preemption="swap", host_tokens=1024, token_budget=300)),
        replace(CONTIGUOUS, allocator=ContiguousConfig(96, 16, 32, retained_prefixes=4), workload=traffic(4)),
    ],
    ids=["blocks", "pages, hang-ups", "pages, swapped", "blocks, retained"],
)
def test_on_its_own_steps_the_engine_is_replayed_exactly(setup: Setup, real_time: bool, tmp_path: Path) -> None:
    """Event by event, on a clock that is a formula and in real time: 0 steps differ."""
    calibration = calibrate(recorded(setup, tmp_path / "engine", real_time=real_time))
    assert (calibration.quality, calibration.different_steps, calibration.reasons) == ("exact", 0, ())
    assert calibration.replayed == calibration.recorded
    if not real_time:  # a fast machine has served everybody before memory is short
        assert calibration.recorded.refused_allocations + calibration.recorded.hung_up > 3


def test_turns_of_a_conversation_hit_what_was_generated_in_a_replay_too(tmp_path: Path) -> None:
    """The names of generated pages are recorded when an answer ends."""
    chats = generate(
        Traffic(
            20,
            seed=6,
            kind="chats",
            lengths="uniform:30-80/uniform:30-60",
            steps="uniform:4-6",
            arrivals=ClosedLoop(4, 0.5),
            pause_s=0.5,
            limit=64,
        )
    )
    recording = recorded(Setup(chats, PagedConfig(256, 16)), tmp_path / "engine")
    calibration = calibrate(recording)
    assert calibration.exact and calibration.recorded.hit_tokens > 1000
    assert np.diff(recording.demand.offsets).sum() > (recording.demand.prompt // 16).sum()


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        (CONTIGUOUS, "allocator=paged,prefix-cache=off,on-growth-failure=preempt"),
        (CONTIGUOUS, "pool=+25%"),
        (PAGED, "block=32"),
        (PAGED, "prefix-cache=off"),
        (PAGED, "pool=-25%,admission=full-need"),
    ],
)
def test_what_was_predicted_the_engine_then_does(setup: Setup, text: str, tmp_path: Path) -> None:
    """Paged from contiguous, page size, cache, pool size, admission: the same outcome, to the last number."""
    before = recorded(setup, tmp_path / "before")
    what_if = parse_what_if(text)
    clock = step_clock(before.demand)
    assert clock.source == "found"
    one = answer(before.demand, clock, what_if)
    new = changed(before.demand.described(), what_if, before.demand.hash_tokens)
    after = recorded(
        replace(setup, allocator=new.allocator, scheduler=new.scheduler, linger_s=LINGER_S), tmp_path / "after"
    )
    assert after.outcome is not None
    assert one.definite or any("failed or were refused" in line for line in one.ranges)
    assert one.most == after.outcome and one.least.peak_units == after.outcome.peak_units


def test_in_real_time_the_prediction_is_within_what_two_runs_differ(tmp_path: Path) -> None:
    """Everybody comes at once, so that the speed of the machine decides little: failures and peak memory."""
    setup = replace(CONTIGUOUS, workload=traffic(5, rate=5000.0))
    before = recorded(setup, tmp_path / "before", real_time=True)
    what_if = parse_what_if("allocator=paged,prefix-cache=off,on-growth-failure=preempt")
    one = answer(before.demand, step_clock(before.demand), what_if)
    new = changed(before.demand.described(), what_if, before.demand.hash_tokens)
    truths: list[Outcome] = []
    for number in range(2):
        run = replace(setup, allocator=new.allocator, scheduler=new.scheduler)
        outcome = recorded(run, tmp_path / f"after-{number}", real_time=True).outcome
        assert outcome is not None
        truths.append(outcome)
    for name in ("peak_units", "refused_allocations", "preemptions", "lost"):
        low, high = sorted(getattr(truth, name) for truth in truths)
        spread = max(high - low, 0.1 * high, 1)
        least, most = sorted((getattr(one.least, name), getattr(one.most, name)))
        assert least <= high + spread and most >= low - spread, name

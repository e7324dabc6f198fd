"""An engine in real time, and the simulator over the steps that it recorded: the same allocations in the same order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvmon.adapters.attach import attach
from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.capture.steps import read_steps
from kvmon.engine.clock import PassingClock
from kvmon.engine.drive import build_driver
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.scenarios import Setup
from kvmon.serving.workloads import OpenLoop, Patience, SharedPrefixes, Traffic, generate
from kvmon.simulate import RecordedSteps, simulate
from tests.unit.engine.journals import Entries, entries_of, failures_of

BASE = 7_000_000_000  # when the engine's time begins on the recording's clock


def traffic(seed: int) -> Workload:
    """Sixty requests at once, of which some hang up: more than the pools below hold, however fast the machine is."""
    return generate(
        Traffic(
            60,
            seed=seed,
            lengths="uniform:20-300/uniform:20-90",
            arrivals=OpenLoop(2000.0),
            prefixes=SharedPrefixes(3, 100),
            patience=Patience(0.3, 0.6),
        )
    )


def in_real_time(setup: Setup, directory: Path) -> Entries:
    """The journal of the engine, recorded into `directory`."""
    clock = PassingClock()
    driver = build_driver(setup, clock=clock)
    pieces: list[npt.NDArray[np.int64]] = []
    driver.engine.observers.append(pieces.append)
    recording = attach(driver.engine, directory, time_base_ns=BASE, clock=lambda: BASE + clock.now_ns)
    driver.run()
    recording.close()
    return entries_of(pieces)


POOLS = {
    "pages": Setup(traffic(1), PagedConfig(128, 16), SchedulerConfig(token_budget=300)),
    "pages, swapped": Setup(
        traffic(2), PagedConfig(128, 16), SchedulerConfig(preemption="swap", host_tokens=1024, token_budget=300)
    ),
    "blocks": Setup(traffic(3), ContiguousConfig(128, 16, chunk_tokens=32), SchedulerConfig(on_growth_failure="abort")),
}


@pytest.mark.parametrize("name", POOLS)
def test_on_its_own_step_times_the_simulator_does_what_the_engine_did(name: str, tmp_path: Path) -> None:
    """Steps as the recording has them, arrivals as they were: 0 differences in everything that was allocated."""
    setup = POOLS[name]
    engine = in_real_time(setup, tmp_path)
    (steps,) = read_steps(tmp_path)
    recorded = RecordedSteps(steps.start_ns - BASE, steps.duration_ns.astype(np.int64))
    pieces: list[npt.NDArray[np.int64]] = []
    result = simulate(
        setup.workload,
        setup.allocator,
        setup.scheduler,
        recorded=recorded,
        journal_sink=lambda words: pieces.append(words.copy()),
    )
    assert failures_of(engine) > 3
    assert result.steps == len(steps) and result.unfinished == 0
    assert entries_of(pieces) == engine


def test_a_run_ends_with_the_steps_that_were_recorded() -> None:
    """Half of the steps are half of the story: who has not ended by then is unfinished."""
    setup = replace(POOLS["pages"], workload=traffic(4))
    whole = simulate(setup.workload, setup.allocator, setup.scheduler)
    start = np.arange(whole.steps // 2) * 10_000_000
    half = simulate(
        setup.workload, setup.allocator, setup.scheduler, recorded=RecordedSteps(start, np.full(len(start), 10_000_000))
    )
    assert half.steps == whole.steps // 2 and half.unfinished > 0 and half.step_limit_reached


def test_an_empty_step_of_an_engine_is_passed_over() -> None:
    """After the last one hung up an engine takes a step in which nobody is; the next arrival has the one behind it."""
    work = replace(traffic(5).first(2), abort_ns=np.zeros(0, np.int64), arrival_ns=np.array([0, 1_000_000_000]))
    setup = replace(POOLS["pages"], workload=work)
    plain = simulate(work, setup.allocator, setup.scheduler)
    start = np.concatenate((np.arange(100), [500], 1000 + np.arange(300))) * 1_000_000
    result = simulate(
        work, setup.allocator, setup.scheduler, recorded=RecordedSteps(start, np.full(len(start), 1_000_000))
    )
    assert result.completed == plain.completed == 2

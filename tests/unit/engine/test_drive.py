"""Driving an engine through a workload: what the simulator does, a model does, too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.engine.drive import Driver, build_driver
from kvmon.engine.prompts import Prompts
from kvmon.engine.requests import Output
from kvmon.engine.runnable import why_not
from kvmon.errors import ConfigError
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.scenarios import SCENARIOS, Setup, find
from kvmon.serving.workloads import ClosedLoop, OpenLoop, Patience, SharedPrefixes, Traffic, generate
from kvmon.simulate import simulate
from tests.unit.engine.journals import Entries, entries_of, failures_of

Words = npt.NDArray[np.int64]

#: What can be run, and how many of its requests make its point within seconds. Setups that need all of them have few.
REQUESTS = {"server-failures": 9, "deadlock": 22, "never-fits": 41, "pool-starved": 11, "stranded": 60}
FEW = 24
RUNNABLE = [
    name
    for scenario in SCENARIOS.values()
    for name in (scenario.name, scenario.twin().name)
    if scenario.name not in ("not-kv", "paged-vs-standard", "space", "head-of-line")
]


def setup_of(name: str, requests: int | None = None) -> Setup:
    """The setup of a scenario with its first requests."""
    setup = find(name).setups(0)[0][""]
    few = min(requests or REQUESTS.get(name.removesuffix("-healthy"), FEW), len(setup.workload))
    return replace(setup, workload=setup.workload.first(few))


def simulated(setup: Setup) -> Entries:
    """What the simulator does."""
    pieces: list[Words] = []
    simulate(
        setup.workload,
        setup.allocator,
        setup.scheduler,
        setup.step_time,
        faults=setup.faults,
        linger_ns=round(setup.linger_s * 1e9),
        journal_sink=lambda words: pieces.append(words.copy()),
    )
    return entries_of(pieces)


def driven(setup: Setup, slice_ns: int | None = None, *, poison: bool = False) -> Entries:
    """What the engine does, stopped every `slice_ns`."""
    driver = build_driver(setup, poison=poison)
    pieces: list[Words] = []
    driver.engine.observers.append(pieces.append)
    until = 0
    while not (driver.run() if slice_ns is None else driver.run(until)):
        assert slice_ns is not None
        until += slice_ns
    driver.engine.scheduler.check()
    return entries_of(pieces)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens by a rule in place of the model's, a hundred times faster."""

    def compute(engine: object, plan: object) -> npt.NDArray[np.bool_]:
        ended = np.zeros(len(plan.requests), np.bool_)  # type: ignore[attr-defined]
        for index in np.flatnonzero(plan.samples).tolist():  # type: ignore[attr-defined]
            number = int(plan.requests[index])  # type: ignore[attr-defined]
            request = engine._requests[number]  # type: ignore[attr-defined]
            said = int(request.tokens[max(request.known - 8, 0) : request.known].sum()) + request.known
            ended[index] = engine._take(number, request, said % 320)  # type: ignore[attr-defined]
        return ended

    monkeypatch.setattr("kvmon.engine.engine.Engine._compute", compute)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.usefixtures("no_model")
def test_an_engine_does_what_the_simulator_does(name: str) -> None:
    """Every allocation, failure, preemption, hit and end of every scenario, in the same order at the same times."""
    setup = setup_of(name)
    assert driven(setup, 700_000_000) == simulated(setup)


@pytest.mark.parametrize(
    ("allocator", "scheduler"),
    [
        (ContiguousConfig(256, 16, chunk_tokens=64, retained_prefixes=4), SchedulerConfig(on_growth_failure="abort")),
        (ContiguousConfig(256, 16, chunk_tokens=32, compaction=True), SchedulerConfig(token_budget=300)),
        (PagedConfig(256, 16), SchedulerConfig(token_budget=300)),
        (PagedConfig(256, 16), SchedulerConfig(preemption="swap", host_tokens=2048, token_budget=300)),
    ],
)
def test_a_real_model_changes_nothing(allocator: ContiguousConfig | PagedConfig, scheduler: SchedulerConfig) -> None:
    """With a model that computes over the pool, poison wherever nobody may read, and memory that is short."""
    traffic = Traffic(
        40,
        seed=3,
        lengths="uniform:20-500/uniform:20-150",
        arrivals=OpenLoop(20.0),
        prefixes=SharedPrefixes(3, 100),
        patience=Patience(0.2, 0.5),
    )
    setup = Setup(generate(traffic), allocator, scheduler)
    found = driven(setup, poison=True)
    assert failures_of(found) > 5
    assert found == simulated(setup)


def test_turns_of_a_conversation_begin_with_what_was_generated() -> None:
    """A later turn finds its history in the cache, the generated part included, as the simulator foresees."""
    chats = Traffic(
        24,
        seed=1,
        kind="chats",
        lengths="uniform:30-80/uniform:20-60",
        steps="uniform:3-5",
        arrivals=ClosedLoop(4, 1.0),
        pause_s=0.5,
    )
    setup = Setup(generate(chats), PagedConfig(512, 16))
    found = driven(setup)
    assert found == simulated(setup)
    hits = [fields[1] for name, fields in found if name == "admit"]
    prompts = [fields[3] for name, fields in found if name == "arrive"]
    assert sum(hits) > sum(prompts) / 3


def test_equal_identities_are_equal_tokens() -> None:
    """Prompts are equal as far as their names are, differ behind that, and stay what they are."""
    prefixes = SharedPrefixes(2, 100, zipf=0.0)
    work = generate(Traffic(12, seed=0, lengths="uniform:200-400/uniform:5-9", prefixes=prefixes))
    prompts = Prompts(work, 320)
    names = [tuple(work.hashes[work.hash_offsets[i] : work.hash_offsets[i + 1]].tolist()) for i in range(len(work))]
    assert len(set(names)) == 2
    for one in range(len(work)):
        assert len(prompts.prompt(one)) == work.prompt_tokens[one]
        assert np.array_equal(prompts.prompt(one), Prompts(work, 320).prompt(one))
        for other in range(one):
            same = prompts.prompt(one)[:96] == prompts.prompt(other)[:96]
            assert same.all() if names[one] == names[other] else same.mean() < 0.1
            assert (prompts.prompt(one)[100:200] == prompts.prompt(other)[100:200]).mean() < 0.1
    assert max(prompt.max() for prompt in map(prompts.prompt, range(len(work)))) < 320


def test_arrivals_are_recorded_when_they_were() -> None:
    """A request that comes in the middle of a step has waited since then, and not since the step's end."""
    work = Workload(
        np.array([0, 1_000_000]),
        np.array([64, 64], np.int32),
        *(np.array([4, 4], np.int32),) * 2,
        np.zeros(2, np.int32),
    )
    arrivals = [fields[1] for name, fields in driven(Setup(work, PagedConfig(64, 16))) if name == "arrive"]
    assert arrivals == [0, 1_000_000]


def test_a_prompt_for_another_model_is_an_error_of_the_caller() -> None:
    """What the engine cannot take at all is raised; what the pool can never hold is a refused request."""
    driver = build_driver(setup_of("two-phase"))
    driver.engine.max_model_len = 10
    with pytest.raises(ConfigError, match="shorten the prompt"):
        driver.run()
    work = setup_of("two-phase").workload
    large = build_driver(Setup(replace(work, prompt_tokens=work.prompt_tokens + 2000), PagedConfig(64, 16)))
    assert large.run()


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        (Setup(setup_of("leak").workload, PagedConfig(64), SchedulerConfig(lookahead_tokens=2)), "no draft model"),
        (Setup(setup_of("leak").workload, PagedConfig(64), faults=Faults(errors=(EngineError(1, 1, 1, 1),))), "beside"),
    ],
)
def test_what_the_engine_has_no_part_for_is_refused(setup: Setup, reason: str) -> None:
    """In one line that names the tool that can."""
    assert reason in str(why_not(setup))
    with pytest.raises(ConfigError, match=f"{reason}.*kvmon simulate"):
        build_driver(setup)


def test_outputs_of_who_hung_up_are_nobodys() -> None:
    """The engine may still say that a request ended that the driver has ended: it is not counted twice."""
    setup = setup_of("stranded", 20)
    driver: Driver = build_driver(setup)
    ends: list[Output] = []
    step = driver.engine.step

    def noting() -> list[Output]:
        outputs = step()
        ends.extend(output for output in outputs if output.finish is not None)
        return outputs

    driver.engine.step = noting  # type: ignore[method-assign]
    driver.run()
    assert any(output.finish == "abort" for output in ends)

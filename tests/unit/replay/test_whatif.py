"""What-ifs against the truth: the predicted configuration, really run; and ranges where something is left open."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.errors import ConfigError, InputError
from kvmon.replay.changes import UNCHANGED, changed, parse_what_if
from kvmon.replay.outcome import Outcome
from kvmon.replay.proposals import propose
from kvmon.replay.recordings import Recording
from kvmon.replay.step_clock import step_clock
from kvmon.replay.whatif import answer, begin_comparison, compare
from kvmon.serving import SchedulerConfig, Workload
from kvmon.serving.scenarios import SCENARIOS, Setup, find
from kvmon.serving.step_time import StepTime
from kvmon.serving.workloads import OpenLoop, Patience, SharedPrefixes, Traffic, generate
from kvmon.state import scan
from tests.unit.replay.replaying import recording_of, recording_of_words, truth_of, words_of

CHANGES = ("allocator=paged", "block=32", "pool=+20%", "prefix-cache=off", "admission=full-need")
MORE_CHANGES = (
    "allocator=paged,block=64,on-no-fit=wait,on-growth-failure=preempt",
    "allocator=best-fit,reserve=chunk:64,pool=70%",
    "token-budget=256,watermark=5%",
)


def predicted_and_true(
    setup: Setup, recording: Recording, changes: tuple[str, ...]
) -> list[tuple[str, Outcome, Outcome]]:
    """Every change that is possible for this engine: what was predicted from its recording, what really happens."""
    clock = step_clock(recording.demand)
    found = []
    for text in changes:
        what_if = parse_what_if(text)
        try:
            changed(recording.demand.described(), what_if, recording.demand.hash_tokens)
        except ConfigError:
            continue
        one = answer(recording.demand, clock, what_if)
        assert one.definite and not one.ranges
        found.append((text, one.most, truth_of(setup, recording, what_if)))
    return found


@pytest.mark.parametrize(("seed", "changes"), [(0, CHANGES + MORE_CHANGES), (3, CHANGES)])
def test_what_was_predicted_happens_in_every_scenario(seed: int, changes: tuple[str, ...]) -> None:
    """Failures, peak memory and every other number: those of the configuration when it is really run."""
    compared = different = 0
    for scenario in SCENARIOS.values():
        if scenario.compare is not None and seed:
            continue  # the same traffic four times; once will do
        setups = scenario.setups(seed)[0]
        setup = next(iter(setups.values()))
        recording = recording_of(setup)
        if recording.demand.gaps:
            continue
        before = recording.outcome
        for text, predicted, true in predicted_and_true(setup, recording, changes):
            assert predicted == true, f"{scenario.name}: {text}"
            compared += 1
            different += before is not None and predicted.peak_units != before.peak_units
    assert compared > 110 and different > 50


def test_a_clock_that_was_never_stated_is_found_again() -> None:
    """From the steps alone: rounded constants that give each to the nanosecond, and with them the exact answer."""
    setup = replace(find("capacity").setups(2)[0][""], step_time=StepTime(4_500_000.0, 21_000.0, 12_500.0, 33.0))
    recording = recording_of(setup)
    engine = recording.demand.engine
    assert engine is not None
    unsaid = replace(recording, demand=replace(recording.demand, engine=replace(engine, step_time=None)))
    clock = step_clock(unsaid.demand)
    assert (clock.source, clock.step_time) == ("found", setup.step_time)
    what_if = parse_what_if("pool=+20%,block=32")
    assert answer(unsaid.demand, clock, what_if).most == truth_of(setup, recording, what_if)


def test_noisy_steps_are_fitted_and_few_steps_are_not() -> None:
    """A fitted clock says how far it is off; below 20 steps each takes the mean, and that is said."""
    recording = recording_of(find("reservation").setups(0)[0][""])
    demand, engine = recording.demand, recording.demand.engine
    assert engine is not None
    noise = np.random.default_rng(1).normal(1.0, 0.6, len(demand.steps)).clip(0.2)
    noisy = replace(demand.steps, duration_ns=(demand.steps.duration_ns * noise).astype(np.int64))
    rough = step_clock(replace(demand, steps=noisy, engine=replace(engine, step_time=None)))
    assert rough.source == "fitted" and "off the formula" in rough.poor
    few = replace(demand.steps, **{name: column[:5] for name, column in vars(demand.steps).items()})
    short = step_clock(replace(demand, steps=few, engine=replace(engine, step_time=None)))
    assert short.source == "mean" and "5 steps are too few" in short.poor


def impatient(seed: int) -> Setup:
    """Requests of which many hang up, over a pool that is too small."""
    work = generate(
        Traffic(
            150,
            seed=seed,
            lengths="uniform:100-900/uniform:50-300",
            arrivals=OpenLoop(15.0),
            prefixes=SharedPrefixes(4, 160),
            patience=Patience(0.4, 4.0),
        )
    )
    return Setup(work, PagedConfig(600, 16), SchedulerConfig())


def untold(setup: Setup) -> Recording:
    """As a foreign engine records it: nobody says beforehand how long answers become or clients wait."""
    recording = recording_of(setup)
    unknown = np.full(len(recording.demand), -1)
    return replace(recording, demand=replace(recording.demand, intended=unknown, patience_ns=unknown))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_where_answers_were_cut_off_the_range_holds_the_truth(seed: int) -> None:
    """Two runs, with the answers as they were cut off and up to their limits; what was cut off is counted."""
    setup = impatient(seed)
    recording = untold(setup)
    censored = recording.demand.censored
    assert recording.outcome is not None and censored.hung_up == recording.outcome.hung_up > 10
    assert censored.total == censored.hung_up
    one = answer(recording.demand, step_clock(recording.demand), parse_what_if("pool=+50%"))
    assert not one.definite and any("hung up" in line for line in one.ranges)
    # Clients that were patient enough in the recording are taken for patient; so the truth has a few more that leave.
    true = truth_of(setup, recording, parse_what_if("pool=+50%"))
    assert one.least.output_tokens <= one.most.output_tokens
    low, high = sorted((one.least.peak_units or 0, one.most.peak_units or 0))
    assert low - 6 <= (true.peak_units or 0) <= high + 6


def test_a_recording_that_ended_too_early_leaves_open_what_was_to_come() -> None:
    """Half of a run: who still ran ends where it was or at its limit."""
    setup = replace(find("capacity").setups(0)[0][""])
    pieces = np.concatenate(words_of(setup))
    cut = int(scan(pieces).ends[3_000])
    recording = recording_of_words([pieces[:cut]])
    recording = replace(
        recording, demand=replace(recording.demand, intended=np.full(len(recording.demand), -1, np.int64))
    )
    running = recording.demand.censored.running
    assert recording.outcome is not None and running == recording.outcome.unfinished > 5
    one = answer(recording.demand, step_clock(recording.demand), UNCHANGED)
    assert one.least.output_tokens < one.most.output_tokens
    assert f"{running:,} requests had not ended when the recording did" in one.ranges


def test_pages_finer_than_the_names_give_a_range_that_holds_the_truth() -> None:
    """Prefixes of 220 tokens: names of 64 tell 192 of them, pages of 16 can share 208."""
    rng = np.random.default_rng(5)
    count, prefix = 200, 220
    prompt = (prefix + rng.integers(20, 300, count)).astype(np.int32)

    def work(step: int) -> Workload:
        """The same requests, named every `step` tokens: whole steps of the prefix are shared, all behind is not."""
        names = [
            [1 + page if (page + 1) * step <= prefix else 10_000 + 100 * who + page for page in range(length // step)]
            for who, length in enumerate(prompt.tolist())
        ]
        return Workload(
            np.arange(count) * 60_000_000,
            prompt,
            np.full(count, 80, np.int32),
            np.full(count, 80, np.int32),
            np.zeros(count, np.int32),
            np.concatenate([[0], np.cumsum([len(row) for row in names])]).astype(np.int64),
            np.array([name for row in names for name in row], np.uint64),
            step,
        )

    pool = PagedConfig(150, 64)
    recording = recording_of(Setup(work(64), pool, SchedulerConfig()))
    what_if = parse_what_if("block=16")
    one = answer(recording.demand, step_clock(recording.demand), what_if)
    true = truth_of(Setup(work(16), pool, SchedulerConfig()), recording, what_if)
    assert "finer than the recorded names of 64" in one.ranges[0]
    assert one.most.hit_tokens < true.hit_tokens <= one.least.hit_tokens
    low, high = sorted((one.least.peak_units or 0, one.most.peak_units or 0))
    assert low <= (true.peak_units or 0) <= high


def test_closed_loop_clients_are_an_assumption_where_nobody_says_who_follows_whom() -> None:
    """Known followers wait for the answers they wait for; unknown ones come when they came, which is said."""
    setup = find("chatbot-degradation").setups(0)[0][""]
    known = recording_of(setup)
    demand = replace(known.demand, follows=np.zeros(len(known.demand), np.int64))
    assert known.demand.closed_loop and not demand.closed_loop
    what_if = parse_what_if("pool=50%")
    clock = step_clock(known.demand)
    assert answer(known.demand, clock, what_if).most == truth_of(setup, known, what_if)
    assert answer(replace(demand, due_ns=np.sort(demand.due_ns)), clock, what_if).most.requests == len(demand)
    assert any("closed-loop" in line for line in recording_of(find("capacity").setups(0)[0][""]).demand.assumptions)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pool", "is no change: write key=value"),
        ("blocks=16", "nothing called 'blocks': did you mean block"),
        ("frobnicate=1", "nothing called 'frobnicate': choose of"),
        ("block=16,block-size=32", "said twice"),
        ("block=0", "a block of 0 tokens is none"),
        ("block=many", "is no whole number"),
        ("block=24", "do not match prefix identities of 16 tokens"),
        ("pool=-100%", "leaves no memory"),
        ("pool=-5", "is no size"),
        ("pool=nan%", "is no size"),
        ("pool=1e400%", "is no size"),
        ("pool=12", "smaller than one block"),
        ("prefix-cache=maybe", "neither on nor off"),
        ("allocator=slab", "is no allocator"),
        ("allocator=paged,reserve=max", "reserve belongs to contiguous blocks"),
        ("allocator=buddy,compaction=on", "no compaction"),
        ("allocator=first-fit,evict=lru", "evict belongs to paged"),
        ("evict=random", "eviction policy 'random' is unknown"),
        ("prefix-cache=off,evict=fifo", "switch the prefix cache on"),
        ("admission=never", "admit_by 'never' is unknown"),
        ("watermark=200%", "is no share of the pool"),
        ("quota=2", "names no class"),
        ("pin-after=2", "pins need both"),
        ("reserve=chunk:64", "reserve belongs to contiguous blocks"),
    ],
)
def test_an_impossible_what_if_is_one_clear_line(text: str, why: str) -> None:
    """Before anything runs, and with what to write instead."""
    engine = recording_of(find("warm-cache").setups(0)[0][""]).demand.described()
    with pytest.raises(ConfigError) as caught:
        changed(engine, parse_what_if(text), 16)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_a_change_means_what_it_says() -> None:
    """Relative and absolute sizes, what goes with a change of allocator, and what stays."""
    recording = recording_of(find("post-incident").setups(0)[0][""])
    engine, named = recording.demand.described(), recording.demand.hash_tokens
    assert isinstance(engine.allocator, ContiguousConfig) and engine.allocator.retained_prefixes
    tokens = engine.allocator.capacity_units * engine.allocator.unit_tokens

    def new(text: str) -> AllocatorConfig:
        return changed(engine, parse_what_if(text), named).allocator

    paged = new("allocator=paged")
    assert paged == PagedConfig(tokens // 16, 16, prefix_cache=True)
    assert changed(engine, parse_what_if("allocator=paged"), 0).allocator == replace(paged, prefix_cache=False)
    for text, size in (("pool=+25%", 1.25), ("pool=-25%", 0.75), ("pool=150%", 1.5), (f"pool={2 * tokens}", 2.0)):
        assert new(text) == replace(engine.allocator, capacity_units=round(size * engine.allocator.capacity_units))
    assert new(f"pool={tokens * engine.token_bytes // 1024}KiB") == engine.allocator
    full = changed(engine, parse_what_if("admission=full-need, max-seqs=3, retain=0"), named)
    assert (full.scheduler.admit_by, full.scheduler.max_sequences) == ("full", 3)
    assert full.allocator == replace(engine.allocator, retained_prefixes=0)
    assert full.scheduler.on_growth_failure == engine.scheduler.on_growth_failure


def test_a_pool_smaller_than_a_request_is_possible_and_says_never_fits() -> None:
    """It is what such a pool does, no error."""
    recording = recording_of(find("post-incident").setups(0)[0][""])
    one = answer(recording.demand, step_clock(recording.demand), parse_what_if("allocator=paged,pool=1000"))
    assert one.most.failures["never_fits"] > 0 and "never_fits" in one.most.verdicts


def test_a_comparison_is_deterministic_and_serialisable() -> None:
    """The same twice, down to the last digit, as JSON."""
    recording = recording_of(find("fragmentation").setups(0)[0][""])
    what_ifs = [parse_what_if("allocator=paged"), parse_what_if("pool=+20%")]
    first, second = (json.dumps(compare(recording, what_ifs).to_json(), sort_keys=True) for _ in range(2))
    assert first == second
    said = json.loads(first)
    assert said["calibration"]["different_steps"] == 0 and len(said["answers"]) == 2
    assert said["unchanged"]["most"] == {**said["recorded"]}


@pytest.mark.parametrize("name", [scenario.name for scenario in SCENARIOS.values() if scenario.compare is None])
def test_findings_have_what_avoids_them_checked(name: str) -> None:
    """For each verdict of a scenario: a change under which it is gone and nobody more is lost, or that none helps."""
    recording = recording_of(find(name).setups(0)[0][""])
    begun = begin_comparison(recording)
    for verdict in {finding.verdict for finding in recording.stream.findings}:
        proposal = propose(verdict, recording.demand, begun)
        if proposal is None:
            assert verdict == "telemetry_untrusted"
        elif proposal.helps is None:
            assert proposal.said.endswith(("avoids it", "avoid it"))
        else:
            assert verdict not in proposal.helps.most.verdicts
            assert proposal.helps.most.lost <= begun.unchanged.most.lost
            assert f"with {proposal.helps.what_if.text} there is no {verdict}" in proposal.said
    if name in ("post-incident", "fragmentation", "root-cause", "stabilizing", "multi-tenant"):
        proposal = propose("fragmentation", recording.demand, begun)
        assert proposal is not None and proposal.helps is not None and proposal.helps.most.lost == 0


def test_what_cannot_be_replayed_says_why() -> None:
    """No demand: one line, and nothing is run."""
    recording = recording_of(find("capacity").setups(0)[0][""])
    bare = replace(recording, demand=replace(recording.demand, missing="its adapter sees no request"))
    for ask in (lambda: begin_comparison(bare), lambda: compare(bare, [UNCHANGED])):
        with pytest.raises(InputError, match="simulator-0 cannot be replayed: its adapter sees no request"):
            ask()

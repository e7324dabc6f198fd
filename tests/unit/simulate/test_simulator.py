"""The simulator: the scheduler's own steps under a clock, and what it reports."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.errors import ConfigError
from kvmon.serving import Scheduler, SchedulerConfig, StepTime, Workload
from kvmon.serving.checks import check_serving
from kvmon.serving.faults import Faults
from kvmon.serving.workloads import ClosedLoop, SharedPrefixes, Traffic, chat_and_agents, generate
from kvmon.simulate import Result, infinite_cache, simulate
from kvmon.simulate.run import FINISHED, STEP_LIMIT, STEPS_LEFT, new_clock, run
from kvmon.simulate.simulator import demand_of, simulation_state
from tests.naive.journal_fold import JournalFold


def workload(prompts: list[int], outputs: list[int], gap_ns: int = 0) -> Workload:
    """Requests without prefixes, `gap_ns` apart."""
    n = len(prompts)
    return Workload(
        np.arange(n, dtype=np.int64) * gap_ns,
        np.array(prompts, np.int32),
        np.array(outputs, np.int32),
        np.full(n, max(outputs), np.int32),
        np.zeros(n, np.int32),
    )


def without_clock(result: Result) -> Result:
    """Everything but the time that the machine took."""
    return replace(result, wall_seconds=0.0)


def journal_of(demand: Workload, allocator: AllocatorConfig, config: SchedulerConfig, words: int) -> list[int]:
    """The whole journal of a run, through a buffer of `words`."""
    pieces: list[int] = []
    simulate(demand, allocator, config, journal_sink=lambda piece: pieces.extend(piece.tolist()), journal_words=words)
    return pieces


PRESSED = [
    (PagedConfig(160, 16), SchedulerConfig(token_budget=256, max_sequences=16)),
    (PagedConfig(160, 16, prefix_cache=False), SchedulerConfig(token_budget=256, watermark=0.1, admit_by="chunk")),
    (ContiguousConfig(4000, 1, 64), SchedulerConfig(max_sequences=16)),
    (ContiguousConfig(1500, 4, None), SchedulerConfig(max_sequences=16, max_model_len=5000)),
]


@pytest.mark.parametrize(("allocator", "config"), PRESSED)
def test_the_simulator_is_the_scheduler(allocator: AllocatorConfig, config: SchedulerConfig) -> None:
    """Step by step through the class and at once through the simulator give the same journal, word by word."""
    demand = chat_and_agents(5, 30, rate_per_s=50)
    times = StepTime()
    scheduler = Scheduler(allocator, config, hash_tokens=demand.hash_tokens, journal=True)
    words: list[int] = []
    now, following = 0, 0
    while following < len(demand) or scheduler.has_work:
        while following < len(demand) and (demand.arrival_ns[following] <= now or not scheduler.has_work):
            now = max(now, int(demand.arrival_ns[following]))
            first, last = demand.hash_offsets[following : following + 2]
            scheduler.add(
                int(demand.prompt_tokens[following]),
                int(demand.token_limit[following]),
                intended_output=int(demand.output_tokens[following]),
                class_id=int(demand.class_id[following]),
                identities=demand.hashes[first:last],
                arrival_ns=int(demand.arrival_ns[following]),
            )
            following += 1
        if not scheduler.has_work:
            continue
        plan = scheduler.schedule()
        prefill = int(plan.tokens[~plan.decodes].sum())
        context = int((plan.computed + plan.tokens).sum())
        duration = times.duration_ns(prefill, int(plan.decodes.sum()), context)
        scheduler.commit(now, duration)
        now += duration
        words += scheduler.drain().tolist()
    assert words == journal_of(demand, allocator, config, 1 << 20)


@pytest.mark.parametrize(("allocator", "config"), PRESSED)
def test_a_small_journal_changes_nothing(allocator: AllocatorConfig, config: SchedulerConfig) -> None:
    """The journal is the same through any buffer, and the result is the same without one."""
    demand = chat_and_agents(2, 40, rate_per_s=50)
    whole = journal_of(demand, allocator, config, 1 << 20)
    assert journal_of(demand, allocator, config, 64) == whole
    with_one = simulate(demand, allocator, config, journal_sink=lambda piece: None)
    assert without_clock(with_one) == without_clock(simulate(demand, allocator, config))


@pytest.mark.parametrize(("allocator", "config"), PRESSED)
def test_totals_follow_from_the_journal(allocator: AllocatorConfig, config: SchedulerConfig) -> None:
    """Completed, preempted, evicted, failed, copied and found are what a fold of the journal counts."""
    demand = chat_and_agents(7, 60, rate_per_s=50)
    fold = JournalFold(allocator.capacity_units, unit_tokens=allocator.unit_tokens)
    result = simulate(demand, allocator, config, journal_sink=lambda piece: fold.feed(piece.tolist()))
    ended = [seen.ended for seen in fold.requests.values()]
    assert result.completed == ended.count(1) + ended.count(2)
    assert result.refused == ended.count(5)
    assert sum(result.allocation_failures.values()) == len(fold.fails)
    assert result.failures_at_start + result.failures_mid_stream == len(fold.fails)
    assert result.evictions == fold.evicted
    assert result.steps == len(fold.steps)
    assert result.output_tokens == sum(seen.output for seen in fold.requests.values())
    assert result.computed_tokens == sum(step[2] + step[3] for step in fold.steps)
    assert result.duration_s == pytest.approx((fold.steps[-1][0] + fold.steps[-1][1]) / 1e9)
    assert result.unfinished == 0


def test_pressure_is_there() -> None:
    """The cases above do exercise failures, preemptions, evictions and moves."""
    demand = chat_and_agents(7, 60, rate_per_s=50)
    results = [simulate(demand, allocator, config) for allocator, config in PRESSED]
    assert all(result.allocation_failures for result in results)
    assert results[0].preemptions and results[0].evictions and results[0].prefix_hit_tokens
    assert results[2].relocations and results[2].copied_tokens and "no_contiguous_run" in results[2].allocation_failures


@pytest.mark.parametrize(("allocator", "config"), PRESSED)
def test_invariants_hold_wherever_a_run_stops(allocator: AllocatorConfig, config: SchedulerConfig) -> None:
    """Stopped every seven steps, every invariant of pool and scheduler holds, to the end."""
    workload = chat_and_agents(9, 40, rate_per_s=50)
    state = simulation_state(workload, allocator, config, 0)
    demand = demand_of(workload, Faults())
    clock = new_clock()
    status = STEP_LIMIT
    while status == STEP_LIMIT:
        clock[STEPS_LEFT] = 7
        status = run(state, demand, clock, np.array([6e6, 3e4, 2e4, 40.0]))
        check_serving(state)
    assert status == FINISHED


def test_time_goes_by_the_model() -> None:
    """One request: a step for its prompt, then one for each further token, each as long as the model says."""
    times = StepTime(base_ns=1000, prefill_token_ns=10, decode_sequence_ns=7, context_token_ns=1)
    result = simulate(workload([50], [3]), PagedConfig(10), SchedulerConfig(), times)
    assert result.steps == 3
    assert result.ttft_p50_s == pytest.approx((1000 + 500 + 50) / 1e9)
    assert result.duration_s == pytest.approx((1550 + (1000 + 7 + 51) + (1000 + 7 + 52)) / 1e9)


def test_averages_are_over_time() -> None:
    """Tail and utilization of a single request follow by hand: 5, 6, 7 and 8 tokens in pages of 4."""
    result = simulate(workload([5], [4]), PagedConfig(10, 4), SchedulerConfig(), StepTime(1000, 0, 0, 0))
    assert result.tail_waste_ratio == pytest.approx((3 + 2 + 1 + 0) / 8 / 4)
    assert result.page_utilization_ratio == pytest.approx((5 + 6 + 7 + 8) / 8 / 4)
    assert result.external_fragmentation_ratio is None
    assert result.peak_active_units == 2


def test_reservations_are_not_tail() -> None:
    """A contiguous block of 3 granules of 4 with 5 to 8 tokens: the unfilled one is tail, the untouched reserved."""
    demand = workload([5], [4])
    result = simulate(demand, ContiguousConfig(10, 4), SchedulerConfig(max_model_len=12), StepTime(1000, 0, 0, 0))
    assert result.tail_waste_ratio == pytest.approx((3 + 2 + 1 + 0) / 12 / 4)
    assert result.reserved_ratio == pytest.approx(4 / 12)
    assert result.external_fragmentation_ratio == 0.0


def test_the_deadlock_is_stated_and_repeatable() -> None:
    """511 pages of 16, prompts of 4,096 and 4,080, nobody preempted: the run stops and says so, the same every time."""
    demand = workload([4096, 4080, 100], [50, 50, 50])
    config = SchedulerConfig(token_budget=8192, on_growth_failure="wait")
    results = [without_clock(simulate(demand, PagedConfig(511, 16), config)) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0].deadlock and results[0].unfinished == 3
    preempting = simulate(demand, PagedConfig(511, 16), SchedulerConfig(token_budget=8192))
    assert not preempting.deadlock
    assert preempting.completed == 3 and preempting.preemptions >= 1


def test_the_step_limit_stops_a_run() -> None:
    """A run can be cut short and says that it was."""
    result = simulate(workload([10, 10], [50, 50]), PagedConfig(10), most_steps=5)
    assert result.step_limit_reached and result.steps == 5 and result.unfinished == 2


def test_pages_that_identities_cannot_name_are_refused() -> None:
    """A page size beside the prefix step is an error, unless the prefix cache is off."""
    demand = chat_and_agents(1, 5)
    with pytest.raises(ConfigError, match="prefix identities of 16"):
        simulate(demand, PagedConfig(1000, 24))
    assert simulate(demand, PagedConfig(1000, 24, prefix_cache=False)).prefix_lookup_tokens == 0


def test_a_result_is_json() -> None:
    """Every field survives JSON, and what an allocator cannot know is null."""
    result = simulate(workload([10], [2]), PagedConfig(10))
    decoded = json.loads(json.dumps(result.to_json()))
    assert decoded["requests"] == 1 and decoded["external_fragmentation_ratio"] is None


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=12), st.integers(0, 7))
def test_an_infinite_cache_counts_like_a_set_of_prefixes(chains: list[list[int]], rest: int) -> None:
    """Blocks found are those whose whole prefix stood in an earlier request."""
    names: dict[tuple[int, ...], int] = {}
    ids = [[names.setdefault(tuple(c[: i + 1]), len(names) + 1) for i in range(len(c))] for c in chains]
    prompts = [max(1, 8 * len(chain) - rest if len(chain) > 1 else 8 * len(chain)) for chain in chains]
    demand = replace(
        workload(prompts, [1] * len(chains)),
        hashes=np.array([i for chain in ids for i in chain], np.uint64),
        hash_offsets=np.cumsum([0, *map(len, ids)]),
        hash_tokens=8,
    )
    seen: set[tuple[int, ...]] = set()
    found = 0
    for chain in chains:
        prefixes = [tuple(chain[: i + 1]) for i in range(len(chain))]
        found += sum(prefix in seen for prefix in prefixes)
        seen.update(prefixes)
    cache = infinite_cache(demand)
    assert (cache.hit_blocks, cache.lookup_blocks) == (found, sum(map(len, chains)))
    assert cache.full_hit_tokens <= cache.hit_tokens <= cache.lookup_tokens


@pytest.mark.parametrize("allocator", [PagedConfig(2000, 16), ContiguousConfig(32_000, 1, 64)])
def test_a_million_steps(allocator: AllocatorConfig) -> None:
    """A run of more than 10^6 steps under pressure ends with everybody served, in seconds."""
    demand = chat_and_agents(11, 40_000, rate_per_s=3.2)
    result = simulate(demand, allocator, SchedulerConfig(max_sequences=32))
    assert result.steps > 1_000_000
    assert result.unfinished == 0 and result.errors == 0
    assert result.completed == len(demand)
    assert result.wall_seconds < 60


def test_the_longest_prefix_that_stayed_behind_is_copied() -> None:
    """A chat's next turn begins with its last prompt: that region is found, not only one of the same length."""
    traffic = Traffic(60, seed=3, kind="chats", prefixes=SharedPrefixes(1, 160), arrivals=ClosedLoop(1), pause_s=0.01)
    result = simulate(
        generate(traffic), ContiguousConfig(20_000, 1, 64, retained_prefixes=2), SchedulerConfig(), StepTime()
    )
    assert result.completed == 60 and result.prefix_hit_tokens > 0.5 * result.prefix_lookup_tokens
    assert result.units_at_end["pinned"] > 0

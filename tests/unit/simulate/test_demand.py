"""What happens to a run from outside: followers, clients that hang up, errors elsewhere, and standstills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, PagedConfig
from kvmon.allocators.journal import ENTRY_NAMES, iterate
from kvmon.serving import SchedulerConfig, StepTime, Workload
from kvmon.serving.faults import EngineError, Faults
from kvmon.simulate import Result, simulate
from tests.unit.serving.option_sets import HASH_TOKENS, STEP_NS, contiguous_pools, option_sets, paged_pools
from tests.unit.serving.watching import identities, new_fold

Options = tuple[AllocatorConfig, SchedulerConfig, Faults]
Entries = list[tuple[str, list[int]]]

SECOND = 1_000_000_000
#: Every step takes a second, whatever it computes.
A_SECOND = StepTime(base_ns=SECOND, prefill_token_ns=0, decode_sequence_ns=0, context_token_ns=0)


def workload(
    prompts: list[int],
    outputs: list[int],
    arrivals: list[float] | None = None,
    *,
    follows: list[int] | None = None,
    patience: list[float] | None = None,
    classes: list[int] | None = None,
) -> Workload:
    """Requests with times in seconds: of arrival or, for those that follow another one, of their pause."""
    n = len(prompts)
    return Workload(
        (np.array(arrivals or [0.0] * n) * SECOND).astype(np.int64),
        np.array(prompts, np.int32),
        np.array(outputs, np.int32),
        np.array(outputs, np.int32),
        np.array(classes or [0] * n, np.int32),
        follows=np.array(follows or [], np.int32),
        abort_ns=(np.array(patience or []) * SECOND).astype(np.int64),
    )


def journal(
    demand: Workload,
    allocator: AllocatorConfig,
    config: SchedulerConfig | None = None,
    faults: Faults | None = None,
    **more: int,
) -> tuple[Result, Entries]:
    """The result of a run in steps of a second, and its journal by name."""
    pieces: list[np.ndarray] = []  # type: ignore[type-arg]
    sink = lambda piece: pieces.append(piece.copy())  # noqa: E731
    result = simulate(demand, allocator, config, A_SECOND, faults=faults, journal_sink=sink, **more)
    return result, [(ENTRY_NAMES[code], fields) for code, fields in iterate(np.concatenate(pieces))]


def ends(seen: Entries) -> dict[int, tuple[float, int]]:
    """End of the step in whose record each request finished (s), and the reason."""
    found: dict[int, tuple[float, int]] = {}
    open_now: dict[int, int] = {}
    for name, fields in seen:
        if name == "finish":
            open_now[fields[0]] = fields[1]
        if name == "step":
            for request, reason in open_now.items():
                found[request] = ((fields[0] + fields[1]) / SECOND, reason)
            open_now = {}
    return found


def arrivals(seen: Entries) -> dict[int, float]:
    """When each request arrived (s)."""
    return {fields[0]: fields[1] / SECOND for name, fields in seen if name == "arrive"}


def test_followers_arrive_a_pause_after_the_end_of_their_leader() -> None:
    """A chain and a fan: each arrival is the leader's end and its own pause, to the nanosecond."""
    demand = workload(
        [4, 4, 4, 4, 9],
        [3, 2, 5, 1, 2],
        [0.5, 2.25, 0.75, 4.5, 30.0],
        follows=[0, 1, 1, 2, 0],
    )
    result, seen = journal(demand, PagedConfig(100, 4))
    ended, arrived = ends(seen), arrivals(seen)
    assert result.completed == 5
    assert arrived[1] == 0.5 and ended[1][0] == 3.5
    assert arrived[2] == 3.5 + 2.25 and arrived[3] == 3.5 + 0.75
    assert arrived[4] == ended[2][0] + 4.5
    assert arrived[5] == 30.0


def test_whoever_follows_a_refused_or_aborted_request_still_comes() -> None:
    """A leader that never fits has ended, too; one whose client hung up as well."""
    demand = workload([50, 4, 4, 4], [1, 1, 30, 1], [0.0, 2.0, 0.0, 0.5], follows=[0, 1, 0, 3], patience=[0, 0, 7.5, 0])
    result, seen = journal(demand, PagedConfig(40, 1))
    assert (result.refused, result.aborted, result.completed) == (1, 1, 2)
    arrived = arrivals(seen)
    assert arrived[2] == 2.0
    assert arrived[4] == 8.0 + 0.5, "the hang-up at 7.5 is noticed when the step ends"


def test_a_hang_up_frees_the_memory_at_once() -> None:
    """The pages of a request whose client hung up go to somebody who waits, in the next step; one that waits leaves."""
    demand = workload([30, 30, 30], [10, 10, 10], [0.0, 0.0, 0.0], patience=[3.5, 0, 2.5])
    result, seen = journal(demand, PagedConfig(40, 1))
    assert (result.aborted, result.completed) == (2, 1)
    names = [(name, fields[0]) for name, fields in seen if name in ("admit", "finish", "step")]
    assert names.index(("finish", 3)) < names.index(("finish", 1)) < names.index(("admit", 2))
    between = names[names.index(("finish", 1)) : names.index(("admit", 2))]
    assert not any(name == "step" for name, _ in between)


def test_hang_ups_after_the_end_change_nothing() -> None:
    """A patience that nobody needs neither aborts nor makes the run longer."""
    patient = workload([4, 4], [3, 3], [0.0, 1.0], patience=[1000.0, 2000.0])
    plain = workload([4, 4], [3, 3], [0.0, 1.0])
    results = [journal(demand, PagedConfig(100, 4))[0] for demand in (patient, plain)]
    assert results[0].aborted == 0
    assert results[0].duration_s == results[1].duration_s == 4.0


def test_an_error_elsewhere_kills_the_longest() -> None:
    """The error stands in the journal with its bytes, the request with the longest context ends by it, others go on."""
    faults = Faults(errors=(EngineError(2_500_000_000, 7, 5, 3), EngineError(90 * SECOND, 1, 1, 1)))
    demand = workload([4, 9, 5], [6, 6, 6])
    result, seen = journal(demand, PagedConfig(100, 4), faults=faults)
    assert [fields for name, fields in seen if name == "error"] == [[1, 7, 5, 3]]
    assert ends(seen)[2][1] == 4
    assert (result.errors, result.completed) == (1, 2)


def test_who_waits_for_ever_is_a_deadlock() -> None:
    """A request larger than the pool that is let wait blocks everybody behind it: the run stops and says so."""
    demand = workload([3, 50, 3], [2, 2, 2], [0.0, 1.0, 2.0])
    result, seen = journal(demand, PagedConfig(40, 1), SchedulerConfig(on_never_fits="wait"))
    assert result.deadlock and result.unfinished == 2 and result.completed == 1
    assert [fields[6] for name, fields in seen if name == "fail"] == [5]
    refused, _ = journal(demand, PagedConfig(40, 1))
    assert not refused.deadlock and (refused.refused, refused.completed) == (1, 2)


def test_a_linger_goes_on_while_nothing_moves() -> None:
    """An engine that stands still goes on making empty steps, for as long as the linger says."""
    demand = workload([50], [2])
    config = SchedulerConfig(on_never_fits="wait")
    short, _ = journal(demand, PagedConfig(40, 1), config)
    long, seen = journal(demand, PagedConfig(40, 1), config, linger_ns=60 * SECOND)
    assert short.deadlock and long.deadlock and short.duration_s < 2
    assert 60 <= long.duration_s < 63
    steps = [fields for name, fields in seen if name == "step"]
    assert len(steps) > 30 and all(fields[2] == fields[3] == 0 and fields[6] == 1 for fields in steps)


def test_a_hang_up_ends_a_deadlock() -> None:
    """While a client may still hang up nothing is lost: the run goes on when it does."""
    demand = workload([50, 4], [2, 2], [0.0, 1.0], patience=[20.0, 0.0])
    result, seen = journal(demand, PagedConfig(40, 1), SchedulerConfig(on_never_fits="wait"))
    assert not result.deadlock and (result.aborted, result.completed) == (1, 1)
    assert ends(seen)[2][0] == 22.0


def test_an_arrival_that_goes_ahead_ends_a_standstill() -> None:
    """Somebody more urgent, or of another class than the one at its quota, is served past one that waits for ever."""
    demand = workload([50, 4], [2, 2], [0.0, 9.0], classes=[0, 1])
    waits = SchedulerConfig(on_never_fits="wait", priorities=((1, -1),))
    result, _ = journal(demand, PagedConfig(40, 1), waits)
    assert result.deadlock and result.completed == 1
    passed = workload([30, 4], [2, 2], [0.0, 9.0], classes=[0, 1])
    result, _ = journal(passed, PagedConfig(40, 1, quotas=((0, 0.5),)), SchedulerConfig(on_never_fits="wait"))
    assert result.deadlock and result.completed == 1


def test_a_transfer_that_ends_lets_somebody_in() -> None:
    """Pages that a transfer reads are missing until it is over; one that is stranded for ever is a deadlock."""
    demand = workload([30, 30], [2, 2])
    config = SchedulerConfig(transfer_share=1.0, transfer_ns=50 * SECOND)
    result, seen = journal(demand, PagedConfig(40, 1), config)
    assert result.completed == 2 and result.transfers == 2 and not result.deadlock
    first = ends(seen)[1][0]
    assert ends(seen)[2][0] == first + 50 + 2
    hung = replace(demand, abort_ns=np.array([SECOND // 2, 0], np.int64), output_tokens=np.array([9, 9], np.int32))
    stranded, _ = journal(hung, PagedConfig(40, 1), config, Faults(strand_share=1.0))
    assert stranded.deadlock and stranded.stranded_transfers == 1 and stranded.unfinished == 1


def random_demand(seed: int, count: int, third: int) -> Workload:
    """Requests of every kind: own arrivals and followers, patient and impatient, with and without prefixes."""
    random = np.random.default_rng(seed)
    prompts = random.integers(1, third + 1, count)
    names = [identities(int(p), int(random.integers(0, 3)), i + 1) for i, p in enumerate(prompts)]
    follows = np.where(random.random(count) < 0.3, random.integers(0, np.arange(count) + 1), 0)
    times = np.sort(random.integers(0, 3 * count, count)) * STEP_NS
    return Workload(
        np.where(follows > 0, random.integers(0, 9, count) * STEP_NS, times),
        prompts.astype(np.int32),
        random.integers(1, third + 1, count).astype(np.int32),
        np.full(count, third, np.int32),
        random.integers(0, 4, count).astype(np.int32),
        np.cumsum([0, *map(len, names)]),
        np.array([name for some in names for name in some], np.uint64),
        HASH_TOKENS,
        follows=follows.astype(np.int32),
        abort_ns=np.where(random.random(count) < 0.2, random.integers(1, 40, count) * STEP_NS, 0),
    )


@settings(max_examples=60)
@given(st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())), st.integers(0, 10**6))
def test_a_run_depends_on_no_journal(options: Options, seed: int) -> None:
    """Through a buffer of 64 words, through a large one and without a journal: the same journal, the same result.

    And the totals of the result are what a fold of that journal counts.
    """
    allocator, config, faults = options
    if seed % 3 == 0:
        faults = replace(faults, errors=(EngineError(20 * STEP_NS, 3, 2, 1), EngineError(60 * STEP_NS, 3, 2, 1)))
    demand = random_demand(seed, 20, max(allocator.capacity_units * allocator.unit_tokens // 3, 2))
    times = StepTime(STEP_NS, 10, 5, 1)
    results, words = [], []
    for room in (1 << 20, 64, 0):
        pieces: list[int] = []
        result = simulate(
            demand,
            allocator,
            config,
            times,
            faults=faults,
            journal_sink=(lambda piece, pieces=pieces: pieces.extend(piece.tolist())) if room else None,  # type: ignore[misc]
            journal_words=room,
            most_steps=3000,
        )
        results.append(replace(result, wall_seconds=0.0))
        words.append(pieces)
    assert words[0] == words[1]
    assert results[0] == results[1] == results[2]
    fold = new_fold(allocator, config, faults)
    fold.feed(words[0])
    result = results[0]
    ended = [seen.ended for seen in fold.requests.values()]
    assert result.completed == ended.count(1) + ended.count(2)
    assert (result.aborted, result.errors, result.refused) == (ended.count(3), ended.count(4), ended.count(5))
    assert sum(result.allocation_failures.values()) == len(fold.fails)
    assert result.swaps_refused == len(fold.second_fails)
    assert result.preemptions == len(fold.preempted)
    assert result.evictions == fold.evicted
    assert result.compactions == fold.compactions
    assert result.twice_freed_units == fold.twice
    assert result.steps == len(fold.steps)
    assert result.output_tokens == sum(seen.output for seen in fold.requests.values())
    assert result.computed_tokens == sum(step[2] + step[3] for step in fold.steps)
    if result.while_waiting is not None:
        shares = result.while_waiting
        whole = shares.written_ratio + shares.used_later_ratio + shares.never_used_ratio + shares.free_ratio
        assert whole == pytest.approx(1.0)
        assert min(shares.written_ratio, shares.used_later_ratio, shares.never_used_ratio) >= 0
        assert shares.free_ratio >= -1e-9
    for ratio in (result.tail_waste_ratio, result.page_utilization_ratio, result.reserved_ratio):
        assert ratio is None or 0.0 <= ratio <= 1.0

"""The scheduler step by step: order, budgets, admission, growth, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from kvmon.allocators import ContiguousConfig, PagedConfig
from kvmon.allocators.journal import COPY_FORK, ENTRY_NAMES, iterate
from kvmon.errors import ConfigError
from kvmon.serving import Scheduler, SchedulerConfig
from kvmon.serving import state as at

Entries = list[tuple[str, list[int]]]


def entries(scheduler: Scheduler, *names: str) -> Entries:
    """The drained journal by name, only those asked for."""
    decoded = [(ENTRY_NAMES[code], fields) for code, fields in iterate(scheduler.drain())]
    return [entry for entry in decoded if not names or entry[0] in names]


def run(scheduler: Scheduler, most: int = 10_000) -> Entries:
    """Step to the end; the whole journal."""
    seen: Entries = []
    for step in range(most):
        if not scheduler.has_work:
            return seen
        scheduler.schedule()
        scheduler.commit(step, 1)
        scheduler.check()
        seen += entries(scheduler)
    raise AssertionError("no end")


def fails(seen: Iterable[tuple[str, list[int]]]) -> list[dict[str, int]]:
    """FAIL entries with their fields named."""
    names = ("request", "need", "contiguity", "free", "evictable", "largest", "reason", "outcome")
    return [dict(zip(names, fields, strict=True)) for name, fields in seen if name == "fail"]


def test_running_requests_come_before_the_queue_and_share_the_budget() -> None:
    """Decodes are planned first, then the prompt at the head in a chunk of what is left of the budget."""
    scheduler = Scheduler(PagedConfig(100, 4), SchedulerConfig(token_budget=8))
    scheduler.add(6, 10)
    scheduler.add(20, 10)
    plan = scheduler.schedule()
    assert (plan.requests.tolist(), plan.tokens.tolist()) == ([1, 2], [6, 2])
    assert plan.samples.tolist() == [True, False]
    scheduler.commit(0, 1)
    plan = scheduler.schedule()
    assert (plan.tokens.tolist(), plan.computed.tolist(), plan.decodes.tolist()) == ([1, 7], [6, 2], [True, False])


def test_without_chunks_a_prompt_waits_for_a_step_with_room() -> None:
    """An unchunked prompt is never split: it waits; one longer than any step runs as its only prefill."""
    scheduler = Scheduler(PagedConfig(100, 4), SchedulerConfig(token_budget=8, chunked_prefill=False))
    for prompt in (5, 6, 30):
        scheduler.add(prompt, 10, intended_output=3)
    planned = []
    while scheduler.has_work:
        planned.append(scheduler.schedule().tokens.tolist())
        scheduler.commit(0, 1)
    assert planned[:3] == [[5], [1, 6], [1, 1, 30]]


def test_seats_limit_who_runs() -> None:
    """No more than `max_sequences` hold memory at once."""
    scheduler = Scheduler(PagedConfig(100, 4), SchedulerConfig(max_sequences=2))
    for _ in range(5):
        scheduler.add(4, 3)
    scheduler.schedule()
    assert scheduler.running.tolist() == [1, 2]
    assert scheduler.waiting.tolist() == [3, 4, 5]


def test_prefix_hits_leave_the_last_page_to_compute() -> None:
    """A prompt that is cached to its end is hit for floor((prompt - 1) / page) pages."""
    scheduler = Scheduler(PagedConfig(100, 4), journal=True, hash_tokens=4)
    scheduler.add(12, 1, identities=[1, 2, 3], intended_output=1)
    run(scheduler)
    scheduler.add(12, 1, identities=[1, 2, 3], intended_output=1)
    scheduler.add(13, 1, identities=[1, 2, 3, 9], intended_output=1)
    hits = [fields for name, fields in run(scheduler) if name == "admit"]
    assert hits == [[2, 8, 12], [3, 12, 13]]


def test_identities_name_pages_smaller_and_larger_than_their_step() -> None:
    """Sub-pages are hit one by one, super-pages only when every identity inside is the same."""
    for unit, expected in ((2, 6), (8, 0), (4, 4)):
        scheduler = Scheduler(PagedConfig(100, unit), journal=True, hash_tokens=4)
        scheduler.add(8, 1, identities=[1, 2], intended_output=1)
        run(scheduler)
        scheduler.add(7, 1, identities=[1, 2], intended_output=1)
        assert [fields[1] for name, fields in run(scheduler) if name == "admit"] == [expected]
    with pytest.raises(ConfigError, match="do not match prefix identities"):
        Scheduler(PagedConfig(100, 6), hash_tokens=4)
    Scheduler(PagedConfig(100, 6, prefix_cache=False), hash_tokens=4)


def test_identities_beyond_the_prompt_name_what_is_generated() -> None:
    """A later turn hits the answer of the one before it when the workload names it."""
    scheduler = Scheduler(PagedConfig(100, 4), journal=True, hash_tokens=4)
    scheduler.add(4, 9, identities=[1, 2, 3], intended_output=9)
    run(scheduler)
    scheduler.add(14, 1, identities=[1, 2, 3, 4], intended_output=1)
    assert [fields[1] for name, fields in run(scheduler) if name == "admit"] == [12]


def test_a_request_that_could_never_fit_is_refused_at_once() -> None:
    """More than the pool holds is refused with its reason; a prompt at the model's length without one."""
    paged = Scheduler(PagedConfig(4, 4), SchedulerConfig(max_model_len=15), journal=True)
    paged.add(17, 1)
    paged.add(15, 1)
    contiguous = Scheduler(ContiguousConfig(16), journal=True)
    contiguous.add(10, 7)
    for scheduler, needs in ((paged, [5]), (contiguous, [17])):
        assert not scheduler.has_work
        seen = entries(scheduler)
        assert [(fail["need"], fail["reason"], fail["outcome"]) for fail in fails(seen)] == [(n, 5, 3) for n in needs]
        assert [fields[1] for name, fields in seen if name == "finish"] == [5] * (2 if scheduler is paged else 1)


def test_a_wait_is_noted_once() -> None:
    """The head of the queue is tried every step and written once, with need, supply and reason."""
    scheduler = Scheduler(PagedConfig(8, 4), SchedulerConfig(token_budget=64), journal=True)
    scheduler.add(20, 5, intended_output=5)
    scheduler.add(16, 5, intended_output=5)
    noted = fails(run(scheduler))
    assert len(noted) == 1
    assert noted[0] == {
        "request": 2,
        "need": 4,
        "contiguity": 0,
        "free": 3,
        "evictable": 0,
        "largest": 3,
        "reason": 1,
        "outcome": 1,
    }


def test_refuse_instead_of_wait() -> None:
    """With `on_no_fit=refuse` the one that does not fit ends, and those behind it are tried."""
    scheduler = Scheduler(PagedConfig(8, 4), SchedulerConfig(on_no_fit="refuse"), journal=True)
    for prompt in (20, 16, 8):
        scheduler.add(prompt, 2, intended_output=2)
    scheduler.schedule()
    assert scheduler.running.tolist() == [1, 3]
    assert [fail["outcome"] for fail in fails(entries(scheduler))] == [3]


def test_the_watermark_keeps_admissions_out_but_never_the_only_one() -> None:
    """An admission that would leave less than the watermark waits while anything runs."""
    scheduler = Scheduler(PagedConfig(10, 4), SchedulerConfig(watermark=0.5), journal=True)
    scheduler.add(24, 2, intended_output=2)
    scheduler.add(4, 2, intended_output=2)
    seen = run(scheduler)
    assert [(fail["request"], fail["reason"]) for fail in fails(seen)] == [(2, 8)]
    assert sum(name == "first_token" for name, _ in seen) == 2


def test_growth_preempts_the_youngest_who_comes_back_first() -> None:
    """The youngest loses its pages, stands in front of the queue, and finds the pages that the cache still holds."""
    scheduler = Scheduler(PagedConfig(7, 4), SchedulerConfig(max_sequences=2), journal=True)
    scheduler.add(8, 20, intended_output=9)
    scheduler.add(11, 20, intended_output=9)
    scheduler.add(4, 20, intended_output=2)
    seen = run(scheduler)
    assert [fields for name, fields in seen if name == "preempt"] == [[2, 15]]
    (fail,) = [fail for fail in fails(seen) if fail["outcome"] == 2]
    assert (fail["request"], fail["need"], fail["free"], fail["reason"]) == (1, 1, 0, 1)
    order = [fields[0] for name, fields in seen if name == "admit"]
    assert order == [1, 2, 2, 3]
    assert [fields[1] for name, fields in seen if name == "admit"][2] > 0
    assert scheduler.state.tally[at.AGAIN_HIT_TOKENS] > 0


def test_growth_may_abort() -> None:
    """With `on_growth_failure=abort` the one that cannot grow ends as an error, and the other goes on."""
    scheduler = Scheduler(PagedConfig(4, 4), SchedulerConfig(on_growth_failure="abort"), journal=True)
    scheduler.add(5, 20, intended_output=4)
    scheduler.add(7, 20, intended_output=9)
    seen = run(scheduler)
    assert [(fail["request"], fail["reason"], fail["outcome"]) for fail in fails(seen)] == [(2, 1, 5)]
    assert {fields[0]: fields[1] for name, fields in seen if name == "finish"} == {1: 1, 2: 4}
    assert not any(name == "preempt" for name, _ in seen)


def test_growth_may_wait() -> None:
    """With `on_growth_failure=wait` the one that cannot grow stands still until somebody ends, and is written once."""
    scheduler = Scheduler(PagedConfig(4, 4), SchedulerConfig(on_growth_failure="wait"), journal=True)
    scheduler.add(5, 20, intended_output=4)
    scheduler.add(7, 20, intended_output=9)
    seen = run(scheduler)
    assert [(fail["request"], fail["reason"], fail["outcome"]) for fail in fails(seen)] == [(2, 1, 1)]
    assert [fields[0] for name, fields in seen if name == "finish"] == [1, 2]
    still = [fields[1] for name, fields in seen if name == "progress" and fields[0] == 2]
    assert still == [7, 8, 8], "a running decode that gets no tokens is written with its unchanged number"


def test_a_sequence_longer_than_the_pool_is_aborted_not_looped() -> None:
    """Alone in the pool and still too long: aborted with `never_fits`, whatever the policy."""
    for allocator in (PagedConfig(4, 4), ContiguousConfig(16, 1, 4)):
        scheduler = Scheduler(allocator, journal=True)
        scheduler.add(10, 100)
        seen = run(scheduler)
        assert [(fail["reason"], fail["outcome"]) for fail in fails(seen)] == [(5, 5)]
        assert [fields[1] for name, fields in seen if name == "finish"] == [4]


def test_two_prompts_that_fill_the_pool_deadlock_without_preemption() -> None:
    """511 pages of 16, prompts of 4,096 and 4,080: 256 + 255 parked, nothing free; `stuck` says so."""
    config = SchedulerConfig(token_budget=8192, on_growth_failure="wait")
    scheduler = Scheduler(PagedConfig(511, 16, prefix_cache=False), config, journal=True)
    scheduler.add(4096, 64)
    scheduler.add(4080, 64)
    for step in range(100):
        scheduler.schedule()
        if scheduler.stuck:
            break
        scheduler.commit(step, 1)
    assert scheduler.stuck
    seats = scheduler.state.live[scheduler.running, at.SEAT]
    assert scheduler.state.held[seats, at.PAGES].tolist() == [256, 255]
    scheduler.commit(step, 1)
    assert scheduler.abort(2)
    scheduler.schedule()
    assert not scheduler.stuck
    scheduler.commit(step, 1)
    scheduler.check()


def test_the_lesson_through_the_scheduler() -> None:
    """64 slots, eight sequences of 8, every second one ends: 16 more wait for want of a run, with F = 32 and G = 8."""
    scheduler = Scheduler(ContiguousConfig(64), SchedulerConfig(token_budget=64), journal=True)
    for request in range(8):
        scheduler.add(6, 2, intended_output=2 if request % 2 else 0)
    scheduler.schedule()
    scheduler.commit(0, 1, [request % 2 == 1 for request in range(8)])
    scheduler.add(14, 2)
    scheduler.schedule()
    (fail,) = fails(entries(scheduler))
    assert (fail["need"], fail["free"], fail["largest"], fail["contiguity"], fail["reason"]) == (16, 32, 8, 2, 2)


def test_requests_end_by_stop_length_or_abort() -> None:
    """A stop flag, the intended length, the limit and an abort are told apart, with the tokens that came out."""
    scheduler = Scheduler(PagedConfig(64, 4), journal=True)
    scheduler.add(4, 10)
    scheduler.add(4, 10, intended_output=3)
    scheduler.add(4, 2, intended_output=9)
    scheduler.add(4, 10)
    scheduler.add(400, 10)
    ended = []
    for step in range(4):
        plan = scheduler.schedule()
        ended += scheduler.commit(step, 1, (plan.requests == 1) & (step == 1)).tolist()
    assert ended == [1, 3, 2]
    assert scheduler.abort(4) and scheduler.abort(5) is False
    assert not scheduler.abort(4)
    finishes = {fields[0]: fields[1:3] for name, fields in entries(scheduler) if name == "finish"}
    assert finishes == {1: [1, 2], 2: [1, 3], 3: [2, 2], 4: [3, 4], 5: [5, 0]}
    assert not scheduler.has_work


def test_arrays_grow_with_use() -> None:
    """Many requests, long tables and a long queue need no size in advance."""
    scheduler = Scheduler(PagedConfig(5000, 4), SchedulerConfig(max_sequences=4), hash_tokens=4, journal=True)
    for request in range(1, 400):
        assert scheduler.add(3 + request, 4, identities=list(range(1, 1 + request // 4)), intended_output=2) == request
    seen = run(scheduler)
    assert sum(name == "finish" for name, _ in seen) == 399


def test_reset_forgets_what_was_cached() -> None:
    """After a reset the same prompt misses."""
    scheduler = Scheduler(PagedConfig(100, 4), journal=True, hash_tokens=4)
    for _ in range(2):
        scheduler.add(12, 1, identities=[1, 2, 3], intended_output=1)
        seen = run(scheduler)
        assert [fields[1] for name, fields in seen if name == "admit"] == [0]
        scheduler.reset_prefix_cache()
        assert entries(scheduler) == [("reset", [])]


def test_a_clone_at_the_same_size_repeats_the_journal() -> None:
    """The same requests through a clone give the same journal, word by word; a larger one is another pool."""
    scheduler = Scheduler(PagedConfig(12, 4), SchedulerConfig(token_budget=16), hash_tokens=4, journal=True)

    def use(target: Scheduler) -> Entries:
        for request in range(12):
            target.add(9 + request % 5, 12, identities=[1, 2], intended_output=4 + request)
        return run(target)

    first = use(scheduler)
    assert any(name == "preempt" for name, _ in first)
    assert use(scheduler.clone()) == first
    larger = scheduler.clone(100)
    assert not any(name == "preempt" for name, _ in use(larger))


def test_without_a_journal_nothing_is_written() -> None:
    """The journal is off unless asked for."""
    scheduler = Scheduler(PagedConfig(12, 4))
    scheduler.add(4, 2)
    scheduler.schedule()
    scheduler.commit(0, 1)
    assert scheduler.drain().size == 0


def test_misuse_is_named() -> None:
    """Calls out of order and numbers that cannot be are errors with what to do next."""
    scheduler = Scheduler(PagedConfig(12, 4))
    for arguments in ((0, 1), (1, 0), (2**31, 1)):
        with pytest.raises(ConfigError, match="not possible"):
            scheduler.add(*arguments)
    with pytest.raises(ConfigError, match="hash_tokens"):
        scheduler.add(4, 1, identities=[1])
    with pytest.raises(ConfigError, match="schedule one"):
        scheduler.commit(0, 1)
    with pytest.raises(ConfigError, match="unknown"):
        scheduler.abort(1)
    scheduler.add(4, 4)
    scheduler.schedule()
    for call in (scheduler.schedule, lambda: scheduler.add(1, 1), lambda: scheduler.abort(1)):
        with pytest.raises(ConfigError, match="commit it"):
            call()
    with pytest.raises(ConfigError, match="one for each"):
        scheduler.commit(0, 1, np.zeros(3, np.bool_))


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_budget": 0},
        {"max_sequences": 0},
        {"watermark": 1.0},
        {"watermark": float("nan")},
        {"max_model_len": 1},
        {"admit_by": "page"},
        {"on_no_fit": "drop"},
        {"on_growth_failure": "panic"},
    ],
)
def test_policies_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    """Each option outside its range is a configuration error."""
    with pytest.raises(ConfigError):
        SchedulerConfig(**wrong)  # type: ignore[arg-type]


def test_a_fork_begins_with_its_parents_pages_and_copies_the_last() -> None:
    """Full pages are shared, with and without a prefix cache; the one that both would write into is copied."""
    for cached in (False, True):
        scheduler = Scheduler(PagedConfig(100, 4, prefix_cache=cached), hash_tokens=4 if cached else 0, journal=True)
        names = [7, 8] if cached else []
        parent = scheduler.add(10, 5, identities=names)
        fork = scheduler.add(10, 5, identities=names, fork_of=parent)
        assert scheduler.schedule().requests.tolist() == [parent], "the prompt is computed once"
        scheduler.commit(0, 1)
        scheduler.drain()
        plan = scheduler.schedule()
        scheduler.check()
        assert plan.requests.tolist() == [parent, fork]
        assert (plan.computed.tolist(), plan.tokens.tolist()) == ([10, 9], [1, 1])
        ours, its = (scheduler.state.table[seat, :3].tolist() for seat in plan.seats)
        assert ours[:2] == its[:2] and ours[2] != its[2]
        assert ("copy", [fork, ours[2], its[2], 1, COPY_FORK]) in entries(scheduler)
        scheduler.commit(1, 1)
        run(scheduler)
        assert scheduler.state.tally[at.COPIED_TOKENS] == 1


def test_a_fork_whose_parent_is_gone_computes_its_prompt() -> None:
    """Its parent was aborted: the fork is a request like any other."""
    scheduler = Scheduler(PagedConfig(100, 4, prefix_cache=False))
    parent = scheduler.add(10, 5)
    fork = scheduler.add(10, 5, fork_of=parent)
    scheduler.schedule()
    scheduler.commit(0, 1)
    scheduler.abort(parent)
    plan = scheduler.schedule()
    assert (plan.requests.tolist(), plan.computed.tolist(), plan.tokens.tolist()) == ([fork], [0], [10])
    scheduler.commit(1, 1)


def test_generated_pages_can_be_named_and_hit() -> None:
    """Names that are added while a request runs are found by a later one with the same beginning."""
    scheduler = Scheduler(PagedConfig(100, 4), hash_tokens=4)
    first = scheduler.add(8, 9, identities=[1, 2], more_identities=2)
    scheduler.schedule()
    scheduler.commit(0, 1)
    scheduler.name_more(first, [3])
    scheduler.name_more(first, [4])
    with pytest.raises(ConfigError, match="no room for 1 more names behind token 16"):
        scheduler.name_more(first, [5])
    run(scheduler)
    scheduler.add(20, 2, identities=[1, 2, 3, 9])
    assert scheduler.schedule().computed.tolist() == [12]
    scheduler.commit(0, 1)


def test_only_an_earlier_request_with_that_prompt_can_be_forked() -> None:
    """Anything else is an error that says so."""
    scheduler = Scheduler(PagedConfig(100, 4))
    scheduler.add(8, 2)
    for parent, prompt in ((1, 9), (2, 8), (-1, 8)):
        with pytest.raises(ConfigError, match=f"request {parent} has no prompt of {prompt} tokens to fork"):
            scheduler.add(prompt, 2, fork_of=parent)

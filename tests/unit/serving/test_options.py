"""Options one by one, by hand: what each of them promises, in the corners where it is easily broken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, page_pool
from kvmon.allocators.journal import ENTRY_NAMES, iterate
from kvmon.errors import ConfigError, InvariantError
from kvmon.serving import Scheduler, SchedulerConfig
from kvmon.serving import state as at
from kvmon.serving.faults import Faults
from tests.unit.serving.option_sets import STEP_NS
from tests.unit.serving.watching import Arrival, Watched, pressing, watch

Entries = list[tuple[str, list[int]]]


def driven(
    allocator: AllocatorConfig,
    config: SchedulerConfig,
    lengths: list[tuple[int, int]],
    classes: list[int] | None = None,
) -> tuple[Watched, Entries]:
    """Prompts and outputs that all arrive at once, run to the end with everything compared; the journal by name."""
    arrivals = [
        Arrival(0, prompt, output, output, 0, (classes or [0] * len(lengths))[place])
        for place, (prompt, output) in enumerate(lengths)
    ]
    watched = watch(allocator, config, arrivals)
    return watched, named(watched)


def named(watched: Watched) -> Entries:
    """The journal so far with its entries by name."""
    return [(ENTRY_NAMES[code], fields) for code, fields in iterate(np.array(watched.words, np.int64))]


def only(seen: Entries, name: str) -> list[list[int]]:
    """The fields of all entries of one kind."""
    return [fields for entry, fields in seen if entry == name]


PLAIN = PagedConfig(12, 4, prefix_cache=False)


def test_who_is_planned_may_be_preempted_for_somebody_more_urgent() -> None:
    """The one that gives its memory stood in the plan already: it leaves the plan, its tokens go to others."""
    allocator = PagedConfig(8, 4)
    config = SchedulerConfig(token_budget=64, priorities=((1, -1),))
    watched = Watched(allocator, config)
    watched.add(Arrival(0, 14, 20, 20, 0, 0))
    watched.step()
    watched.add(Arrival(0, 15, 20, 20, 0, 1))
    watched.step()
    for _ in range(3):
        watched.step()
    assert watched.fold.preempted == [1], "the less urgent one gives way although it came first"
    plan = watched.scheduler.schedule()
    assert plan.requests.tolist() == [2]
    watched.scheduler.commit(watched.now, STEP_NS)
    watched.scheduler.check()


def test_a_taken_back_victim_leaves_no_content_that_was_never_computed() -> None:
    """The victim was planned with the token that fills its page, and is taken back: that page has no content."""
    watched = Watched(PagedConfig(4, 4), SchedulerConfig(token_budget=64, priorities=((1, -1),)))
    watched.add(Arrival(0, 6, 9, 9, 0, 0))
    watched.step()
    watched.add(Arrival(0, 8, 9, 9, 0, 1))
    watched.step()
    assert watched.state.live[[1, 2], at.COMPUTED].tolist() == [7, 8]
    watched.step()
    assert watched.fold.preempted == [1]
    assert len(watched.fold.cached) == 3 and not watched.fold.evicted, "the page that it did not fill was empty"


def test_a_victim_is_of_the_least_urgent_level_and_the_youngest_of_it() -> None:
    """Of two levels the less urgent pays, and within it the one that came last; nobody urgent is preempted."""
    _, seen = driven(
        PLAIN,
        SchedulerConfig(token_budget=64, priorities=((1, -1), (2, 3))),
        [(8, 12), (8, 12), (8, 12), (8, 12)],
        [1, 2, 2, 0],
    )
    victims = [fields[0] for fields in only(seen, "preempt")]
    assert victims and victims[0] == 3 and 1 not in victims


def test_the_queue_is_served_by_level_then_by_arrival() -> None:
    """One seat, everybody waiting: the urgent ones first, each level in the order of its arrival."""
    config = SchedulerConfig(max_sequences=1, priorities=((1, -2), (2, 5)))
    _, seen = driven(PLAIN, config, [(4, 2)] * 6, [2, 0, 1, 2, 1, 0])
    assert [fields[0] for fields in only(seen, "admit")] == [3, 5, 2, 6, 1, 4]


def test_a_quota_of_one_page() -> None:
    """The smallest quota is one page: what fits in it is served one by one, what does not is an error, others run."""
    allocator = PagedConfig(12, 4, prefix_cache=False, quotas=((1, 0.01),))
    _, seen = driven(allocator, SchedulerConfig(), [(2, 2), (2, 2), (5, 2), (2, 9), (9, 9)], [1, 1, 1, 1, 0])
    ended = {fields[0]: fields[1] for fields in only(seen, "finish")}
    assert ended == {1: 1, 2: 1, 3: 4, 4: 4, 5: 1}
    assert {fields[6] for fields in only(seen, "fail")} == {7}
    admitted = [fields[0] for fields in only(seen, "admit")]
    assert admitted.index(5) < admitted.index(2), "a class at its quota is passed over"


def test_a_class_at_its_quota_preempts_its_own() -> None:
    """Growth beyond the quota takes memory from the youngest of the same class, though others are younger."""
    allocator = PagedConfig(40, 4, prefix_cache=False, quotas=((1, 0.1),))
    _, seen = driven(allocator, SchedulerConfig(), [(7, 8), (7, 8), (7, 30)], [1, 1, 0])
    assert {fields[0] for fields in only(seen, "preempt")} == {2}


def test_full_admission_counts_what_a_class_may_become() -> None:
    """By full need a quota holds for what requests may become, so nobody is preempted for it later."""
    allocator = PagedConfig(40, 4, prefix_cache=False, quotas=((1, 0.2),))
    config = SchedulerConfig(admit_by="full")
    _, seen = driven(allocator, config, [(4, 16), (4, 16), (4, 16)], [1, 1, 1])
    assert not only(seen, "preempt") and len(only(seen, "finish")) == 3
    assert max(fields[5] for fields in only(seen, "step")) == 1, "8 pages, 5 each: one at a time"


@pytest.mark.parametrize("more", [{}, {"window_tokens": 6}, {"window_tokens": 6, "window_pool_units": 5}])
@pytest.mark.parametrize("drafts", [0, 5])
@pytest.mark.parametrize("chunked", [True, False])
def test_full_admission_never_preempts(more: dict[str, int], drafts: int, chunked: bool) -> None:
    """What all running requests may become fits at once, in every group of pages, drafts and whole prompts included."""
    config = SchedulerConfig(
        token_budget=7, admit_by="full", lookahead_tokens=drafts, acceptance=drafts / 10, chunked_prefill=chunked
    )
    lengths = [(9, 9), (3, 20), (20, 3), (1, 14), (13, 8), (8, 8), (2, 2)] * 3
    _, seen = driven(PagedConfig(18, 4, prefix_cache=False, **more), config, lengths)
    assert not only(seen, "preempt")
    assert len(only(seen, "admit")) > 10
    running = [fields[5] for fields in only(seen, "step")]
    assert max(running) > 1, "some of them ran side by side"


def test_full_admission_with_idle_reclaim_never_preempts() -> None:
    """Cached content never stands in the way of what was promised."""
    arrivals = [Arrival(place % 3, 5 + place % 9, 12, 12, place % 3) for place in range(40)]
    watched = watch(PagedConfig(14, 4, reclaim="idle"), SchedulerConfig(admit_by="full"), arrivals)
    assert watched.state.pages.tally[page_pool.EVICTIONS_DONE] > 0
    assert watched.state.tally[at.PREEMPTIONS] == 0


def test_what_pins_may_take_is_never_promised() -> None:
    """With half of the pool for pins, a request that may need more than the other half is turned away, not let wait."""
    allocator = PagedConfig(10, 4, pin_after_hits=1, pin_share=0.5)
    _, seen = driven(allocator, SchedulerConfig(admit_by="full"), [(10, 20), (10, 10)])
    assert {fields[0]: fields[1] for fields in only(seen, "finish")} == {1: 4, 2: 1}


def test_idle_reclaim_keeps_admissions_out_and_never_the_only_one() -> None:
    """While somebody runs only empty pages count; content goes when nobody else is there."""
    watched = Watched(PagedConfig(8, 4, reclaim="idle"), SchedulerConfig(token_budget=64))
    watched.add(Arrival(0, 20, 1, 1, 0))
    watched.step()
    watched.add(Arrival(0, 6, 14, 14, 0))
    watched.step()
    watched.add(Arrival(0, 10, 2, 2, 0))
    watched.step()
    fails = only(named(watched), "fail")
    assert [(fields[0], fields[6]) for fields in fails] == [(3, 3)]
    while watched.scheduler.has_work:
        watched.step()
    assert not watched.fold.preempted, "the second one grows at the cost of content when it is alone"
    assert watched.fold.evicted > 0


def test_pins_stop_at_their_cap() -> None:
    """A prefix of three pages and a cap of two: the first two stay for ever, the third can be evicted."""
    allocator = PagedConfig(10, 8, pin_after_hits=1, pin_share=0.2)
    watched = Watched(allocator, SchedulerConfig(token_budget=100))
    for _ in range(2):
        watched.add(Arrival(0, 30, 2, 2, 1))
        while watched.scheduler.has_work:
            watched.step()
    assert len(watched.fold.pinned) == 2
    watched.add(Arrival(0, 64, 1, 1, 0))
    while watched.scheduler.has_work:
        watched.step()
    assert watched.fold.states()["pinned"] == 2
    watched.add(Arrival(0, 80, 1, 1, 0))
    assert watched.step() is True, "ten pages are needed and two are pinned: it waits for ever"
    assert only(named(watched), "fail")[-1][6] == 4


def test_a_window_smaller_than_a_page_and_one_larger_than_everything() -> None:
    """A tiny window holds one or two pages however long the request is; a huge one as many as the full group."""
    for window, most in ((1, 2), (3, 2), (1000, 8)):
        allocator = PagedConfig(20, 4, prefix_cache=False, window_tokens=window)
        watched = Watched(allocator, SchedulerConfig(token_budget=3))
        watched.add(Arrival(0, 18, 13, 13, 0))
        held = []
        while watched.scheduler.has_work:
            watched.step()
            held.append(len(watched.fold.requests[1].window))
        assert max(held) == most, window


def test_a_window_pool_that_is_too_small_is_said() -> None:
    """A window that its own pool can never hold is refused; one that has to share it waits or is preempted."""
    small = PagedConfig(40, 4, prefix_cache=False, window_tokens=20, window_pool_units=5)
    _, seen = driven(small, SchedulerConfig(token_budget=32), [(40, 4), (4, 4)])
    assert {fields[0]: fields[1] for fields in only(seen, "finish")} == {1: 5, 2: 1}
    assert [(fields[1], fields[3], fields[6]) for fields in only(seen, "fail")] == [(10, 5, 6)]
    shared = replace(small, window_pool_units=9)
    _, seen = driven(shared, SchedulerConfig(token_budget=8), [(16, 20), (16, 20)])
    assert 6 in {fields[6] for fields in only(seen, "fail")}
    assert {fields[1] for fields in only(seen, "finish")} == {1}


def test_drafts_stop_at_the_end_of_the_request_and_of_the_budget() -> None:
    """All drafts accepted: an output of 11 takes the prompt's token and two steps of 5; the budget cuts them."""
    config = SchedulerConfig(lookahead_tokens=4, acceptance=1.0)
    watched, seen = driven(PLAIN, config, [(4, 11)])
    assert [fields[3] for fields in only(seen, "step")] == [0, 5, 5]
    assert only(seen, "finish")[0][2] == 11
    assert watched.state.tally[at.ACCEPTED_TOKENS] == 8
    _, seen = driven(PLAIN, replace(config, token_budget=3), [(3, 10)])
    assert max(fields[2] + fields[3] for fields in only(seen, "step")) == 3
    _, seen = driven(PLAIN, replace(config, max_model_len=9), [(4, 30)])
    assert only(seen, "finish")[0][2] == 5
    assert max(sum(fields[2:4]) for fields in only(seen, "step")) <= 4, "no draft beyond the model's length"


def test_rejected_drafts_count_nothing() -> None:
    """Without acceptance each step adds one token, whatever was verified."""
    config = SchedulerConfig(lookahead_tokens=4, acceptance=0.0)
    watched, seen = driven(PLAIN, config, [(4, 9)])
    assert watched.state.tally[at.ACCEPTED_TOKENS] == 0 and watched.state.tally[at.DRAFT_TOKENS] > 10
    assert len(only(seen, "step")) == 9


def test_a_longer_table_than_the_prompt_promised() -> None:
    """Drafts near the end of a request that is as long as the scheduler's tables: nothing is written beyond them."""
    config = SchedulerConfig(lookahead_tokens=50, acceptance=1.0, max_model_len=2000)
    driven(PagedConfig(4000, 1, prefix_cache=False), config, [(300, 100), (500, 300)])


def test_a_fragmented_host_tier_refuses_what_it_could_hold_in_pieces() -> None:
    """Some of those that wait there go first, so it gets holes: what fits in no hole is computed again."""
    config = SchedulerConfig(token_budget=48, preemption="swap", host_tokens=100, priorities=((1, -1), (2, 1), (3, 2)))
    arrivals = pressing(PagedConfig(30, 4), 8, 40)
    watched = watch(PagedConfig(40, 4, prefix_cache=False), config, arrivals, [0] * 9 + [2])
    reasons = {fields[6] for fields in watched.fold.second_fails}
    assert reasons == {1, 2}, "shortage and fragmentation of the host tier both happened"
    assert watched.state.tally[at.SWAPPED_IN_TOKENS] > 0


def test_a_swapped_request_goes_on_where_it_was() -> None:
    """Preempted while decoding, kept in full, copied back: no token is computed twice, none is missing."""
    lengths = [(8, 20), (8, 20), (8, 20)]
    _, seen = driven(PLAIN, SchedulerConfig(preemption="swap", host_tokens=200), lengths)
    assert only(seen, "commit") and len(only(seen, "commit")) == len(only(seen, "onboard"))
    computed = sum(fields[2] + fields[3] for fields in only(seen, "step"))
    assert computed == sum(prompt + output - 1 for prompt, output in lengths)
    again, _ = driven(PLAIN, SchedulerConfig(), lengths)
    assert again.state.tally[at.COMPUTED_TOKENS] > computed


def test_an_abort_frees_the_host_tier() -> None:
    """A request that waits in the host tier and is aborted leaves nothing there."""
    watched = Watched(PLAIN, SchedulerConfig(preemption="swap", host_tokens=200))
    for _ in range(3):
        watched.add(Arrival(0, 8, 20, 20, 0))
    while not watched.fold.host:
        watched.step()
    (request,) = set(watched.fold.host.values())
    watched.abort(request)
    watched.compare()
    assert not watched.fold.host


def test_compaction_moves_blocks_once_a_step_and_only_for_somebody_who_gets_in() -> None:
    """Enough is free in pieces: the blocks slide together; a quota in the way, and nothing moves."""

    def half_empty(allocator: ContiguousConfig) -> Watched:
        watched = Watched(allocator, SchedulerConfig(token_budget=100))
        for place in range(4):
            watched.add(Arrival(0, 6, 2 if place % 2 == 0 else 30, 2 if place % 2 == 0 else 30, 0, place % 2))
        watched.step()
        watched.step()
        return watched

    watched = half_empty(ContiguousConfig(88, compaction=True))
    assert watched.scheduler.running.tolist() == [2, 4]
    watched.add(Arrival(0, 5, 9, 9, 0))
    watched.step()
    assert watched.fold.compactions == 1 and watched.scheduler.running.tolist() == [2, 4, 5]
    without = half_empty(ContiguousConfig(88))
    without.add(Arrival(0, 5, 9, 9, 0))
    without.step()
    assert only(named(without), "fail")[-1][6] == 2
    full = half_empty(ContiguousConfig(88, compaction=True, quotas=((0, 0.1),)))
    full.add(Arrival(0, 5, 9, 9, 0, 0))
    full.step()
    assert full.fold.compactions == 0


def test_a_hit_on_a_page_that_a_transfer_reads() -> None:
    """Deferred content may be hit; when the hit ends first the page is deferred again, then the transfer frees it."""
    config = SchedulerConfig(transfer_share=1.0, transfer_ns=6 * STEP_NS)
    watched = Watched(PagedConfig(20, 8), config)
    watched.add(Arrival(0, 30, 1, 1, 1))
    watched.step()
    assert watched.fold.states()["deferred"] == 4
    watched.add(Arrival(0, 25, 1, 1, 1))
    watched.step()
    seen = named(watched)
    assert [fields[1] for fields in only(seen, "share")] == [3]
    assert watched.fold.states()["deferred"] == 5
    while watched.now < 7 * STEP_NS:
        watched.step()
    assert watched.fold.states()["deferred"] == 5, "the hits are deferred again: the first transfer reads them"
    watched.step()
    assert watched.fold.states()["deferred"] == 1
    watched.step()
    assert watched.fold.states() == {"active": 0, "cached": 3, "pinned": 0, "deferred": 0, "free": 17}


def test_leaks_and_double_frees_are_seen_in_the_claims() -> None:
    """A leak: no event, no owner, claims that lack it. A double free: one entry more, claims that count it twice."""
    requests = [Arrival(0, 6, 3, 3, 0) for _ in range(6)]
    leaking = watch(PLAIN, SchedulerConfig(), requests, faults=Faults(leak_share=1.0, claims_every_ns=1))
    assert [sum(claims[:4]) - 12 for claims in leaking.fold.all_claims][-1] == -6
    assert len(leaking.fold.unowned()) == 6
    twice = watch(PLAIN, SchedulerConfig(), requests, faults=Faults(double_free_share=1.0, claims_every_ns=1))
    assert [sum(claims[:4]) - 12 for claims in twice.fold.all_claims][-1] == 6 == twice.fold.twice
    clean = watch(PLAIN, SchedulerConfig(), requests, faults=Faults(claims_every_ns=1))
    assert {sum(claims[:4]) - 12 for claims in clean.fold.all_claims} == {0}


def test_a_wrong_gauge_counts_the_tokens_of_the_step() -> None:
    """The gauge says what the step computed, the other claims stay right."""
    faults = Faults(wrong_gauge=True, claims_every_ns=1)
    watched = watch(PagedConfig(100, 4), SchedulerConfig(), [Arrival(0, 40, 3, 3, 0)], faults=faults)
    assert [claims[4] for claims in watched.fold.all_claims] == [100_000, 0, 0]


def test_faults_begin_when_they_are_told_to() -> None:
    """Nothing strikes before `from_ns`."""
    faults = Faults(leak_share=1.0, from_ns=10 * STEP_NS)
    watched = Watched(PLAIN, SchedulerConfig(), faults)
    for _ in range(12):
        watched.add(Arrival(0, 3, 1, 1, 0))
        watched.step()
    assert watched.state.tally[at.LEAKED_UNITS] == 3


@pytest.mark.parametrize(
    ("allocator", "scheduler", "faults"),
    [
        (ContiguousConfig(40), {"transfer_share": 0.5, "transfer_ns": 5}, {}),
        (ContiguousConfig(40), {}, {"leak_share": 0.5}),
        (PagedConfig(40, 16), {"preemption": "swap", "host_tokens": 15}, {}),
        (
            PagedConfig(40, prefix_cache=False, window_tokens=8, window_pool_units=4),
            {"preemption": "swap", "host_tokens": 160},
            {},
        ),
    ],
)
def test_options_that_mean_nothing_for_a_pool_are_refused(
    allocator: AllocatorConfig, scheduler: dict[str, object], faults: dict[str, float]
) -> None:
    """No option is silently ignored."""
    with pytest.raises(ConfigError):
        Scheduler(allocator, SchedulerConfig(**scheduler), faults=Faults(**faults))  # type: ignore[arg-type]


def broken(options: tuple[AllocatorConfig, SchedulerConfig], steps: int, faults: Faults | None = None) -> Watched:
    """A scheduler in the middle of its work, so that one number of it can be bent."""
    watched = Watched(*options, faults)
    for place in range(6):
        watched.add(Arrival(0, 9, 20, 20 if place else 2, 1, place % 2))
    for _ in range(steps):
        watched.step()
    watched.scheduler.check()
    return watched


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (at.WRITTEN_TOKENS, (CACHE := PagedConfig(30, 4), SchedulerConfig()), "computed tokens"),
        (at.HELD_PAGES, (CACHE, SchedulerConfig()), "tables hold"),
        (at.HELD_PAGES, (ContiguousConfig(200), SchedulerConfig()), "blocks hold"),
        (at.COMMITTED_UNITS, (CACHE, SchedulerConfig(admit_by="full")), "promised"),
        (at.QUOTA_HELD + 1, (replace(CACHE, quotas=((1, 0.5),)), SchedulerConfig()), "class 1 holds"),
        (at.WINDOW_HELD, (PagedConfig(60, 4, prefix_cache=False, window_tokens=5), SchedulerConfig()), "window tables"),
        (
            at.WINDOW_SPARE,
            (PagedConfig(60, 4, prefix_cache=False, window_tokens=5, window_pool_units=30), SchedulerConfig()),
            "window group's pool",
        ),
        (at.REGION_UNITS, (ContiguousConfig(300, retained_prefixes=2), SchedulerConfig()), "units of regions"),
    ],
)
def test_check_finds_a_bent_counter(
    column: int, options: tuple[AllocatorConfig, SchedulerConfig], message: str
) -> None:
    """Each counter that decides about memory is counted again."""
    watched = broken(options, 3)
    watched.state.tally[column] += 1
    with pytest.raises(InvariantError, match=message):
        watched.scheduler.check()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (page_pool.PINNED_PAGES, "pinned"),
        (page_pool.IDLE_PINNED, "idle and pinned"),
        (page_pool.DEFERRED, "deferred"),
        (page_pool.LEAKED_PAGES, "leaked"),
        (page_pool.EVICTABLE, "have content"),
        (page_pool.HEAPED, "heap"),
        (page_pool.QUEUED, "allocatable"),
    ],
)
def test_check_finds_a_bent_counter_of_the_pool(column: int, message: str) -> None:
    """The same for what the pool itself counts."""
    allocator = PagedConfig(30, 4, evict="lfu", pin_after_hits=1, pin_share=0.3)
    config = SchedulerConfig(transfer_share=0.5, transfer_ns=9 * STEP_NS)
    watched = broken((allocator, config), 4)
    watched.state.pages.tally[column] += 1
    with pytest.raises(InvariantError, match=message):
        watched.scheduler.check()

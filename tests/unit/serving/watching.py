"""Drive a scheduler step by step and compare everything that it knows with a fold of its journal."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, page_pool, run_pool
from kvmon.allocators.journal import USED
from kvmon.serving import Scheduler, SchedulerConfig
from kvmon.serving import state as at
from kvmon.serving.commit import room_for_step
from kvmon.serving.faults import Faults
from tests.naive.journal_fold import JournalFold
from tests.unit.serving.option_sets import HASH_TOKENS, STEP_NS


class Arrival(NamedTuple):
    """A request: steps to wait before it arrives, its lengths (intended 0: stopped from outside), which family of
    prefixes it belongs to (0: none), its class, and how many more samples of its prompt are asked for."""

    delay: int
    prompt: int
    limit: int
    intended: int
    family: int
    class_id: int = 0
    forks: int = 0


def identities(prompt: int, family: int, request: int) -> list[int]:
    """Chained identities: a family shares its first 24 tokens, and those without one share nothing.

    Half of a family names what it shares and no more.
    """
    steps = -(-prompt // HASH_TOKENS)
    if family and request % 2 == 0:
        steps = min(steps, 3)
    return [family * 1000 + i + 1 if family and i < 3 else 10_000 * request + i + 1 for i in range(steps)]


def new_fold(allocator: AllocatorConfig, config: SchedulerConfig, faults: Faults) -> JournalFold:
    """A fold that knows the options as far as the rules of the journal depend on them."""
    paged = isinstance(allocator, PagedConfig)
    second = config.host_tokens // allocator.unit_tokens
    if isinstance(allocator, PagedConfig):
        second = second or allocator.window_pool_units
    return JournalFold(
        allocator.capacity_units,
        unit_tokens=allocator.unit_tokens,
        evict=allocator.evict if isinstance(allocator, PagedConfig) else "lru",
        pins=(
            (allocator.pin_after_hits, int(allocator.pin_share * allocator.capacity_units))
            if isinstance(allocator, PagedConfig)
            else (0, 0)
        ),
        second=second,
        aligned=not paged and allocator.placement == "buddy",
        gauge_is_right=not faults.wrong_gauge,
        levels=config.levels if not allocator.quotas else None,
    )


class Watched:
    """A scheduler, the fold of its journal, and what was done to it, so that it can be done to another one."""

    def __init__(self, allocator: AllocatorConfig, config: SchedulerConfig, faults: Faults | None = None) -> None:
        self.allocator = allocator
        self.config = config
        self.faults = faults or Faults()
        self.scheduler = Scheduler(allocator, config, hash_tokens=HASH_TOKENS, journal=True, faults=self.faults)
        self.fold = new_fold(allocator, config, self.faults)
        self.words: list[int] = []
        self.doings: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.outputs: dict[int, int] = {}
        self.disturbed: set[int] = set()
        self.forked = False
        self.now = 0

    @property
    def state(self) -> at.Serving:
        """The arrays of the scheduler."""
        return self.scheduler.state

    def do(self, name: str, *args: object, **kwargs: object) -> object:
        """Call the scheduler and remember it."""
        self.doings.append((name, args, kwargs))
        return getattr(self.scheduler, name)(*args, **kwargs)

    def add(self, arrival: Arrival) -> None:
        """One more request, and its forks."""
        first = len(self.outputs) + 1
        _, prompt, limit, intended, family, class_id, forks = arrival
        names = identities(prompt, family, first)
        for number in range(first, first + 1 + forks):
            added = self.do(
                "add",
                prompt,
                limit,
                intended_output=intended,
                identities=names,
                class_id=class_id,
                arrival_ns=self.now,
                fork_of=first if number > first else 0,
            )
            assert added == number
            longest = self.config.max_model_len or prompt + limit
            self.outputs[number] = min(intended or limit, limit, longest - prompt)
            self.forked |= number > first

    def abort(self, request: int) -> None:
        """End a request from outside; the room that a step would need is enough for that."""
        room, used = int(room_for_step(self.state)), int(self.state.journal.state[USED])
        if self.do("abort", request):
            self.disturbed.add(request)
        assert self.state.journal.state[USED] - used <= room
        self.scheduler.check()

    def step(self, dice: int = 0) -> bool:
        """One step, with everything compared; `dice` above 2 ends some of the requests by hand. True: it was stuck."""
        room, used = int(room_for_step(self.state)), int(self.state.journal.state[USED])
        queue = self.scheduler.waiting.tolist()
        plan = self.do("schedule")
        self.scheduler.check()
        self.check_admissions(queue)
        stuck = self.scheduler.stuck
        assert plan.tokens.sum() <= self.config.token_budget or not self.config.chunked_prefill
        stopped = plan.samples & (plan.requests % 7 == dice) if dice > 2 else None
        if stopped is not None:
            self.disturbed |= set(plan.requests[stopped].tolist())
        self.do("commit", self.now, STEP_NS, stopped)
        self.now += STEP_NS
        self.scheduler.check()
        assert self.state.journal.state[USED] - used <= room, "a step writes more than `room_for_step` said"
        self.compare()
        return stuck

    def compare(self) -> None:
        """Everything that both sides know is equal."""
        piece = self.scheduler.drain().tolist()
        self.words += piece
        self.fold.feed(piece)
        fold, state = self.fold, self.state
        running = self.scheduler.running.tolist()
        assert {number for number, seen in fold.requests.items() if seen.running} == set(running)
        tables = self.tables()
        for request in running:
            assert fold.requests[request].computed == state.live[request, at.COMPUTED]
            assert fold.requests[request].table == tables[request]
        for request in self.scheduler.waiting.tolist():
            assert fold.requests[request].kept == state.facts[request, at.HOST_TOKENS]
        host = {
            unit: request
            for request in self.scheduler.waiting.tolist()
            for unit in range(
                int(state.facts[request, at.HOST_START]),
                int(state.facts[request, at.HOST_START] + state.facts[request, at.HOST_COUNT]),
            )
            if state.facts[request, at.HOST_COUNT]
        }
        assert fold.host == host
        states = fold.states()
        assert sum(states.values()) == self.allocator.capacity_units
        if isinstance(self.allocator, PagedConfig):
            self.compare_pages(states)
        else:
            self.compare_blocks(states)
        self.check_quotas()

    def tables(self) -> dict[int, list[int]]:
        """The units of each running request as the scheduler has them."""
        state = self.state
        found = {}
        for request in self.scheduler.running.tolist():
            seat = int(state.live[request, at.SEAT])
            if isinstance(self.allocator, PagedConfig):
                found[request] = state.table[seat, : state.held[seat, at.PAGES]].tolist()
            else:
                start, units = state.held[seat, at.START], state.held[seat, at.UNITS]
                found[request] = list(range(start, start + units))
                assert self.fold.requests[request].reserved == units * self.allocator.unit_tokens
        return found

    def compare_pages(self, states: dict[str, int]) -> None:
        """References, contents, marks, order of eviction and window tables of a paged pool."""
        fold, state = self.fold, self.state
        pool = state.pages
        assert list(fold.references.values()) == pool.node[1:, page_pool.REF].tolist()
        assert fold.cached == set(np.flatnonzero(pool.content).tolist())
        order, page = [], int(pool.node[0, page_pool.NEXT])
        while page:
            order.append(page)
            page = int(pool.node[page, page_pool.NEXT])
        assert fold.queue == order
        heap = pool.more[1 : 1 + pool.tally[page_pool.HEAPED], page_pool.PAGE].tolist()
        assert fold.unused == set(heap)
        assert fold.evicted == pool.tally[page_pool.EVICTIONS_DONE]
        marks = pool.more[: self.allocator.capacity_units + 1, page_pool.MARK]
        assert fold.pinned == set(np.flatnonzero(marks & page_pool.PINNED).tolist())
        held = set(np.flatnonzero(marks & page_pool.HELD).tolist())
        assert fold.deferred == {unit for unit in held if not fold.references[unit]}
        tally = pool.tally
        assert states == {
            "active": page_pool.used_pages(pool),
            "cached": tally[page_pool.EVICTABLE],
            "pinned": tally[page_pool.IDLE_PINNED],
            "deferred": tally[page_pool.DEFERRED],
            "free": tally[page_pool.QUEUED] - tally[page_pool.EVICTABLE],
        }
        assert len(fold.unowned()) == state.tally[at.LEAKED_UNITS]
        assert fold.twice == state.tally[at.TWICE_FREED]
        for request in self.scheduler.running.tolist() if state.config[at.WINDOW] else ():
            seat = int(state.live[request, at.SEAT])
            first, end = state.held[seat, [at.WINDOW_FIRST, at.WINDOW_PAGES]].tolist()
            row = state.table[int(state.config[at.SEATS]) + seat, first:end].tolist()
            assert fold.requests[request].window == row
        if state.config[at.WINDOW_OWN]:
            assert fold.stack == state.window[: state.tally[at.WINDOW_SPARE]].tolist()

    def compare_blocks(self, states: dict[str, int]) -> None:
        """Owners and regions of a contiguous pool."""
        fold, state = self.fold, self.state
        assert len(fold.owner) == sum(len(fold.requests[request].table) for request in self.scheduler.running.tolist())
        regions = state.apart[: state.tally[at.REGIONS]].tolist()
        assert fold.regions == {unit for _, first, count, *_ in regions for unit in range(first, first + count)}
        assert states["free"] == state.runs.tally[run_pool.FREE]
        assert states["pinned"] == state.tally[at.REGION_UNITS]

    def check_quotas(self) -> None:
        """No class holds more than its quota, shared pages counted for each holder."""
        held: Counter[int] = Counter()
        own = isinstance(self.allocator, PagedConfig) and self.allocator.window_pool_units
        for seen in self.fold.requests.values():
            if seen.running:
                held[seen.class_id] += len(seen.table) + (0 if own else len(seen.window))
        for class_id, share in self.allocator.quotas:
            assert held[class_id] <= max(1, int(share * self.allocator.capacity_units))

    def check_admissions(self, queue: list[int]) -> None:
        """Who still waits was behind everybody who was admitted, unless a quota passed it over; levels go first."""
        waiting = set(self.scheduler.waiting.tolist())
        levels = [self.config.levels.get(int(self.state.facts[request, at.CLASS]), 0) for request in queue]
        assert levels == sorted(levels)
        # A fork is passed over while its parent's prompt is being computed.
        if not self.allocator.quotas and not self.forked:
            stays = [request in waiting for request in queue]
            assert stays == sorted(stays), "somebody was overtaken in the queue"

    def may_stick(self) -> bool:
        """Whether these options can leave memory in the way of somebody who waits, with nobody running."""
        allocator = self.allocator
        kept = isinstance(allocator, PagedConfig) and allocator.pin_after_hits
        kept = kept or (isinstance(allocator, ContiguousConfig) and allocator.retained_prefixes)
        waits = self.config.on_growth_failure == "wait" or self.config.on_never_fits == "wait"
        return bool(kept or waits or self.faults.leak_share or self.faults.strand_share)

    def unstick(self) -> None:
        """Nothing can move: wait for the transfer that is under way, or give somebody up as an operator would."""
        transfer = self.scheduler.next_transfer_ns
        if transfer is not None:
            self.now = max(self.now, transfer)
            return
        assert self.may_stick()
        self.abort(int([*self.scheduler.running, *self.scheduler.waiting][0]))

    def finish(self) -> None:
        """The end: everybody has ended as intended, and nothing is held but what pins, regions and faults keep."""
        self.compare()
        fold, tally = self.fold, self.state.tally
        assert all(seen.ended for seen in fold.requests.values())
        for number, seen in fold.requests.items():
            if seen.ended in (1, 2) and number not in self.disturbed:
                assert seen.output == self.outputs[number]
                assert seen.first_token
        while self.scheduler.next_transfer_ns is not None:
            self.now = max(self.now, self.scheduler.next_transfer_ns)
            self.step()
        assert not fold.owner and not fold.host
        assert sorted(fold.stack) == list(range(1, fold.second + 1))
        leaked = fold.unowned()
        assert {unit for unit, count in fold.references.items() if count} == leaked
        assert len(leaked) == tally[at.LEAKED_UNITS] and (not leaked or self.faults.leak_share)
        assert not fold.deferred or tally[at.STRANDED]
        if self.config.admit_by == "full" and isinstance(self.allocator, PagedConfig):
            assert tally[at.PREEMPTIONS] == 0
            assert tally[at.REASONS + 16 : at.REASONS + 32].sum() == 0
        assert len(fold.preempted) == tally[at.PREEMPTIONS]
        assert len(fold.second_fails) == tally[at.SWAPS_REFUSED]

    def repeat(self) -> None:
        """A clone at the same size to which the same is done writes the same journal."""
        clone = self.scheduler.clone()
        words: list[int] = []
        for name, args, kwargs in self.doings:
            getattr(clone, name)(*args, **kwargs)
            words += clone.drain().tolist()
        assert words == self.words


def watch(
    allocator: AllocatorConfig,
    config: SchedulerConfig,
    arrivals: list[Arrival],
    chaos: list[int] | None = None,
    faults: Faults | None = None,
) -> Watched:
    """Drive a scheduler to the end, comparing after each step; `chaos` aborts, stops and resets on the way."""
    watched = Watched(allocator, config, faults)
    chaos = chaos or [0]
    pending = list(arrivals)
    most = 1000 + 5 * sum(arrival.prompt + arrival.limit for arrival in arrivals)
    delay = pending[0].delay if pending else 0
    step = 0
    while pending or watched.scheduler.has_work:
        while pending and (delay <= 0 or not watched.scheduler.has_work):
            watched.add(pending.pop(0))
            delay = pending[0].delay if pending else 0
        delay -= 1
        dice = chaos[step % len(chaos)]
        if dice == 1 and isinstance(allocator, PagedConfig):
            watched.do("reset_prefix_cache")
        if dice == 2:
            watched.abort(1 + step % len(watched.outputs))
        if watched.step(dice):
            watched.unstick()
        step += 1
        if step > most:
            # Only with memory in the way may somebody be preempted for ever without getting further.
            assert watched.may_stick() and config.admit_by == "chunk", "the scheduler does not come to an end"
            for request in [*watched.scheduler.running.tolist(), *watched.scheduler.waiting.tolist()]:
                watched.abort(request)
    watched.finish()
    watched.repeat()
    return watched


def pressing(allocator: AllocatorConfig, seed: int, count: int) -> list[Arrival]:
    """Requests that fit one by one and together do not: a third of the pool each, and up to a third more generated."""
    random = np.random.default_rng(seed)
    third = max(allocator.capacity_units * allocator.unit_tokens // 3, 2)
    return [
        Arrival(
            delay=int(random.integers(0, 3)),
            prompt=int(random.integers(1, third + 1)),
            limit=third,
            intended=int(random.integers(1, third + 1)),
            family=int(random.integers(0, 3)),
            class_id=int(random.integers(0, 4)),
            forks=int(random.integers(0, 8)) // 6,
        )
        for _ in range(count)
    ]

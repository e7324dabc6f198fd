"""A scheduler under random traffic with each of its options, and what its arrays say, for comparison with a fold."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import engine_config, pool_info, second_pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.adapters.reference import ReferenceAudit
from kvmon.allocators import page_pool, run_pool
from kvmon.allocators.config import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.events import RequestState, decode
from kvmon.events.wire import CACHED, DEFERRED, PINNED, STATUS
from kvmon.serving import state as at
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.scheduler import Scheduler
from kvmon.state import PoolState, Slots, StreamState
from kvmon.state.requests import computed_tokens
from tests.naive.replayed import Claim, ReplayedEngine

HASH_TOKENS = 16
STEP_NS = 1000
TOKEN_BYTES = 64
_LONGEST_QUEUE = 100


class Options(NamedTuple):
    """A pool, the scheduler over it, what goes wrong, and the kinds of events that are heard of nothing but this."""

    allocator: AllocatorConfig
    scheduler: SchedulerConfig = SchedulerConfig(token_budget=64, max_sequences=8)
    faults: Faults = Faults()
    says: str = ""


def _with(**options: object) -> SchedulerConfig:
    return SchedulerConfig(**{"token_budget": 64, "max_sequences": 8, **options})  # type: ignore[arg-type]


_CLAIMS = Faults(claims_every_ns=3 * STEP_NS)
_QUOTAS = ((0, 0.3), (1, 0.5))
_SWAP = {"preemption": "swap", "host_tokens": 160}
_DRAFTS = {"lookahead_tokens": 5, "acceptance": 0.6}
_TRANSFERS = {"transfer_share": 0.6, "transfer_ns": 6 * STEP_NS}
_LEVELS = {"priorities": ((0, 0), (1, 2), (2, 1))}
_BROKEN: dict[str, Any] = {"seed": 3, "from_ns": 40 * STEP_NS, "claims_every_ns": 3 * STEP_NS}

OPTIONS = {
    "paged": Options(PagedConfig(40, 4), says="CACHE_INSERT SHARE CACHE_HIT PREEMPTED ALLOC_FAILED"),
    "no-cache": Options(PagedConfig(40, 16, prefix_cache=False)),
    "single-tokens": Options(PagedConfig(60, 1)),
    "pins": Options(PagedConfig(40, 4, pin_after_hits=1, pin_share=0.3), faults=_CLAIMS, says="PIN CLAIMS"),
    "lfu": Options(PagedConfig(40, 4, evict="lfu", pin_after_hits=2, pin_share=0.2), says="PIN"),
    "fifo": Options(PagedConfig(40, 4, evict="fifo"), says="CACHE_INSERT"),
    "idle-reclaim": Options(PagedConfig(40, 4, reclaim="idle"), faults=_CLAIMS),
    "quotas": Options(PagedConfig(40, 4, quotas=_QUOTAS)),
    "window": Options(PagedConfig(60, 4, prefix_cache=False, window_tokens=10), faults=_CLAIMS),
    "window-own": Options(PagedConfig(40, 4, prefix_cache=False, window_tokens=10, window_pool_units=14)),
    "window-drafts": Options(
        PagedConfig(60, 4, prefix_cache=False, window_tokens=10), _with(**_DRAFTS, **_TRANSFERS), says="DEFER FREE"
    ),
    "window-own-drafts": Options(
        PagedConfig(40, 4, prefix_cache=False, window_tokens=7, window_pool_units=30, quotas=_QUOTAS),
        _with(**_DRAFTS, **_LEVELS),
    ),
    "window-swap": Options(
        PagedConfig(40, 4, prefix_cache=False, window_tokens=9),
        _with(**_SWAP),
        says="OFFLOADED ONBOARDED COMMIT ASSIGN_RUN",
    ),
    "drafts": Options(PagedConfig(40, 4), _with(**_DRAFTS)),
    "transfers": Options(PagedConfig(40, 4), _with(**_TRANSFERS), _CLAIMS, says="DEFER FREE CLAIMS"),
    "transfers-pins": Options(
        PagedConfig(40, 4, evict="lfu", pin_after_hits=1, pin_share=0.2), _with(**_TRANSFERS), says="DEFER FREE PIN"
    ),
    "levels": Options(PagedConfig(40, 4), _with(**_LEVELS)),
    "swap": Options(PagedConfig(40, 4), _with(**_SWAP), _CLAIMS, says="OFFLOADED ONBOARDED COMMIT ASSIGN_RUN CLAIMS"),
    "full-need": Options(PagedConfig(40, 4), _with(admit_by="full")),
    "first-chunk": Options(PagedConfig(40, 4), _with(admit_by="chunk", watermark=0.1, on_never_fits="wait")),
    "growth-waits": Options(PagedConfig(40, 4), _with(on_growth_failure="wait", chunked_prefill=False)),
    "growth-aborts": Options(PagedConfig(40, 4), _with(on_growth_failure="abort", on_no_fit="refuse")),
    "model-length": Options(PagedConfig(40, 4), _with(max_model_len=60)),
    "leaks": Options(PagedConfig(60, 4), faults=Faults(leak_share=0.2, **_BROKEN)),
    "double-frees": Options(PagedConfig(40, 4), faults=Faults(double_free_share=0.4, **_BROKEN)),
    "both": Options(PagedConfig(60, 4), faults=Faults(leak_share=0.2, double_free_share=0.4, **_BROKEN)),
    "strands": Options(
        PagedConfig(60, 4), _with(**_TRANSFERS), Faults(strand_share=0.5, **_BROKEN), says="DEFER CLAIMS"
    ),
    "strands-end": Options(
        PagedConfig(40, 4),
        _with(**_TRANSFERS),
        Faults(strand_share=1.0, strand_ns=40 * STEP_NS, **_BROKEN),
        says="DEFER FREE CLAIMS",
    ),
    "wrong-gauge": Options(PagedConfig(40, 4), faults=Faults(wrong_gauge=True, **_BROKEN)),
    "paged-many": Options(
        PagedConfig(60, 4, evict="lfu", pin_after_hits=1, pin_share=0.2, quotas=_QUOTAS),
        _with(**_SWAP, **_DRAFTS, **_TRANSFERS, **_LEVELS),
        Faults(leak_share=0.05, double_free_share=0.2, strand_share=0.2, strand_ns=9 * STEP_NS, **_BROKEN),
        says="OFFLOADED ONBOARDED COMMIT DEFER FREE PIN CLAIMS",
    ),
    "maximum": Options(ContiguousConfig(200, 1), faults=_CLAIMS),
    "chunks": Options(ContiguousConfig(200, 1, 8), says="MIGRATED RESERVE"),
    "wide-chunks": Options(ContiguousConfig(60, 4, 10)),
    "powers": Options(ContiguousConfig(200, 1, reserve="pow2")),
    "oracle": Options(ContiguousConfig(60, 4, reserve="oracle")),
    "best-fit": Options(ContiguousConfig(200, 1, 8, placement="best-fit")),
    "buddy": Options(ContiguousConfig(64, 4, placement="buddy"), faults=_CLAIMS),
    "buddy-chunks": Options(
        ContiguousConfig(128, 1, 8, placement="buddy"), _with(**_SWAP, **_DRAFTS), says="MIGRATED OFFLOADED"
    ),
    "compaction": Options(
        ContiguousConfig(160, 1, 8, compaction=True), _with(**_SWAP), says="COMPACTED MIGRATED OFFLOADED"
    ),
    "retained": Options(
        ContiguousConfig(200, 1, retained_prefixes=3), faults=_CLAIMS, says="PIN EVICT CACHE_HIT CLAIMS"
    ),
    "retained-many": Options(
        ContiguousConfig(60, 4, 16, placement="best-fit", retained_prefixes=2, quotas=_QUOTAS),
        _with(**_SWAP, **_DRAFTS, **_LEVELS),
        says="PIN EVICT MIGRATED OFFLOADED",
    ),
    "contiguous-drafts": Options(ContiguousConfig(200, 1, reserve="oracle"), _with(**_DRAFTS)),
    "contiguous-swap": Options(ContiguousConfig(50, 4, 8), _with(**_SWAP), says="OFFLOADED ONBOARDED COMMIT"),
}


class Held(NamedTuple):
    """The units of a request in one pool for one group, the first of which stands at `place` units in its sequence."""

    pool: int
    group: int
    place: int
    units: list[int]


class Traffic:
    """Random requests over a scheduler: prefixes, forks, aborts, resets of the prefix cache, one step at a time."""

    def __init__(self, options: Options, seed: int, hash_tokens: int = HASH_TOKENS) -> None:
        allocator = options.allocator
        self.options = options
        self.random = random.Random(seed)
        self.paged = isinstance(allocator, PagedConfig)
        self.named = isinstance(allocator, PagedConfig) or allocator.retained_prefixes > 0
        self.hash_tokens = hash_tokens if self.named else 0
        self.scheduler = Scheduler(
            allocator, options.scheduler, hash_tokens=self.hash_tokens, journal=True, faults=options.faults
        )
        self.identities: dict[int, npt.NDArray[np.uint64]] = {}
        self.longest = max(2, allocator.capacity_units * allocator.unit_tokens // 3)
        self.now = 1000
        self.stuck = False

    def step(self) -> npt.NDArray[np.int64]:
        """Arrivals, now and then an abort or a reset, one step; the journal of it all."""
        draw, scheduler = self.random, self.scheduler
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
            if len(scheduler.waiting) < _LONGEST_QUEUE:
                self._arrive()
        if self.stuck and scheduler.has_work:
            scheduler.abort(int(scheduler.running[-1] if len(scheduler.running) else scheduler.waiting[0]))
        self.stuck = False
        if draw.random() < 0.05 and scheduler.has_work:
            scheduler.abort(draw.choice([*scheduler.running.tolist(), *scheduler.waiting.tolist()]))
        if self.paged and draw.random() < 0.02:
            scheduler.reset_prefix_cache()
        if scheduler.has_work:
            scheduler.schedule()
            self.stuck = scheduler.stuck and scheduler.next_transfer_ns is None
            scheduler.commit(self.now, STEP_NS)
        self.now += STEP_NS
        return scheduler.drain()

    def _arrive(self) -> None:
        draw = self.random
        prompt = draw.randint(1, draw.choice((8, 40, self.longest)))
        names = [1 + draw.randint(0, 2)]
        while self.named and len(names) * self.hash_tokens < prompt:
            names.append((names[-1] * 7 + draw.choice((1, 1, 2))) % 2**61)
        identities = np.array(names if self.named else [], np.uint64)
        class_id = parent = 0
        for _ in range(draw.choice((1, 1, 1, 1, 1, 3)) if self.paged else 1):
            limit, intended = draw.randint(1, 40), draw.randint(1, 40)
            class_id = class_id if parent else draw.randint(0, 3)
            request = self.scheduler.add(
                prompt,
                limit,
                intended_output=intended,
                class_id=class_id,
                identities=identities,
                arrival_ns=self.now,
                fork_of=parent,
            )
            self.identities[request] = identities
            parent = parent or request

    # -- what the arrays say --

    def held(self, request: int) -> Iterator[Held]:
        """What a live request holds: pages of every group, its block, or its copy in the host tier."""
        serving = self.scheduler.state
        if request not in self.scheduler.running:
            start, units = serving.facts[request, at.HOST_START : at.HOST_COUNT + 1].tolist()
            if units:
                yield Held(2, 0, 0, list(range(start, start + units)))
            return
        seat = int(serving.live[request, at.SEAT])
        row = serving.held[seat].tolist()
        allocator = self.options.allocator
        if not isinstance(allocator, PagedConfig):
            yield Held(1, 0, 0, list(range(row[at.START], row[at.START] + row[at.UNITS])))
            return
        yield Held(1, 0, 0, serving.table[seat, : row[at.PAGES]].tolist())
        if allocator.window_tokens:
            first, end = row[at.WINDOW_FIRST], row[at.WINDOW_PAGES]
            pages = serving.table[int(serving.config[at.SEATS]) + seat, first:end].tolist()
            yield Held(2 if allocator.window_pool_units else 1, 1, first, pages)

    def computed(self, request: int) -> int:
        """Tokens of a live request whose keys and values are there, or in the host tier."""
        serving = self.scheduler.state
        waiting = request not in self.scheduler.running
        return int(serving.facts[request, at.HOST_TOKENS] if waiting else serving.live[request, at.COMPUTED])

    @property
    def live(self) -> list[int]:
        """Requests that run or wait."""
        return [*self.scheduler.running.tolist(), *self.scheduler.waiting.tolist()]

    @property
    def leaked(self) -> int:
        """Pages that nobody gives back."""
        return int(self.scheduler.state.tally[at.LEAKED_UNITS])

    def slots(self, number: int) -> Slots:
        """Slots of a pool, unit by unit: how many of each hold a token. What leaked was written."""
        tokens = self.options.allocator.unit_tokens
        filled: dict[int, int] = {}
        for request in self.live:
            computed = self.computed(request)
            for held in self.held(request):
                for place, unit in enumerate(held.units, held.place):
                    if held.pool == number:
                        here = min(max(computed - place * tokens, 0), tokens)
                        filled[unit] = max(filled.get(unit, 0), here)
        partly = [tokens - count for count in filled.values() if count > 0]
        leaked = self.leaked * tokens if number == 1 else 0
        return Slots(
            written=sum(filled.values()) + leaked,
            tail=sum(partly),
            reserved=sum(tokens for count in filled.values() if count == 0),
        )


class Followed:
    """Traffic, and what is made of its events: the fold, and the naive model."""

    def __init__(self, options: Options, seed: int, requests: int, hash_tokens: int = HASH_TOKENS) -> None:
        self.traffic = Traffic(options, seed, hash_tokens)
        allocator, scheduler = options.allocator, options.scheduler
        first, second = pool_info(allocator, TOKEN_BYTES), second_pool_info(allocator, scheduler, TOKEN_BYTES)
        self.capacities = {1: first.capacity_units} | ({} if second is None else {2: second.capacity_units})
        self.state, self.naive = StreamState(verify=True), ReplayedEngine(self.capacities)
        self.audit = ReferenceAudit(self.traffic.scheduler)
        self.pieces: list[npt.NDArray[np.uint32]] = []
        self.words = JournalWords(
            lambda piece: self.pieces.append(piece.copy()),
            json.dumps(engine_config(allocator, scheduler)),
            first,
            second=second,
            requests=requests,
        )
        self.claims: list[Claim] = []
        self._residuals = self._drifts = 0

    def step(self, look: bool = True) -> None:
        """One step of the traffic; with `look` everything is compared."""
        self.words(self.traffic.step())
        if not look or not self.pieces:
            return
        batch = np.concatenate(self.pieces)
        self.pieces.clear()
        self.state.apply(batch)
        self.naive.apply(decode(batch.tolist()))
        self.traffic.scheduler.check()
        if self.said_after_the_last_step:
            return
        for number, pool in self.state.pools.items():
            self._compare_units(number, pool)
            self._compare_slots(number, pool)
        self._compare_requests()
        self._compare_faults()

    @property
    def said_after_the_last_step(self) -> bool:
        """Whether an arrival or an abort came with nothing to schedule: it stands in a frame that is not closed yet."""
        return int(self.words._place[0]) > 0

    def _compare_units(self, number: int, pool: PoolState) -> None:
        """The states of all units are the naive model's and the allocator's, and so is what the audit ships."""
        naive, serving = self.naive.pools[number], self.traffic.scheduler.state
        units = range(1, pool.capacity_units + 1)
        assert pool.units == naive.state_sums()
        assert sum(pool.units.values()) == pool.capacity_units == self.capacities[number]
        references = pool.status & 0xFFFFFF
        assert references.tolist() == [naive.references[unit] for unit in units]
        for flag, marked in ((CACHED, naive.cached), (PINNED, naive.pinned), (DEFERRED, naive.deferred)):
            assert (np.flatnonzero(pool.status & np.uint32(flag)) + 1).tolist() == sorted(marked)
        assert [word ^ STATUS for word in self.audit.status(number, 1, len(units))] == pool.status.tolist()
        assert pool.evicted == naive.evictions
        assert (pool.unowned or 0) == len(self.naive.unowned(number))
        if number == 2:
            host = int(serving.config[at.HOST_UNITS])
            assert pool.free == int(serving.host.tally[run_pool.FREE] if host else serving.tally[at.WINDOW_SPARE])
        elif self.traffic.paged:
            tally = serving.pages.tally
            assert references.tolist() == serving.pages.node[1:, page_pool.REF].tolist()
            contents = (serving.pages.content[1:] != 0).tolist()
            assert contents == ((pool.status & np.uint32(CACHED)) > 0).tolist()
            assert pool.evictable == int(tally[page_pool.EVICTABLE])
            assert pool.units["pinned"] == int(tally[page_pool.IDLE_PINNED])
            assert pool.units["deferred"] == int(tally[page_pool.DEFERRED])
            assert pool.evicted == int(tally[page_pool.EVICTIONS_DONE])
        else:
            assert pool.free == int(serving.runs.tally[run_pool.FREE])
            assert pool.units["pinned"] == int(serving.tally[at.REGION_UNITS])
        if pool.contiguity != "none":
            assert pool.free_runs().tolist() == naive.free_runs()
            runs = serving.host if number == 2 else serving.runs
            assert pool.largest_free == int(run_pool.largest_run(runs))

    def _compare_slots(self, number: int, pool: PoolState) -> None:
        """Written, tail and reserved are those of the scheduler's tables; with all other units they fill the pool."""
        slots = pool.slots()
        assert slots == self.traffic.slots(number)
        others = sum(pool.units[state] for state in ("cached", "pinned", "deferred", "free"))
        inside = slots.written + slots.tail + slots.reserved
        assert pool.capacity_units * pool.unit_tokens == inside + others * pool.unit_tokens

    def _compare_requests(self) -> None:
        """Live requests, their states, tokens and tables in both pools and groups."""
        state, naive, traffic = self.state, self.naive, self.traffic
        requests = state.requests
        live = {int(request): row for row, request in enumerate(requests.id.tolist()) if request}
        assert set(live) == naive.live == set(traffic.live)
        running = {request for request, row in live.items() if requests.state[row] == int(RequestState.RUNNING)}
        assert running == naive.running == set(traffic.scheduler.running.tolist())
        for request, row in live.items():
            computed = traffic.computed(request)
            assert naive.computed[request] == computed_tokens(requests, row, state.steps) == computed
            folded = {number: [table.units.tolist() for table in state.tables(row, number)] for number in state.pools}
            mine: dict[int, list[list[int]]] = {number: [[] for _ in tables] for number, tables in folded.items()}
            for held in traffic.held(request):  # a pool that one group draws from has one table
                mine[held.pool][min(held.group, len(mine[held.pool]) - 1)] = held.units
            assert folded == mine
            for held in traffic.held(request):
                assert naive.table(request, held.pool, held.group) == held.units
            if not traffic.paged:
                assert int(requests.reserved[row]) == naive.reserved.get(request, 0)

    def _compare_faults(self) -> None:
        """Leaks are unowned units, double frees are double frees, and nothing else is wrong."""
        traffic, naive, state = self.traffic, self.naive, self.state
        twice = int(traffic.scheduler.state.tally[at.TWICE_FREED])
        unowned = sum(pool.unowned or 0 for pool in state.pools.values())
        assert unowned == traffic.leaked == len(naive.unowned(1))
        assert len(naive.pools[1].freed_twice) == twice
        found = Counter(fault.kind.name for fault in state.faults())
        assert found.pop("DOUBLE_FREE", 0) == twice
        assert found.pop("UNOWNED", 0) <= traffic.leaked
        assert (found.pop("RESIDUAL", 0), found.pop("CLAIMS_DRIFT", 0)) == self._wrong_claims()
        assert not found
        newest = max((fault.value or 0 for fault in state.faults() if fault.kind.name == "UNOWNED"), default=0)
        assert newest == traffic.leaked

    def _wrong_claims(self) -> tuple[int, int]:
        """How many claims do not sum to the capacity, and how many differ from what the events add up to."""
        for claim in self.naive.claims:
            said, units = claim.said, claim.units
            residual = claim.freed_twice - claim.unowned
            parts = ("available", "evictable", "protected", "in_flight")
            assert sum(said[part] for part in parts) == self.capacities[1] + residual
            assert said["evictable"] == units["cached"] and said["in_flight"] == units["deferred"]
            used = units["active"] + units["pinned"] + units["deferred"] - claim.unowned
            if not self.traffic.options.faults.wrong_gauge:
                assert said["usage"] == used * 1_000_000 // self.capacities[1]
            self._residuals += residual != 0
            self._drifts += said["available"] != units["free"]
        self.claims = self.naive.claims or self.claims
        self.naive.claims = []
        return self._residuals, self._drifts


def follow(options: Options, seed: int, steps: int, *, look_every: int = 1, hash_tokens: int = HASH_TOKENS) -> Followed:
    """Serve random traffic through the compiled translation and compare it step by step."""
    followed = Followed(options, seed, steps * 3 + 10, hash_tokens)
    for step in range(steps):
        followed.step(step % look_every == 0)
    return followed

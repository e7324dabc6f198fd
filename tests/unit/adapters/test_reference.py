"""The reference adapter: decoded events, folded, are the allocator's own state, after every step and by every path."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.adapters.journal_words import JournalWords
from kvmon.adapters.reference import ReferenceAdapter, ReferenceAudit, engine_config, pool_info
from kvmon.allocators import page_pool
from kvmon.allocators.config import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.events import Event, Kind, decode
from kvmon.probe import StreamProbe
from kvmon.recording import Position, StreamReader, find_streams
from kvmon.serving import state as at
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scheduler import Scheduler
from kvmon.state import StreamState, scan
from kvmon.state.requests import slots_of_table
from tests.naive.replayed import ReplayedPool

HASH_TOKENS = 16


class Traffic:
    """Random requests over a scheduler: shared prefixes, aborts, resets of the prefix cache, one step at a time."""

    def __init__(self, allocator: AllocatorConfig, config: SchedulerConfig, seed: int) -> None:
        self.random = random.Random(seed)
        self.paged = isinstance(allocator, PagedConfig)
        self.scheduler = Scheduler(allocator, config, hash_tokens=HASH_TOKENS if self.paged else 0, journal=True)
        self.identities: dict[int, np.ndarray] = {}
        self.longest = max(2, allocator.capacity_units * allocator.unit_tokens // 3)
        self.now = 1000

    def step(self) -> np.ndarray:
        """Arrivals, now and then an abort or a reset, one step; the journal of it all."""
        draw, scheduler = self.random, self.scheduler
        for _ in range(draw.choice((0, 0, 0, 1, 1, 2))):
            prompt = draw.randint(1, draw.choice((8, 40, self.longest)))
            names = [1 + draw.randint(0, 2)]
            while self.paged and len(names) * HASH_TOKENS < prompt:
                names.append((names[-1] * 7 + draw.choice((1, 1, 2))) % 2**61)
            identities = np.array(names if self.paged else [], np.uint64)
            request = scheduler.add(
                prompt,
                draw.randint(1, 40),
                intended_output=draw.randint(1, 40),
                class_id=draw.randint(0, 3),
                identities=identities,
                arrival_ns=self.now,
            )
            self.identities[request] = identities
        if draw.random() < 0.05 and scheduler.has_work:
            scheduler.abort(draw.choice([*scheduler.running.tolist(), *scheduler.waiting.tolist()]))
        if self.paged and draw.random() < 0.02:
            scheduler.reset_prefix_cache()
        if scheduler.has_work:
            scheduler.schedule()
            if scheduler.stuck:
                scheduler.commit(self.now, 10)
                scheduler.abort(int(scheduler.running[-1] if len(scheduler.running) else scheduler.waiting[0]))
            else:
                scheduler.commit(self.now, 10)
        self.now += 10
        return scheduler.drain()


def compare(traffic: Traffic, state: StreamState, naive: ReplayedPool) -> None:
    """Fold = allocator = naive model: units, contents, tables, computed tokens, free runs, and no fault."""
    scheduler, pool = traffic.scheduler, state.pools[1]
    serving = scheduler.state
    assert state.faults() == []
    assert sum(pool.units.values()) == pool.capacity_units
    assert {
        name: count for name, count in pool.units.items() if name in ("active", "cached", "free")
    } == naive.state_sums()
    references = pool.status & 0xFFFFFF
    assert references.tolist() == [naive.references[unit] for unit in range(1, pool.capacity_units + 1)]
    if traffic.paged:
        assert references.tolist() == serving.pages.node[1:, page_pool.REF].tolist()
        contents = ((pool.status >> 24) & 1).astype(bool)
        assert contents.tolist() == (serving.pages.content[1:] != 0).tolist()
        assert pool.evicted == naive.evictions == int(serving.pages.tally[page_pool.EVICTIONS])
    else:
        assert pool.free_runs().tolist() == naive.free_runs()
        assert pool.largest_free == max(naive.free_runs(), default=0)
    requests = state.requests
    live = {int(request): row for row, request in enumerate(requests.id.tolist()) if request}
    assert set(live) == naive.live == {*scheduler.running.tolist(), *scheduler.waiting.tolist()}
    for request in scheduler.running.tolist():
        row, seat = live[request], int(serving.live[request, at.SEAT])
        held = serving.held[seat]
        if traffic.paged:
            own = serving.table[seat, : held[at.PAGES]].tolist()
        else:
            own = list(range(int(held[at.START]), int(held[at.START] + held[at.UNITS])))
        assert state.table(row, 1).tolist() == own == naive.tables[request]
        computed = int(serving.live[request, at.COMPUTED])
        assert naive.computed[request] == computed
        written, tail, reserved = slots_of_table(requests, row, 1, pool.unit_tokens, state.steps)
        assert written == computed
        assert written + tail + reserved == len(own) * pool.unit_tokens
    slots = pool.slots()
    assert slots.written + slots.tail + slots.reserved == pool.active * pool.unit_tokens
    assert pool.unowned in (0, None)


def run_words(allocator: AllocatorConfig, config: SchedulerConfig, seed: int, steps: int, look_every: int = 1) -> int:
    """Serve random traffic through the compiled translation and compare; how many requests came."""
    traffic = Traffic(allocator, config, seed)
    state, naive = StreamState(verify=True), ReplayedPool(allocator.capacity_units)
    pieces: list[np.ndarray] = []
    words = JournalWords(
        lambda piece: pieces.append(piece.copy()),
        json.dumps(engine_config(allocator, config)),
        pool_info(allocator, 64),
        requests=steps * 2 + 10,
    )
    for step in range(steps):
        words(traffic.step())
        if step % look_every or not pieces:
            continue
        batch = np.concatenate(pieces)
        pieces.clear()
        state.apply(batch)
        naive.apply(decode(batch.tolist()))
        traffic.scheduler.check()
        if not said_after_the_last_step(words):
            compare(traffic, state, naive)
    return len(traffic.identities)


def said_after_the_last_step(words: JournalWords) -> bool:
    """Whether an arrival or an abort came with nothing to schedule: it stands in a frame that is not closed yet."""
    return int(words._place[0]) > 0


allocators = st.one_of(
    st.builds(PagedConfig, st.integers(4, 60), st.sampled_from((1, 4, 16)), st.booleans()),
    st.builds(ContiguousConfig, st.integers(16, 300), st.sampled_from((1, 4)), st.sampled_from((None, 8, 16))),
)
policies = st.builds(
    SchedulerConfig,
    token_budget=st.sampled_from((8, 64, 2048)),
    max_sequences=st.sampled_from((2, 8, 256)),
    chunked_prefill=st.booleans(),
    watermark=st.sampled_from((0.0, 0.1)),
    on_no_fit=st.sampled_from(("wait", "refuse")),
    on_growth_failure=st.sampled_from(("preempt", "wait", "abort")),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(allocators, policies, st.integers(0, 10_000))
def test_fold_of_decoded_events_is_the_allocator_and_the_naive_model(
    allocator: AllocatorConfig, config: SchedulerConfig, seed: int
) -> None:
    """After every step of random traffic the three agree on every unit, table and token."""
    run_words(allocator, config, seed, 60)


@pytest.mark.slow  # a million steps of the naive model and the comparison
@pytest.mark.parametrize(
    "allocator",
    [
        PagedConfig(40, 4),
        PagedConfig(40, 16, prefix_cache=False),
        ContiguousConfig(200, 1, 8),
        ContiguousConfig(200, 1),
    ],
    ids=["paged", "paged-no-cache", "chunks", "maximum"],
)
def test_a_quarter_of_a_million_steps(allocator: AllocatorConfig) -> None:
    """The same over 250,000 steps each, looking at every 97th."""
    requests = run_words(allocator, SchedulerConfig(token_budget=64, max_sequences=16), 1, 250_000, look_every=97)
    assert requests > 50_000


def comparable(events: list[Event]) -> list[tuple[str, dict[str, object]]]:
    """Records without what framing adds: frame numbers, lengths, times and checksums; audits left out."""
    framing = {"seq", "words", "time", "checksum"}
    left_out = (Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED, Kind.AUDIT_SLICE, Kind.AUDIT_RUN, Kind.AUDIT_SWEEP, Kind.TICK)
    return [
        (event.kind.name, {name: value for name, value in event.fields.items() if name not in framing})
        for event in events
        if event.kind not in left_out
    ]


@pytest.mark.parametrize("allocator", [PagedConfig(40, 16), ContiguousConfig(200, 1, 8)], ids=["paged", "contiguous"])
def test_the_probe_and_the_compiled_translation_say_the_same(tmp_path: Path, allocator: AllocatorConfig) -> None:
    """Record for record, what goes through the probe is what the simulator writes."""
    config = SchedulerConfig(token_budget=64, max_sequences=8)
    traffic = Traffic(allocator, config, 5)
    journals = [traffic.step() for _ in range(300)]
    offsets = np.zeros(1001, np.int64)
    offsets[1 : len(traffic.identities) + 1] = np.cumsum([len(names) for names in traffic.identities.values()])
    offsets[len(traffic.identities) + 1 :] = offsets[len(traffic.identities)]
    pieces: list[np.ndarray] = []
    words = JournalWords(
        lambda piece: pieces.append(piece.copy()),
        "{}",
        pool_info(allocator, 64),
        requests=1000,
        offsets=offsets,
        hashes=np.concatenate([*traffic.identities.values(), np.zeros(0, np.uint64)]),
        hash_tokens=HASH_TOKENS,
    )
    probe = StreamProbe(tmp_path, "reference")
    pool = probe.attach_pool(pool_info(allocator, 64))
    adapter = ReferenceAdapter(
        probe,
        pool,
        identities=traffic.identities.__getitem__ if traffic.paged else None,
        hash_tokens=HASH_TOKENS,
    )
    for journal in journals:
        words(journal)
        adapter.emit(journal)
    words.close()
    probe.close()
    compiled = [event for piece in pieces for event in decode(piece.tolist())]
    reader = StreamReader(find_streams(tmp_path)[0])
    recorded: list[Event] = []
    while (piece := reader.poll()) is not None:
        recorded += decode(np.frombuffer(piece.data, np.uint32).tolist())
    assert comparable(recorded) == comparable(compiled)
    assert probe.lost == 0


@pytest.mark.parametrize("allocator", [PagedConfig(300, 4), ContiguousConfig(700, 1, 8)], ids=["paged", "contiguous"])
def test_a_late_reader_finds_the_truth_in_the_audit(tmp_path: Path, allocator: AllocatorConfig) -> None:
    """A fold of the last two segments knows nothing at first and everything after one sweep."""
    traffic = Traffic(allocator, SchedulerConfig(token_budget=64, max_sequences=12), 3)
    probe = StreamProbe(tmp_path, "reference", budget=1 << 20)
    adapter = ReferenceAdapter(probe, probe.attach_pool(pool_info(allocator, 64)))
    probe.audit_from(ReferenceAudit(traffic.scheduler))
    path = find_streams(tmp_path)[0]
    while len(list(path.glob("*.seg"))) < 5:
        adapter.emit(traffic.step())
    for _ in range(80):
        adapter.emit(traffic.step())
    newest = max(int(segment.stem) for segment in path.glob("*.seg"))
    whole, _ = fold_from(path, None)
    late, converged_after = fold_from(path, Position(newest - 1, 0))
    assert converged_after > 0
    assert whole.faults() == [] == late.faults()
    assert late.pools[1].units == whole.pools[1].units
    assert (late.pools[1].status == whole.pools[1].status).all()
    assert (late.pools[1].owners == whole.pools[1].owners).all()
    assert late.pools[1].slots() == whole.pools[1].slots()
    assert late.pools[1].unowned == whole.pools[1].unowned
    assert late.pools[1].units_by_owner_state() == whole.pools[1].units_by_owner_state()


def fold_from(path: Path, start: Position | None) -> tuple[StreamState, int]:
    """A fold of a stream from a position on, and how many frames it took before it knew everything."""
    state, reader, frames = StreamState(verify=True), StreamReader(path, start), 0
    while (piece := reader.poll()) is not None:
        words = np.frombuffer(piece.data, np.uint32)
        for first, end in zip([0, *scan(words).ends[:-1].tolist()], scan(words).ends.tolist(), strict=True):
            state.apply(words[first:end])
            frames += not state.converged
    assert state.converged
    return state, frames

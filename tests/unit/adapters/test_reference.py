"""The reference adapter: decoded events, folded, are the allocator's own state, after every step and by every path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.adapters.described import pool_info, second_pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.adapters.reference import ReferenceAdapter, ReferenceAudit
from kvmon.allocators.config import PagedConfig
from kvmon.events import UNIT_KINDS, Event, Kind, decode
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import Position, StreamReader, find_streams
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.workload import Workload
from kvmon.simulate import simulate
from kvmon.state import StreamState, scan
from kvmon.state.requests import computed_tokens
from tests.unit.adapters.driven import HASH_TOKENS, OPTIONS, STEP_NS, TOKEN_BYTES, Options, Traffic, follow
from tests.unit.serving.option_sets import contiguous_pools, option_sets, paged_pools

Words = npt.NDArray[np.uint32]
EVERY_OPTION = pytest.mark.parametrize("name", OPTIONS)


# -- the compiled path --


@EVERY_OPTION
def test_fold_of_decoded_events_is_the_allocator_and_the_naive_model(name: str) -> None:
    """After every step of traffic the three agree on every unit, table, token, slot and fault, in both pools."""
    followed = follow(OPTIONS[name], 1, 180)
    assert set(OPTIONS[name].says.split()) <= set(followed.naive.seen), "the option was heard of"
    assert len(followed.traffic.identities) > 80


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(option_sets(paged_pools()), option_sets(contiguous_pools())), st.integers(0, 10_000))
def test_any_options_together(options: tuple[PagedConfig, SchedulerConfig, Faults], seed: int) -> None:
    """The same for options drawn at random."""
    follow(Options(*options), seed, 50)


@pytest.mark.parametrize("name", ["leaks", "double-frees", "both", "paged-many"])
def test_faults_are_found_and_counted(name: str) -> None:
    """As many unowned units as leaked, as many double frees as there were, and the engine's own claims say both."""
    followed = follow(OPTIONS[name], 2, 250)
    struck = OPTIONS[name].faults
    kinds = {fault.kind.name for fault in followed.state.faults()}
    leaked, twice = followed.traffic.leaked, len(followed.naive.pools[1].freed_twice)
    assert (leaked > 0, twice > 0) == (struck.leak_share > 0, struck.double_free_share > 0)
    assert kinds == {
        *(("UNOWNED",) if leaked else ()),
        *(("DOUBLE_FREE", "CLAIMS_DRIFT") if twice else ()),
        "RESIDUAL",
    }
    last = followed.claims[-1]
    assert followed.state.claims[1].residual(followed.capacities[1]) == last.freed_twice - last.unowned
    assert followed.state.drift[1] == last.freed_twice


@pytest.mark.slow  # the naive model over a million steps and more
@pytest.mark.parametrize(
    "name", ["paged", "no-cache", "chunks", "maximum", "window-own-drafts", "retained-many", "transfers-pins"]
)
def test_a_quarter_of_a_million_steps(name: str) -> None:
    """The same over 250,000 steps each, looking at every 97th."""
    assert len(follow(OPTIONS[name], 1, 250_000, look_every=97).traffic.identities) > 30_000


# -- both paths --


def comparable(events: list[Event]) -> list[tuple[str, int, dict[str, object]]]:
    """Records without what framing adds: frame numbers, lengths, times and checksums; audits left out."""
    framing = {"seq", "words", "time", "checksum"}
    left_out = (Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED, Kind.AUDIT_SLICE, Kind.AUDIT_RUN, Kind.AUDIT_SWEEP, Kind.TICK)
    of_pools = {*UNIT_KINDS, Kind.POOL_RESET, Kind.ASSIGN, Kind.ASSIGN_RUN, Kind.ALLOC_FAILED, Kind.OFFLOADED}
    of_pools |= {Kind.ONBOARDED, Kind.MIGRATED, Kind.COMPACTED, Kind.CLAIMS}
    return [
        (
            event.kind.name,
            event.pool if event.kind in of_pools else 0,
            {name: value for name, value in event.fields.items() if name not in framing},
        )
        for event in events
        if event.kind not in left_out
    ]


def infos(options: Options) -> tuple[PoolInfo, PoolInfo | None]:
    """The pools of an engine with these options."""
    allocator, scheduler = options.allocator, options.scheduler
    return pool_info(allocator, TOKEN_BYTES), second_pool_info(allocator, scheduler, TOKEN_BYTES)


def adapter_of(
    directory: Path, options: Options, traffic: Traffic | None = None
) -> tuple[StreamProbe, ReferenceAdapter]:
    """A probe with both pools, and the adapter that writes to it."""
    probe = StreamProbe(directory, "reference")
    first, second = infos(options)
    identities = traffic.identities.__getitem__ if traffic is not None and traffic.named else None
    adapter = ReferenceAdapter(
        probe,
        probe.attach_pool(first),
        second=None if second is None else probe.attach_pool(second),
        identities=identities,
        hash_tokens=HASH_TOKENS,
    )
    return probe, adapter


def recorded(directory: Path) -> list[Event]:
    """Everything that was recorded, decoded."""
    reader = StreamReader(find_streams(directory)[0])
    events: list[Event] = []
    while (piece := reader.poll()) is not None:
        events += decode(np.frombuffer(piece.data, np.uint32).tolist())
    return events


@EVERY_OPTION
def test_the_probe_and_the_compiled_translation_say_the_same(tmp_path: Path, name: str) -> None:
    """Record for record, what goes through the probe is what the simulator writes."""
    options = OPTIONS[name]
    traffic = Traffic(options, 5)
    journals = [traffic.step() for _ in range(200)]
    offsets = np.zeros(1001, np.int64)
    offsets[1 : len(traffic.identities) + 1] = np.cumsum([len(names) for names in traffic.identities.values()])
    offsets[len(traffic.identities) + 1 :] = offsets[len(traffic.identities)]
    pieces: list[Words] = []
    first, second = infos(options)
    words = JournalWords(
        lambda piece: pieces.append(piece.copy()),
        "{}",
        first,
        second=second,
        requests=1000,
        offsets=offsets,
        hashes=np.concatenate([*traffic.identities.values(), np.zeros(0, np.uint64)]),
        hash_tokens=HASH_TOKENS,
    )
    probe, adapter = adapter_of(tmp_path, options, traffic)
    for journal in journals:
        words(journal)
        adapter.emit(journal)
    words.close()
    probe.close()
    compiled = [event for piece in pieces for event in decode(piece.tolist())]
    assert comparable(recorded(tmp_path)) == comparable(compiled)
    assert probe.lost == 0


def test_errors_of_the_engine_are_said_by_both_paths(tmp_path: Path) -> None:
    """An allocation outside of the pool that fails is an engine error with its bytes, and the request dies of it."""
    errors = (EngineError(3_000_000, 5 << 30, 1 << 20, 3 << 33), EngineError(40_000_000, 7, 0, 0))
    lengths = np.full(6, 30, np.int32)
    workload = Workload(np.arange(6) * 10_000_000, lengths, lengths, lengths, np.zeros(6, np.int32))
    options = Options(PagedConfig(40, 4), faults=Faults(errors=errors))
    pieces: list[Words] = []
    words = JournalWords(lambda piece: pieces.append(piece.copy()), "{}", infos(options)[0], requests=6)
    probe, adapter = adapter_of(tmp_path, options)

    def both(journal: npt.NDArray[np.int64]) -> None:
        words(journal)
        adapter.emit(journal)

    simulate(workload, options.allocator, options.scheduler, faults=options.faults, journal_sink=both)
    words.close()
    probe.close()
    state = StreamState(verify=True)
    for piece in pieces:
        state.apply(piece)
    asked = [(event.fields["asked"], event.fields["free"], event.fields["reserved"]) for event in state.errors]
    assert asked == [error[1:] for error in errors]
    assert not state.faults()
    compiled = [event for piece in pieces for event in decode(piece.tolist())]
    assert comparable(recorded(tmp_path)) == comparable(compiled)
    assert sum(event.kind is Kind.REQUEST_FINISHED and event.fields["reason"] == 4 for event in compiled) == 2


# -- the audit --


def facts(state: StreamState, owners: bool = True) -> dict[str, object]:
    """Everything about pools and requests that does not depend on when one began to look."""
    rows = state.requests
    known: dict[str, object] = {}
    for number, pool in state.pools.items():
        seen = pool.survey()
        known[f"pool {number}"] = (
            pool.info["name"],
            pool.units,
            pool.status.tolist(),
            pool.owners.tolist(),
            (pool.unowned, pool.shared, pool.largest_free, pool.slots(seen)),
            (seen.runs_per_sequence, seen.free_runs, seen.owners if owners else None),
        )
    for row in np.flatnonzero(rows.id).tolist():
        known[f"request {rows.id[row]}"] = (
            [int(column[row]) for column in (rows.state, rows.class_id, rows.arrived, rows.prompt, rows.limit)],
            (int(rows.reserved[row]), int(computed_tokens(rows, row, state.steps))),
            [[(table.units.tolist(), table.tail) for table in state.tables(row, number)] for number in state.pools],
        )
    return known


@EVERY_OPTION
def test_a_late_reader_knows_everything_after_one_sweep(tmp_path: Path, name: str) -> None:
    """Units in every state, window tables, host blocks, retained regions: the late fold has them from then on."""
    options = OPTIONS[name]
    traffic = Traffic(options, 3)
    probe, adapter = adapter_of(tmp_path, options)
    probe.audit_from(ReferenceAudit(traffic.scheduler))
    while probe.emitter.frame < 400:
        adapter.emit(traffic.step())
    probe.close()
    reader, whole, late = StreamReader(find_streams(tmp_path)[0]), StreamState(verify=True), StreamState(verify=True)
    compared = frame = 0
    while (piece := reader.poll()) is not None:
        words = np.frombuffer(piece.data, np.uint32)
        ends = scan(words).ends.tolist()
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            whole.apply(words[first:end])
            if frame > 150:
                late.apply(words[first:end])
            frame += 1
            if late.converged:
                # Who lost a unit is not to be seen in it.
                assert facts(late, not traffic.leaked) == facts(whole, not traffic.leaked)
                compared += 1
    assert compared > 30
    assert "AUDIT_MISMATCH" not in {fault.kind.name for fault in [*whole.faults(), *late.faults()]}
    broken = options.faults.leak_share or options.faults.double_free_share
    assert broken or whole.faults() == [] == late.faults()


@pytest.mark.parametrize("name", ["paged", "chunks"])
def test_a_reader_of_the_last_segments_finds_the_truth(tmp_path: Path, name: str) -> None:
    """A fold of the last two segments knows nothing at first and everything after one sweep."""
    traffic = Traffic(OPTIONS[name], 3)
    probe = StreamProbe(tmp_path, "reference", budget=1 << 20)
    adapter = ReferenceAdapter(probe, probe.attach_pool(infos(OPTIONS[name])[0]))
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
    assert facts(late) == facts(whole)


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


def test_times_stand_on_the_probes_clock(tmp_path: Path) -> None:
    """A time base moves arrivals and steps, as events and as the audit restates them."""
    traffic, base = Traffic(OPTIONS["paged"], 3), 7_000_000_000_000
    probe = StreamProbe(tmp_path, "reference")
    adapter = ReferenceAdapter(probe, probe.attach_pool(infos(OPTIONS["paged"])[0]), time_base_ns=base)
    for _ in range(20):
        adapter.emit(traffic.step())
    probe.close()
    state = StreamState()
    for piece in iter(StreamReader(find_streams(tmp_path)[0]).poll, None):
        state.apply(np.frombuffer(piece.data, np.uint32))
    step = state.last_step
    assert step is not None and step.start_ns == base + traffic.now - STEP_NS
    audit = ReferenceAudit(traffic.scheduler, base)
    for request in traffic.live:
        picture = audit.picture(request)
        row = int(np.flatnonzero(state.requests.id == request)[0])
        assert picture is not None and picture.arrived_ns == int(state.requests.arrived[row]) >= base

"""A page of metrics from a recording: golden, converging, broken collectors, budgets."""

from __future__ import annotations

import itertools
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvmon.catalog import METRICS
from kvmon.exporter.collectors import COLLECTORS, Collector, Source
from kvmon.exporter.collectors.device import DeviceCollector
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.follow import DirectoryFollower
from kvmon.exporter.page import Page
from kvmon.exporter.source import view
from kvmon.probe import PoolInfo, StreamProbe
from tests.conftest import PrometheusBinaries
from tests.toy_engine import FakeClock, ToyEngine

NO_GPU = [make for make in COLLECTORS if make is not DeviceCollector]
GOLDEN = Path(__file__).parents[2] / "golden" / "exposition.txt"


def page_of(
    directory: Path, clock: FakeClock, collectors: Sequence[Callable[[Source], Collector]] = NO_GPU, **options: int
) -> Page:
    """The page of a directory that has been read to its end; without the GPUs that this machine may have."""
    followers = DirectoryFollower(directory, fold_dead=False, clock=clock)
    followers.catch_up()
    ticks = itertools.count()
    return Page(
        lambda: view(followers.streams, **options),
        threading.Lock(),
        clock=lambda: next(ticks) / 1024,
        collectors=collectors,
        version="0.0",
        python="3.11.0",
    )


def series(page: Page) -> dict[str, float]:
    """Every series of a page with its value."""
    lines = (line for line in page.render(False).decode().splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def names(page: Page) -> set[str]:
    """Names of the metrics on a page."""
    return {family.name for family in page.snapshot().families if family.rows}


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[ToyEngine, Path, FakeClock]:
    """A deterministic recording: one engine, a paged pool, and a pool that needs contiguity."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, "golden", clock=clock, wall=lambda: 1)
    heap = engine.probe.attach_pool(PoolInfo("heap", 64, 1 << 20, 256, layout="contiguous", contiguity="required"))
    for start in range(1, 65, 8):
        heap.alloc_run(start, 8)
    for start in range(1, 65, 16):
        heap.free_run(start, 8)
    engine.other_pools[2] = [0, *([0] * 8 + [1] * 8) * 4]
    heap.failed(None, 16, 2, 32, 0, 8, 2, 1)
    heap.claims(30, 0, 30, 0)
    engine.run(300, seconds=0.05)
    clock.advance(0.5)
    return engine, tmp_path, clock


def test_the_whole_page_is_the_golden_one(recorded: tuple[ToyEngine, Path, FakeClock]) -> None:
    """A deterministic recording gives exactly the page that was reviewed; delete it and run again to write it anew."""
    _, directory, clock = recorded
    page = page_of(directory, clock).render(False).decode()
    if not GOLDEN.exists():
        GOLDEN.write_text(page, encoding="utf-8")
        pytest.fail(f"wrote {GOLDEN.name}: look at it and commit it")
    assert page == GOLDEN.read_text(encoding="utf-8")


def test_promtool_accepts_the_golden_page(prometheus_binaries: PrometheusBinaries) -> None:
    """`promtool check metrics` finds no fault with the page."""
    done = subprocess.run(
        [prometheus_binaries.promtool, "check", "metrics"], input=GOLDEN.read_bytes(), capture_output=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_numbers_are_those_of_the_engine(recorded: tuple[ToyEngine, Path, FakeClock]) -> None:
    """Memory by state sums to the capacity, and counters are the engine's own."""
    engine, directory, clock = recorded
    found = series(page_of(directory, clock))
    labels = 'engine="golden",pool="kv",rank="0"'
    states = [value for name, value in found.items() if name.startswith("kvmon_memory_bytes") and 'pool="kv"' in name]
    assert sum(states) == engine.units * 4096 == found[f"kvmon_memory_capacity_bytes{{{labels}}}"]
    assert found[f"kvmon_evicted_units_total{{{labels}}}"] == engine.evicted
    assert found[f"kvmon_released_units_total{{{labels}}}"] == engine.released
    assert found[f"kvmon_reuse_gap_seconds_count{{{labels}}}"] == engine.revived > 0
    owned = [value for name, value in found.items() if name.startswith("kvmon_owned_memory") and 'pool="kv"' in name]
    assert sum(owned) == sum(count > 0 for count in engine.references) * 4096


def test_fragmentation_is_what_its_definition_says(recorded: tuple[ToyEngine, Path, FakeClock]) -> None:
    """Four free runs of 8 in a pool of 64: 32 free, the largest block 8, nothing lost for requests of 8."""
    _, directory, clock = recorded
    found = series(page_of(directory, clock))
    labels = 'engine="golden",pool="heap",rank="0"'
    assert found[f"kvmon_largest_free_block_bytes{{{labels}}}"] == 8 << 20
    assert found[f"kvmon_largest_free_block_tokens{{{labels}}}"] == 8 * 256
    assert found[f"kvmon_external_fragmentation_ratio{{{labels}}}"] == 0.75
    assert found[f'kvmon_lost_ratio{{{labels},size="p50"}}'] == 0
    assert found['kvmon_free_runs{engine="golden",order="2",pool="heap",rank="0"}'] == 4
    assert found[f'kvmon_allocation_failures_total{{{labels},reason="no_contiguous_run"}}'] == 1
    assert found[f"kvmon_residual_units{{{labels}}}"] == -4
    assert not any(name.startswith("kvmon_lost_ratio") and 'pool="kv"' in name for name in found)


def test_every_metric_of_the_catalogue_has_a_collector(recorded: tuple[ToyEngine, Path, FakeClock]) -> None:
    """What the catalogue promises of engines and of kvmon itself is a family of some collector, and of one alone."""
    _, directory, clock = recorded
    served = [family.name for family in page_of(directory, clock, COLLECTORS).snapshot().families]
    assert len(served) == len(set(served))
    assert {entry.name for entry in METRICS} == set(served)


def test_while_converging_what_depends_on_the_past_is_absent(tmp_path: Path) -> None:
    """A reader without the past serves what the last step and the headers say, and no state."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, audit=False, fresh=False, clock=clock)
    engine.run(50)
    page = page_of(tmp_path, clock)
    present = names(page)
    assert series(page)['kvmon_converging{engine="toy",rank="0"}'] == 1
    assert {"kvmon_engine_up", "kvmon_steps_total", "kvmon_allocated_units_total", "kvmon_requests"} <= present
    absent = {"kvmon_memory_bytes", "kvmon_largest_free_block_bytes", "kvmon_evicted_units_total", "kvmon_free_runs"}
    assert not absent & present
    engine.probe.audit_from(engine)
    engine.run(80)
    assert absent <= names(page_of(tmp_path, clock))


@pytest.mark.parametrize("fidelity", ["sampled", "counts", "cache_only"])
def test_what_an_adapter_cannot_see_is_absent(tmp_path: Path, fidelity: str) -> None:
    """Every series of an engine with less than exact fidelity is of a metric that this fidelity knows."""
    clock = FakeClock()
    ToyEngine(tmp_path, fidelity=fidelity, clock=clock).run(100)
    entries = {entry.name: entry for entry in METRICS}
    present = names(page_of(tmp_path, clock))
    assert all(fidelity in entries[name].fidelity for name in present)
    assert "kvmon_active_slots" not in present and "kvmon_engine_up" in present


def test_of_a_net_pool_only_what_is_in_use_is_told(tmp_path: Path) -> None:
    """An adapter that knows how many units are used now says nothing of what is cached, or of what came and went."""
    clock = FakeClock()
    config = {"fidelity": "counts", "adapter": "toy"}
    probe = StreamProbe(tmp_path, "net", config=config, clock=clock)
    pool = probe.attach_pool(PoolInfo("kv", 10, 4096, 16, attributes={"net": True}))
    pool.alloc_run(1, 7)
    probe.step(clock(), 1, 0, 1, 1, 1, 0)
    page = page_of(tmp_path, clock)
    memory = {name: found for name, found in series(page).items() if name.startswith("kvmon_memory_bytes")}
    assert {name.split('state="')[1][:-2]: found // 4096 for name, found in memory.items()} == {"active": 7, "free": 3}
    assert not {"kvmon_allocated_units_total", "kvmon_released_units_total"} & names(page)


def test_the_budget_of_a_rank_is_kept_and_counted(tmp_path: Path) -> None:
    """With a small budget a rank has no more series, keeps the life of the engine, and what is missing is counted."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(100)
    whole = series(page_of(tmp_path, clock))
    small = series(page_of(tmp_path, clock, series_budget=20))
    assert sum('engine="toy"' in name for name in small) == small["kvmon_series"] <= 20
    assert 'kvmon_engine_up{engine="toy",rank="0"}' in small
    assert small["kvmon_series"] + small["kvmon_series_dropped_total"] == whole["kvmon_series"]


class Broken:
    """A collector that fails after its first family."""

    name = "broken"

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[CatalogFamily]:
        """One family, then an error."""
        yield CatalogFamily("kvmon_gpu_memory_bytes")
        raise RuntimeError("the device is gone")


def test_a_broken_collector_never_blanks_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are served, success says which one failed, and the log says it once."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(10)
    followers = DirectoryFollower(tmp_path, clock=clock)
    followers.catch_up()
    page = Page(lambda: view(followers.streams), threading.Lock(), collectors=(Broken, *COLLECTORS))
    for _ in range(3):
        found = series(page)
    assert found['kvmon_collector_success{collector="broken"}'] == 0
    assert found['kvmon_collector_success{collector="memory"}'] == 1
    assert 'kvmon_engine_up{engine="toy",rank="0"}' in found
    assert len(caplog.records) == 1


def test_two_pools_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """The second pool of a name gets its number, so that no series is there twice."""
    clock = FakeClock()
    probe = StreamProbe(tmp_path, "twins", clock=clock)
    for _ in range(2):
        probe.attach_pool(PoolInfo("kv", 16, 1, 16))
    probe.tick()
    found = series(page_of(tmp_path, clock))
    assert 'kvmon_memory_capacity_bytes{engine="twins",pool="kv",rank="0"}' in found
    assert 'kvmon_memory_capacity_bytes{engine="twins",pool="kv-2",rank="0"}' in found
    probe.close()


def test_of_two_streams_of_one_rank_the_living_one_is_shown(tmp_path: Path) -> None:
    """The same engine and rank in two directories make one set of series; the hidden one is counted."""
    clock = FakeClock()
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    ToyEngine(places[0], clock=clock).close()
    living = ToyEngine(places[1], clock=clock)
    living.run(5)
    followers = DirectoryFollower(places, fold_dead=False, clock=clock)
    followers.catch_up()
    found = series(Page(lambda: view(followers.streams), threading.Lock()))
    assert found['kvmon_engine_up{engine="toy",rank="0"}'] == 1
    assert found["kvmon_streams_unreadable"] == 1

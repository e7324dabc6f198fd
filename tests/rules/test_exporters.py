"""Exporters and GPUs in trouble: each alert fires where it should, from the page of an exporter that has the trouble.

What an exporter cannot say of itself is that it is down: there `up` is what Prometheus writes for a failed scrape.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.alerts import load_thresholds, rule_groups
from kvmon.exporter.collectors.trust import TrustCollector
from kvmon.exporter.sidecar import Sidecar
from tests.conftest import PrometheusBinaries
from tests.rules.promtool import Fired, case_of, check_cases
from tests.rules.scenario_series import INTERVAL_S, Scraped, parse_page
from tests.rules.watched import joined, missed, stepping, watch
from tests.toy_engine import FakeClock, ToyEngine

pytestmark = pytest.mark.prometheus

GROUPS = rule_groups(load_thresholds())
GIB = 1 << 30


class Watched:
    """A directory with a toy engine in it, and what an exporter says about it."""

    def __init__(self, place: Path) -> None:
        self.directory = place / "recordings"
        self.directory.mkdir()
        self.clock = FakeClock()
        self.engine = ToyEngine(self.directory, clock=self.clock, units=4096)

    def scraped(self, scrapes: int = 40, **options: int) -> Scraped:
        """So many scrapes of an exporter with these options, while the engine works."""
        sidecar = Sidecar([self.directory], clock=self.clock, **options)
        try:
            return watch(sidecar, self.clock, stepping(self.engine), scrapes)
        finally:
            sidecar.stop()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """An engine that works."""
    return Watched(tmp_path)


def fires(binaries: PrometheusBinaries, place: Path, scraped: Scraped, *alerts: str, ends_with: object = None) -> str:
    """What promtool says against it that just these warnings fire."""
    case = case_of("case", scraped, at_end=ends_with)
    fired = {Fired(name, "critical" if name == "KvmonExporterDown" else "warning") for name in alerts}
    return check_cases(binaries, GROUPS, {"case": (case, fired)}, place)


def test_nothing_fires_for_an_exporter_without_trouble(
    watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """The silent case of every alert here."""
    assert fires(prometheus_binaries, tmp_path, watched.scraped()) == ""


def test_an_exporter_that_is_down(watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Critical after two minutes, over when it answers again; a restart within a minute is nothing."""
    scraped = watched.scraped(60)
    assert fires(prometheus_binaries, tmp_path, missed(scraped, 10, 11, 12)) == ""
    long = missed(scraped, *range(10, 30))
    assert fires(prometheus_binaries, tmp_path, long, "KvmonExporterDown", ends_with=[]) == ""


def test_a_target_that_never_was_an_exporter(prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """Another service of the same Prometheus that is down is not ours to tell."""
    nothing = Scraped([float(number * INTERVAL_S) for number in range(40)], [{}] * 40)
    assert fires(prometheus_binaries, tmp_path, nothing) == ""


def test_a_collector_that_fails(
    watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in each scrape; its metrics are missing, the rest of the page is there."""
    monkeypatch.setattr(TrustCollector, "collect", lambda self: iter([1 / 0]))
    assert fires(prometheus_binaries, tmp_path, watched.scraped(), "KvmonCollectorFailing") == ""


def test_a_budget_of_series_that_is_used_up(
    watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """Most of the page is left out, and that is told."""
    scraped = watched.scraped(series_budget=60)
    assert scraped.pages[-1]["kvmon_series_dropped_total"] > 0
    assert fires(prometheus_binaries, tmp_path, scraped, "KvmonSeriesDropped") == ""


def test_a_directory_that_goes_away(watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path) -> None:
    """A second directory is unmounted under the exporter, and comes back."""
    other = tmp_path / "other"
    other.mkdir()
    sidecar = Sidecar([watched.directory, other], clock=watched.clock)
    step = stepping(watched.engine)
    there = watch(sidecar, watched.clock, step, 4)
    other.rmdir()
    gone = watch(sidecar, watched.clock, step, 40)
    other.mkdir()
    back = watch(sidecar, watched.clock, step, 8)
    sidecar.stop()
    scraped = joined(there, gone, back)
    assert fires(prometheus_binaries, tmp_path, scraped, "KvmonDirectoryMissing", ends_with=[]) == ""


def test_a_recording_of_a_newer_kvmon(
    watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """One stream of two cannot be read."""
    ToyEngine(watched.directory, rank=1, clock=watched.clock).run(1)
    with (watched.directory / "toy-1" / "00000001.seg").open("r+b") as file:
        file.seek(8)
        file.write(b"\x63")
    scraped = watched.scraped()
    assert scraped.pages[-1]["kvmon_streams_unreadable"] == 1
    assert fires(prometheus_binaries, tmp_path, scraped, "KvmonStreamsUnreadable") == ""


def test_torch_that_runs_out_of_memory_and_tries_again(
    watched: Watched, prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """A retry every quarter of a minute fires, one in all does not."""

    def run(retries: int) -> Scraped:
        sidecar = Sidecar([watched.directory], clock=watched.clock)

        def between(number: int) -> None:
            said = min(number, retries)
            watched.engine.probe.device_sample(
                0, 60 * GIB, 20 * GIB, 80 * GIB, 50 * GIB, 48 * GIB, GIB, largest_free=GIB, retries=said, uuid="GPU-9"
            )
            watched.engine.run(10, INTERVAL_S / 11)

        try:
            return watch(sidecar, watched.clock, between, 30)
        finally:
            sidecar.stop()

    assert fires(prometheus_binaries, tmp_path, run(1)) == ""
    assert fires(prometheus_binaries, tmp_path, run(20), "KvmonTorchAllocationRetries") == ""


_WITH_A_DRIVER = """
import sys
from pathlib import Path
from tests.rules.test_exporters import Watched, GIB
from tests.rules.scenario_series import INTERVAL_S
from tests.rules.watched import watch
from kvmon.exporter.sidecar import Sidecar
watched, claimed = Watched(Path(sys.argv[1])), int(sys.argv[2]) * GIB
def between(number):
    watched.engine.probe.device_sample(0, 60 * GIB, 30 * GIB, 100 * GIB, claimed, claimed, uuid="GPU-1")
    watched.engine.run(10, INTERVAL_S / 11)
sidecar = Sidecar([watched.directory], clock=watched.clock)
scraped = watch(sidecar, watched.clock, between, 60)
print("\\n--\\n".join("\\n".join(f"{name} {value!r}" for name, value in page.items()) for page in scraped.pages))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a made-up `libnvidia-ml.so.1`, which the real bindings load."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is missing: run 'apt-get install gcc'")
    place = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).parents[1] / "unit" / "exporter" / "nvml_stub.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", place / "libnvidia-ml.so.1", source], check=True)
    return place


@pytest.mark.parametrize(("claimed", "alerts"), [(48, ()), (90, ("KvmonGpuOverclaimed",))])
def test_an_engine_that_claims_more_of_a_gpu_than_is_used(
    driver: Path, claimed: int, alerts: tuple[str, ...], prometheus_binaries: PrometheusBinaries, tmp_path: Path
) -> None:
    """60 GiB of the GPU are used; an engine that says it has 90 of them is told, one with 48 is not."""
    environment = {**os.environ, "NVML_STUB": "full", "LD_LIBRARY_PATH": str(driver)}
    command = [sys.executable, "-c", _WITH_A_DRIVER, str(tmp_path), str(claimed)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=root)
    pages = [parse_page(page) for page in done.stdout.split("\n--\n")]
    scraped = Scraped([float(number * INTERVAL_S) for number in range(len(pages))], pages)
    assert any(name.startswith("kvmon_gpu_overclaimed_bytes") for name in pages[-1])
    assert fires(prometheus_binaries, tmp_path, scraped, *alerts) == ""

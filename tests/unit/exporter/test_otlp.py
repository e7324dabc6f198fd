"""What is pushed over OTLP is what a scrape says, in OpenTelemetry's model; a receiver that is down harms nobody."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kvmon.catalog import METRICS
from kvmon.errors import ConfigError
from kvmon.exporter.collectors import COLLECTORS
from kvmon.exporter.otlp import Pusher, metrics_endpoint
from kvmon.exporter.sidecar import Sidecar
from tests.otlp_receiver import Receiver, metrics, otlp_receiver, resource, samples
from tests.servers import free_port
from tests.toy_engine import FakeClock, ToyEngine

NO_GPU = [make.name for make in COLLECTORS if make.name != "device"]
NOW = 2_000_000_000_000_000_000
CUMULATIVE = 2


def sidecar_of(directory: Path, clock: FakeClock, **options: Path) -> Sidecar:
    """A sidecar that has read everything."""
    sidecar = Sidecar([directory], collectors=NO_GPU, clock=clock, **options)
    sidecar.read_once()
    return sidecar


def pusher_of(sidecar: Sidecar, receiver: Receiver | None = None, wall: int = NOW) -> Pusher:
    """A pusher that is not started; without a receiver to a port that nobody listens on."""
    url = receiver.url if receiver else f"http://127.0.0.1:{free_port()}"
    return Pusher(sidecar.snapshot, url, 60, wall=lambda: wall)


def scraped(sidecar: Sidecar) -> dict[str, float]:
    """Every series of the page with its value."""
    lines = (line for line in sidecar.render(False).decode().splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def steady(series: dict[str, float]) -> dict[str, float]:
    """Without how long the collectors took, the only number that differs between two looks at engines that stand."""
    return {name: value for name, value in series.items() if not name.startswith("kvmon_collector_duration")}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that this machine has set, and a receiver that does not answer is given up at once."""
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_EXPORTER_OTLP_HEADERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")


def test_every_sample_of_a_scrape_is_pushed(tmp_path: Path) -> None:
    """Names, labels, values, buckets: two engines, a pool beside another, and the same in both."""
    clock = FakeClock()
    for rank in range(2):
        ToyEngine(tmp_path, 'odd "name"', rank=rank, seed=rank, clock=clock, wall=lambda: NOW - 10).run(300, 0.05)
    sidecar = sidecar_of(tmp_path, clock)
    with otlp_receiver() as receiver:
        assert pusher_of(sidecar, receiver).push()
    (request,) = receiver.requests
    page = scraped(sidecar)
    unescaped = {name.replace('\\"', '"'): value for name, value in page.items()}
    assert steady(samples(request)) == steady(unescaped)
    assert set(samples(request)) == set(unescaped) and len(page) > 200


def test_each_kind_is_what_opentelemetry_calls_it(tmp_path: Path) -> None:
    """Counters are monotonic cumulative sums, histograms have the catalogue's buckets, the rest are gauges."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock, wall=lambda: NOW - 10).run(300, 0.05)
    sidecar = sidecar_of(tmp_path, clock)
    with otlp_receiver() as receiver:
        pusher_of(sidecar, receiver).push()
    entries = {entry.name: entry for entry in METRICS}
    kinds = set()
    for metric in metrics(receiver.requests[0]):
        entry, data = entries[metric.name], metric.WhichOneof("data")
        kinds.add(entry.kind)
        assert data == {"counter": "sum", "histogram": "histogram"}.get(entry.kind, "gauge"), metric.name
        assert metric.description == entry.help
        points = getattr(metric, data).data_points
        assert all(point.time_unix_nano == NOW for point in points)
        if data == "sum":
            assert metric.sum.is_monotonic and metric.sum.aggregation_temporality == CUMULATIVE
        if data == "histogram":
            assert metric.histogram.aggregation_temporality == CUMULATIVE
            assert all(tuple(point.explicit_bounds) == entry.buckets for point in points)
            assert all(sum(point.bucket_counts) == point.count for point in points)
        if data != "gauge" and "engine" in entry.labels:
            assert all(point.start_time_unix_nano == NOW - 10 for point in points), metric.name
    assert kinds == {"gauge", "counter", "histogram", "info"}


# As the translators to Prometheus do (pkg/translator/prometheus of the OpenTelemetry collector, Prometheus itself): a
# unit that the name does not hold is appended, "1" of a gauge as "ratio", and annotations in braces are dropped.
SUFFIXES = {"s": "seconds", "By": "bytes"}


def test_a_receiver_that_adds_units_leaves_every_name_alone(tmp_path: Path) -> None:
    """So the same query works whichever way the numbers came."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(100, 0.05)
    with otlp_receiver() as receiver:
        pusher_of(sidecar_of(tmp_path, clock), receiver).push()
    for metric in metrics(receiver.requests[0]):
        words = metric.name.split("_")
        if metric.unit == "1":
            assert "ratio" in words, metric.name
        elif not metric.unit.startswith("{"):
            assert not metric.unit or SUFFIXES[metric.unit] in words, metric.name
        if metric.WhichOneof("data") == "sum":
            assert words[-1] == "total"


def test_numbers_count_since_the_life_of_the_engine_they_are_of(tmp_path: Path) -> None:
    """The start survives the exporter, changes with a new life of the engine, and is never after now."""
    clock, times = FakeClock(), iter(range(NOW - 1000, NOW + 10**9))

    def starts(wall: int = NOW) -> set[int]:
        sidecar = sidecar_of(tmp_path, clock)
        with otlp_receiver() as receiver:
            pusher_of(sidecar, receiver, wall).push()
        sidecar.stop()
        (steps,) = [metric for metric in metrics(receiver.requests[0]) if metric.name == "kvmon_steps_total"]
        return {point.start_time_unix_nano for point in steps.sum.data_points}

    engine = ToyEngine(tmp_path, clock=clock, wall=lambda: next(times), budget=1 << 20)
    engine.run(50)
    first = starts()
    engine.run(6000)  # the first segment, which said when it began, is gone
    assert starts() == first == {NOW - 1000}
    engine.close()
    ToyEngine(tmp_path, clock=clock, wall=lambda: next(times)).run(10)
    assert min(starts()) > NOW - 1000
    assert starts(wall=NOW - 999) == {NOW - 999}


def test_series_of_a_dead_engine_vanish(tmp_path: Path) -> None:
    """Of a rank whose process is gone only that it is down is pushed."""
    clock = FakeClock()
    engines = [ToyEngine(tmp_path, rank=rank, clock=clock) for rank in range(2)]
    for engine in engines:
        engine.run(20)
    sidecar = sidecar_of(tmp_path, clock)
    with otlp_receiver() as receiver:
        pusher = pusher_of(sidecar, receiver)
        pusher.push()
        engines[1].close()
        sidecar.read_once()
        pusher.push()
    before, after = (samples(request) for request in receiver.requests)
    assert sum('rank="1"' in name for name in before) > 50
    dead = {name: value for name, value in after.items() if 'rank="1"' in name}
    assert dead == {'kvmon_engine_up{engine="toy",rank="1"}': 0}


def test_who_pushes_and_headers_follow_the_standard_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource says kvmon, unless told otherwise; headers and compression are those of the environment."""
    sidecar = sidecar_of(tmp_path, FakeClock())
    with otlp_receiver() as receiver:
        pusher_of(sidecar, receiver).push()
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=node-7,deployment.environment.name=prod")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "kv")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        pusher_of(sidecar, receiver).push()
    plain, told = (resource(request) for request in receiver.requests)
    assert plain["service.name"] == "kvmon" and plain["service.instance.id"] == plain["host.name"]
    assert (told["service.name"], told["service.instance.id"]) == ("kv", "node-7")
    assert told["deployment.environment.name"] == "prod" and told["service.version"] == plain["service.version"]
    assert receiver.headers[1]["authorization"] == "Bearer secret"
    assert [headers.get("content-encoding") for headers in receiver.headers] == [None, "gzip"]
    assert receiver.paths == ["/v1/metrics"] * 2


def test_a_receiver_that_is_down_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line when it fails, with the reason, one when it works again, and nothing from the SDK beside it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1.4")  # the SDK tries again after about a second
    caplog.set_level(logging.DEBUG, "kvmon")
    sidecar = sidecar_of(tmp_path, FakeClock())
    port = free_port()
    pusher = Pusher(sidecar.snapshot, f"http://127.0.0.1:{port}", 60)
    assert not pusher.push() and not pusher.push()
    with otlp_receiver(port) as receiver:
        assert pusher.push() and pusher.push()
        receiver.status = 401
        assert not pusher.push() and not pusher.push()
    said = [(entry.levelname, entry.getMessage().partition(",")[0]) for entry in caplog.records if "push" in entry.name]
    assert said == [
        ("WARNING", "metrics cannot be pushed"),
        ("INFO", "metrics are pushed"),
        ("WARNING", "metrics cannot be pushed"),
    ]
    first, _, last = (entry for entry in caplog.records if "push" in entry.name)
    assert "refused" in first.reason and "401" in last.reason  # type: ignore[attr-defined]
    assert not [entry for entry in caplog.records if entry.name.startswith("opentelemetry")]


def test_a_failing_source_is_a_push_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The thread goes on whatever happens in it."""

    def broken() -> object:
        raise RuntimeError("no page")

    with otlp_receiver() as receiver:
        pusher = Pusher(broken, receiver.url, 60)  # type: ignore[arg-type]
        assert not pusher.push() and not pusher.push()
    assert [entry.reason for entry in caplog.records] == ["RuntimeError: no page"]  # type: ignore[attr-defined]


def test_it_pushes_now_and_then_and_once_at_the_end(tmp_path: Path) -> None:
    """Several pushes within the block, one more with the last numbers when it ends."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(5)
    sidecar = sidecar_of(tmp_path, clock)
    with otlp_receiver() as receiver:
        with Pusher(sidecar.snapshot, receiver.url, 0.05):
            end = time.monotonic() + 10
            while len(receiver.requests) < 3 and time.monotonic() < end:
                time.sleep(0.01)
            engine.run(7)
            sidecar.read_once()
        assert len(receiver.requests) >= 3
        assert samples(receiver.requests[-1])['kvmon_steps_total{engine="toy",rank="0"}'] == 12
        ended = len(receiver.requests)
        time.sleep(0.15)
        assert len(receiver.requests) == ended


def test_while_a_receiver_hangs_scrapes_are_answered_and_the_end_is_near(tmp_path: Path) -> None:
    """A receiver that accepts and never answers holds up the pusher alone."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(20)
    sidecar = sidecar_of(tmp_path, clock)
    held, release = threading.Event(), threading.Event()

    def hanging(data: object, **_: object) -> object:
        held.set()
        release.wait(10)
        return None

    with otlp_receiver() as receiver:
        pusher = Pusher(sidecar.snapshot, receiver.url, 0.01)
        pusher._exporter.export = hanging  # type: ignore[assignment,method-assign]
        start = time.monotonic()
        with pusher:
            assert held.wait(10)
            assert len(scraped(sidecar)) > 50
            start = time.monotonic()
        assert time.monotonic() - start < 5
        release.set()


def test_memory_is_bounded_while_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for later: hundreds of failed pushes leave the process as it was."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.05")
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(50)
    pusher = pusher_of(sidecar_of(tmp_path, clock))

    def resident_kib(pushes: int) -> int:
        for _ in range(pushes):
            assert not pusher.push()
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    before = resident_kib(60)
    assert resident_kib(240) - before < 2 << 10


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/metrics"),
        ("https://collector/", "https://collector/v1/metrics"),
        ("http://[::1]:9090/api/v1/otlp/v1/metrics", "http://[::1]:9090/api/v1/otlp/v1/metrics"),
    ],
)
def test_the_standard_path_is_added_where_none_is_given(given: str, used: str) -> None:
    """As the SDKs do with OTEL_EXPORTER_OTLP_ENDPOINT; a path of one's own is left as it is."""
    assert metrics_endpoint(given) == used


@pytest.mark.parametrize(
    "url",
    ["localhost:4318", "", "ftp://x/", "http://", "http://x:port", "http://x:99999", "http://a b/", "http://x\n/"],
)
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match="is no OTLP endpoint: give one such as"):
        metrics_endpoint(url)


def test_credentials_in_the_endpoint_are_refused_and_not_repeated() -> None:
    """They would stand in the log."""
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        metrics_endpoint("http://user:hunter2@collector/")
    assert "hunter2" not in str(caught.value)


def test_the_exporter_imports_none_of_it_unless_asked() -> None:
    """Serving and the command line leave the SDK alone."""
    code = "import sys, kvmon.cli.exporter, kvmon.exporter.sidecar; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

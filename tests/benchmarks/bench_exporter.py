"""What the exporter costs: scrapes over HTTP, processor time while engines run, memory.

Writer processes (`python -m tests.benchmarks.bench_exporter DIR RANK MORE`) fill the pools and then record a steady
rate of unit-operations; the exporter is a process of its own, scraped over HTTP as Prometheus does. A second time each
rank has MORE pools beside the one that works, so that the page is full. In turns with the pages a healthy answer is
timed, which costs next to nothing: what it takes is the machine's and the server's.
"""

from __future__ import annotations

import gzip
import http.client
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from kvmon.probe import PoolInfo, StreamProbe
from tests.benchmarks.table import Row

RANKS, UNITS = 8, 65_536
RATE = 25_000.0  # unit-operations a second, all ranks together
IDLE_SECONDS, SCRAPES = 15.0, 300
MORE_POOLS, MORE_UNITS = 8, 4096  # more than a page has room for
_SEQUENCE = 37  # units of a sequence, as in a vLLM-like mix
_PORT = 10597
_HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


def write(directory: Path, rank: int, more: int = 0, units: int = UNITS, rate: float = RATE / RANKS) -> None:
    """Fill most of a pool, then replace sequences at `rate` unit-operations a second until killed.

    `more` pools stand beside it, half full.
    """
    probe = StreamProbe(directory, "bench", rank, config={"fidelity": "exact", "adapter": "bench"})
    pool = probe.attach_pool(PoolInfo("kv", units, 2 << 20, 16))
    for number in range(more):
        other = probe.attach_pool(PoolInfo(f"more{number}", MORE_UNITS, 2 << 20, 16))
        other.alloc(list(range(1, MORE_UNITS, 2)))
    tables: dict[int, list[int]] = {}
    free = list(range(1, units + 1))
    free = free[::2] + free[1::2]
    request = 0

    def admit() -> None:
        nonlocal request
        request += 1
        table = tables[request] = [free.pop() for _ in range(_SEQUENCE)]
        probe.arrived(request, time.monotonic_ns(), _SEQUENCE * 16, limit=100)
        pool.alloc(table)
        pool.assign(request, table)
        pool.cache(table[:-1])
        probe.admitted(request)
        probe.progress(request, _SEQUENCE * 16 - 5, True)

    def step() -> None:
        probe.step(time.monotonic_ns(), 10_000_000, 512, len(tables), 10_000, len(tables), 0)

    while len(free) > units // 10:
        admit()
        step()
    print("ready", flush=True)
    interval = 3 * _SEQUENCE / rate  # handed out, cached, given back
    due = time.monotonic()
    while True:
        oldest = next(iter(tables))
        probe.finished(oldest, 1, 100)
        table = tables.pop(oldest)
        pool.unshare(table)
        free[:0] = table
        admit()
        step()
        due += interval
        time.sleep(max(0.0, due - time.monotonic()))


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def resident_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process in MB (`VmHWM`: its peak)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


def scrape(connection: http.client.HTTPConnection, path: str = "/metrics") -> tuple[float, int, bytes]:
    """Seconds, status and body of one request."""
    start = time.perf_counter()
    connection.request("GET", path, headers=_HEADERS)
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - start
    if response.getheader("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return seconds, response.status, body


def wait_until_ready(connection: http.client.HTTPConnection, seconds: float = 120) -> float:
    """How long it took."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        try:
            if scrape(connection, "/-/ready")[1] == 200:
                return time.monotonic() - start
        except OSError:
            connection.close()
        time.sleep(0.1)
    raise SystemExit("the exporter did not become ready")


@contextmanager
def running(more: int, *options: str) -> Iterator[tuple[int, http.client.HTTPConnection]]:
    """An exporter over running writers that is ready: its process and a connection to it."""
    address = f"127.0.0.1:{_PORT}"
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        command = [sys.executable, "-m", "tests.benchmarks.bench_exporter", place]
        writers = [subprocess.Popen([*command, str(rank), str(more)], stdout=subprocess.PIPE) for rank in range(RANKS)]
        for writer in writers:
            stack.callback(end, writer)
        for writer in writers:
            if writer.stdout is not None:
                writer.stdout.readline()
        command = [sys.executable, "-m", "kvmon", "exporter", "--dir", place, "--web.listen-address", address]
        exporter = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        stack.callback(end, exporter)
        connection = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", _PORT, timeout=30)))
        wait_until_ready(connection)
        yield exporter.pid, connection


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill it and wait."""
    process.kill()
    process.communicate()


class Scrapes(NamedTuple):
    """What pages and, in turns, healthy answers took, in ms in order; processor time of both; the last page."""

    pages: list[float]
    healthy: list[float]
    processor_ms: float
    page: dict[str, float]

    @property
    def series(self) -> int:
        """How many the page has."""
        return len(self.page)

    def __str__(self) -> str:
        """As in the table."""
        pages, healthy = self.pages, self.healthy
        times = f"best {pages[0]:.1f}, p50 {percentile(pages, 50):.1f}, p99 {percentile(pages, 99):.1f} ms"
        beside = f"healthy answers beside it p99 {percentile(healthy, 99):.1f} ms"
        return f"{times}, processor {self.processor_ms:.1f} ms; {beside}"


def percentile(ordered: list[float], percent: int) -> float:
    """Of values in order."""
    return ordered[len(ordered) * percent // 100]


def scrapes(pid: int, connection: http.client.HTTPConnection, idle: float) -> Scrapes:
    """Scrape as often as is measured; `idle` is the share of a core that the exporter uses without."""
    pages, healthy, body = [], [], b""
    before, start = processor_seconds(pid), time.monotonic()
    for _ in range(SCRAPES):
        healthy.append(scrape(connection, "/-/healthy")[0] * 1e3)
        seconds, status, body = scrape(connection)
        if status != 200:
            raise SystemExit(f"a scrape was answered {status}")
        pages.append(seconds * 1e3)
        time.sleep(0.05)
    used = processor_seconds(pid) - before - idle * (time.monotonic() - start)
    lines = (line.rpartition(b" ") for line in body.splitlines() if not line.startswith(b"#"))
    page = {name.decode(): float(number) for name, _, number in lines}
    return Scrapes(sorted(pages), sorted(healthy), used / SCRAPES * 1e3, page)


def rows() -> list[Row]:
    """The rows of this file."""
    with running(0) as (pid, connection):
        before, start = processor_seconds(pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = (processor_seconds(pid) - before) / (time.monotonic() - start)
        usual = scrapes(pid, connection, idle)
        memory, peak = resident_mb(pid), resident_mb(pid, "VmHWM")
    with running(MORE_POOLS, "--series-budget", "1000") as (pid, connection):
        time.sleep(2)  # until every pool has been looked at once
        full = scrapes(pid, connection, idle)
    if not full.page["kvmon_series_dropped_total"] > 0:
        raise SystemExit("the page is not full: more pools are needed")
    where = f"{RANKS} ranks x {UNITS:,} units"
    noise = (
        "eight writers and the scraper share the cores with the exporter: healthy answers show what that alone costs"
    )
    return [
        Row(
            f"exporter: scrape over HTTP, {where}, {usual.series} series, writers on the same cores",
            str(usual),
            "p99 10 ms",
            percentile(usual.pages, 99) < 10,
            noise,
        ),
        Row(
            f"exporter: scrape at the limit of a page, {where} and {MORE_POOLS} pools each, {full.series:,} series",
            str(full),
        ),
        Row(f"exporter: CPU at {RATE:,.0f} unit-operations/s", f"{idle * 100:.1f} % of a core", "2 %", idle < 0.02),
        Row("exporter: resident memory", f"{memory:.0f} MB, at most {peak:.0f} MB", "200 MB", memory < 200),
    ]


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

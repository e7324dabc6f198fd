"""What the exporter costs: scrapes over HTTP, processor time while engines run, memory.

Writer processes (`python -m tests.benchmarks.bench_exporter DIR RANK`) fill the pools and then record a steady rate of
unit-operations; the exporter is a process of its own, scraped over HTTP as Prometheus does.
"""

from __future__ import annotations

import gzip
import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvmon.probe import PoolInfo, StreamProbe
from tests.benchmarks.table import Row

RANKS, UNITS = 8, 65_536
RATE = 25_000.0  # unit-operations a second, all ranks together
IDLE_SECONDS, SCRAPES = 15.0, 300
_SEQUENCE = 37  # units of a sequence, as in a vLLM-like mix
_PORT = 10597
_HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


def write(directory: Path, rank: int, units: int = UNITS, rate: float = RATE / RANKS) -> None:
    """Fill most of a pool, then replace sequences at `rate` unit-operations a second until killed."""
    probe = StreamProbe(directory, "bench", rank, config={"fidelity": "exact", "adapter": "bench"})
    pool = probe.attach_pool(PoolInfo("kv", units, 2 << 20, 16))
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


def measure(directory: Path) -> list[Row]:
    """An exporter over running writers: processor time without scrapes, then scrapes, then memory."""
    address = f"127.0.0.1:{_PORT}"
    exporter = subprocess.Popen(
        [sys.executable, "-m", "kvmon", "exporter", "--dir", str(directory), "--web.listen-address", address],
        stderr=subprocess.DEVNULL,
    )
    connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=30)
    try:
        wait_until_ready(connection)
        before, start = processor_seconds(exporter.pid), time.monotonic()
        time.sleep(IDLE_SECONDS)
        used = (processor_seconds(exporter.pid) - before) / (time.monotonic() - start)
        times, series = [], 0
        for _ in range(SCRAPES):
            seconds, status, body = scrape(connection)
            if status != 200:
                raise SystemExit(f"a scrape was answered {status}")
            times.append(seconds * 1e3)
            series = sum(not line.startswith(b"#") for line in body.splitlines())
            time.sleep(0.05)
        memory = resident_mb(exporter.pid)
    finally:
        connection.close()
        exporter.terminate()
        exporter.wait()
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    fast = float(times[0])
    return [
        Row(
            f"exporter: scrape over HTTP, {RANKS} ranks x {UNITS:,} units, {series} series, writers on the same cores",
            f"best {fast:.1f}, p50 {p50:.1f}, p99 {p99:.1f} ms",
            "p99 10 ms",
            p99 < 10,
            "eight writers and the scraper share two cores with the exporter: the best scrape shows what a page costs",
        ),
        Row(f"exporter: CPU at {RATE:,.0f} unit-operations/s", f"{used * 100:.1f} % of a core", "2 %", used < 0.02),
        Row("exporter: resident memory", f"{memory:.0f} MB", "200 MB", memory < 200),
    ]


def rows() -> list[Row]:
    """The rows of this file."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tests.benchmarks.bench_exporter", place]
        writers = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE) for rank in range(RANKS)]
        try:
            for writer in writers:
                if writer.stdout is not None:
                    writer.stdout.readline()
            return measure(Path(place))
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))

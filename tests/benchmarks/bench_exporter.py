"""What the exporter costs: scrapes over HTTP, processor time while engines run, memory.

    python -m tests.benchmarks.bench_exporter [--ranks 8] [--units 65536] [--seconds 20] [--rate 25000]

Writer processes fill the pools and then record `--rate` unit-operations a second in all; the exporter is a process of
its own, scraped over HTTP as Prometheus does. Targets: p99 under 10 ms, under 2 % of a core, RSS under 200 MB.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kvmon.probe import PoolInfo, StreamProbe

_SEQUENCE = 37  # units of a sequence, as in a vLLM-like mix
_PORT = 10597
_HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


def write(directory: Path, rank: int, units: int, rate: float) -> None:
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


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Print the rows."""
    exporter = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "kvmon",
            "exporter",
            "--dir",
            str(directory),
            "--web.listen-address",
            f"127.0.0.1:{_PORT}",
        ]
    )
    connection = http.client.HTTPConnection("127.0.0.1", _PORT, timeout=30)
    try:
        print(f"ready after                     {wait_until_ready(connection):8.1f} s")
        before, start = processor_seconds(exporter.pid), time.monotonic()
        time.sleep(options.seconds)
        used = (processor_seconds(exporter.pid) - before) / (time.monotonic() - start)
        print(f"processor, not scraped          {used * 100:8.2f} % of a core")
        times = []
        for _ in range(200):
            seconds, status, body = scrape(connection)
            if status != 200:
                raise SystemExit(f"a scrape was answered {status}")
            times.append(seconds)
            time.sleep(0.05)
        times.sort()
        lines = [line for line in body.splitlines() if not line.startswith(b"#")]
        print(f"series                          {len(lines):8d}")
        for name, at in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            print(
                f"scrape {name}                      {times[min(int(len(times) * at), len(times) - 1)] * 1e3:8.2f} ms"
            )
        print(f"resident                        {resident_mb(exporter.pid):8.1f} MB")
        print(f"resident, peak                  {resident_mb(exporter.pid, 'VmHWM'):8.1f} MB")
    finally:
        connection.close()
        exporter.terminate()
        exporter.wait()


def main() -> None:
    """Run writers and exporter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--units", type=int, default=65_536)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=25_000.0, help="unit-operations a second, all ranks together")
    parser.add_argument("--write", nargs=2, metavar=("DIR", "RANK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(Path(options.write[0]), int(options.write[1]), options.units, options.rate / options.ranks)
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "tests.benchmarks.bench_exporter", "--units", str(options.units)]
        command += ["--ranks", str(options.ranks), "--rate", str(options.rate), "--write", place]
        writers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE) for n in range(options.ranks)]
        try:
            for writer in writers:
                if writer.stdout is not None:
                    writer.stdout.readline()
            measure(Path(place), options)
        finally:
            for writer in writers:
                writer.kill()
                writer.communicate()


if __name__ == "__main__":
    main()

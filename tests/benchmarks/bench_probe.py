"""The probe's calls, warm, with the cost of the loop taken off; and what a mix like a running vLLM's weighs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmon.events import status_word
from kvmon.probe import PageHasher, PoolInfo, RequestPicture, StreamProbe
from tests.benchmarks.table import Row

CALLS = 1000
REPEATS = 200
UNITS = list(range(100, 152))
PAGES = [bytes([number]) * 64 for number in range(35)]


class Source:
    """An engine whose audit costs nothing: 8192 units, 256 running requests of 20 units each."""

    words = tuple(status_word(number % 3, cached=number % 5 == 0) for number in range(9000))

    def status(self, pool: int, first: int, count: int) -> tuple[int, ...]:
        """A slice of words made before."""
        return self.words[first : first + count]

    def live_requests(self) -> range:
        """256 requests."""
        return range(1, 257)

    def picture(self, request: int) -> RequestPicture:
        """A running request with a scattered table."""
        return RequestPicture(2, 0, 5, 300, None, 320, True, None, [(1, 0, [request + 7 * k for k in range(20)])])


def ns(probe: StreamProbe, call: Callable[[int], object], calls: int = CALLS) -> float:
    """Best time of one call in ns, less the empty loop; the segment is written over and over."""
    numbers = range(1, calls + 1)
    probe.tick()
    start = probe.emitter.at
    loop = best = float("inf")
    for _ in range(REPEATS):
        begin = time.perf_counter_ns()
        for _ in numbers:
            pass
        loop = min(loop, time.perf_counter_ns() - begin)
    for _ in range(REPEATS):
        probe.emitter.at = probe.emitter._first = start
        begin = time.perf_counter_ns()
        for number in numbers:
            call(number)
        best = min(best, time.perf_counter_ns() - begin)
    probe.emitter.at = probe.emitter._first = start
    return (best - loop) / calls


def weight(directory: Path) -> tuple[float, float]:
    """Bytes a unit-operation of 2000 steps: 17 allocations of 37 units in all, one free of 37, attribution, audit
    of 128.
    """
    probe = StreamProbe(directory, "mix")
    pool = probe.attach_pool(PoolInfo("gpu", 8192, 65536, 16))
    probe.audit_from(Source())
    operations, written = 0, 0
    for step in range(2000):
        at, frame = probe.emitter.at, probe.emitter.frame
        unit = step * 37 % 8000 + 1
        for call in range(17):
            if call < 12:
                pool.alloc_one(unit)
                unit += 1
            else:
                pool.alloc(range(unit, unit + 5))
                unit += 5
            pool.assign(call + 1, [unit])
        probe.arrived(step + 1, step, 500)
        probe.progress(step + 1, 500, True)
        probe.finished(step + 1, 1, 100)
        pool.free(range(unit - 37, unit))
        operations += 74 + 27
        probe.step(step, 1, 2, 3, 4, 5, 6)
        assert probe.emitter.frame == frame + 1
        written += probe.emitter.at - at if probe.emitter.at > at else 0
    return written * 4 / operations, written * 4 / 2000


ONE_LIMIT = "about 35 ns are the look for a second thread, which stays: a wrong number costs more"


def rows() -> list[Row]:
    """What each call costs."""
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        probe = StreamProbe(Path(directory), "bench")
        pool = probe.attach_pool(PoolInfo("gpu", 8192, 65_536, 16))
        hasher = PageHasher(Path(directory))
        one = ns(probe, pool.alloc_one)
        bulk = ns(probe, lambda _: pool.unshare(UNITS)) / len(UNITS)
        assign = ns(probe, lambda number: pool.assign(number, (number,)))
        arrival = ns(
            probe,
            lambda number: (probe.arrived(number, 5, 500), probe.hashes(number, 16, hasher.words(PAGES, 64))),
            200,
        )
        step = ns(probe, lambda number: probe.step(number, 1, 2, 3, 4, 5, 6))
        probe.audit_from(Source())
        with_audit = ns(probe, lambda number: probe.step(number, 1, 2, 3, 4, 5, 6), 200)
        probe.close()
        each, a_step = weight(Path(directory))
        begin = time.perf_counter()
        StreamProbe(Path(directory), "attach").close()
        attach = (time.perf_counter() - begin) * 1000
    return [
        Row("probe, one unit, warm", f"{one:.0f} ns", "150 ns", one <= 150, ONE_LIMIT),
        Row("probe, one of 52 units in bulk, warm", f"{bulk:.0f} ns", "50 ns", bulk <= 50),
        Row("probe, units of one request attributed", f"{assign:.0f} ns"),
        Row("probe, arrival with 35 page hashes", f"{arrival / 1000:.1f} us"),
        Row("probe, step without audit", f"{step / 1000:.1f} us"),
        Row("probe, step with a slice of the audit", f"{with_audit / 1000:.1f} us"),
        Row("probe, a unit-operation on disk", f"{each:.1f} bytes ({a_step:.0f} a step)", "16 bytes", each <= 16),
        Row("probe, attach and close", f"{attach:.1f} ms", "5 ms", attach <= 5),
    ]

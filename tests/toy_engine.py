"""A small paged engine that records itself with the real probe, and knows the truth about itself.

Not an allocator of kvmon: a few dictionaries, so that a test can compare. `python -m tests.toy_engine DIR ENGINE
RANK` runs it in real time until it is killed, and prints `ready` when it records.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmon.events import FailureOutcome, FailureReason, FinishReason, RequestState, status_word
from kvmon.probe import PoolInfo, RequestPicture, StreamProbe

SECOND = 1_000_000_000


class FakeClock:
    """A clock that moves when it is told to; nanoseconds."""

    def __init__(self, start: int = 1_000 * SECOND) -> None:
        self.now = start

    def __call__(self) -> int:
        """The time now."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * SECOND)


class ToyEngine:
    """Serves made-up requests from a paged pool with a lazily evicting prefix cache; deterministic for a seed."""

    def __init__(
        self,
        directory: Path,
        name: str = "toy",
        rank: int = 0,
        *,
        units: int = 256,
        seed: int = 1,
        audit: bool = True,
        fidelity: str = "exact",
        budget: int = 64 << 20,
        fresh: bool = True,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        config = {"fidelity": fidelity, "adapter": "toy", "adapter_version": "1", "engine_version": "0.0"}
        self.clock = clock
        self.probe = StreamProbe(directory, name, rank, config=config, budget=budget, clock=clock, wall=wall)
        self.pool = self.probe.attach_pool(PoolInfo("kv", units, 4096, 16), fresh=fresh)
        self.units = units
        self.random = random.Random(seed)
        self.references = [0] * (units + 1)
        self.content: set[int] = set()
        self.other_pools: dict[int, list[int]] = {}  # references of pools that a test attached itself
        self.free = deque(range(1, units + 1))
        self.tables: dict[int, list[int]] = {}
        self.last_request = 0
        self.evicted = self.released = self.revived = self.failures = 0
        if audit:
            self.probe.audit_from(self)

    # -- what the audit asks --

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        units = range(first, first + count)
        if pool in self.other_pools:
            return [status_word(self.other_pools[pool][unit]) for unit in units]
        return [status_word(self.references[unit], cached=unit in self.content) for unit in units]

    def live_requests(self) -> Sequence[int]:
        """Requests that run."""
        return list(self.tables)

    def picture(self, request: int) -> RequestPicture | None:
        """A running request."""
        table = self.tables.get(request)
        if table is None:
            return None
        tokens = len(table) * 16
        return RequestPicture(
            int(RequestState.RUNNING), 0, 1, tokens, None, tokens, False, tables=[(1, 0, tuple(table))]
        )

    # -- what it does --

    def run(self, steps: int, seconds: float = 0.01) -> None:
        """So many steps; a FakeClock moves by `seconds` in each."""
        for _ in range(steps):
            self.step()
            if isinstance(self.clock, FakeClock):
                self.clock.advance(seconds)

    def step(self) -> None:
        """Finish a request now and then, admit one when there is room, close the frame."""
        if self.tables and (len(self.free) < self.units // 4 or self.random.random() < 0.3):
            self.finish(self.random.choice(list(self.tables)))
        self.admit(self.random.randint(1, 24))
        self.probe.step(self.clock(), 5_000_000, 16, len(self.tables), 100, len(self.tables), 0)

    def admit(self, need: int) -> None:
        """A request comes; its first units may be another's content."""
        self.last_request += 1
        request = self.last_request
        self.probe.arrived(request, self.clock(), need * 16, limit=8)
        if need > len(self.free):
            self.failures += 1
            reason, outcome = int(FailureReason.EXHAUSTED), int(FailureOutcome.REFUSED)
            self.pool.failed(request, need, 0, len(self.free), 0, None, reason, outcome)
            self.probe.finished(request, int(FinishReason.REFUSED), 0)
            return
        hits = self._take_content(min(need - 1, 4))
        fresh = [self.free.popleft() for _ in range(need - len(hits))]
        for unit in fresh:
            if unit in self.content:
                self.content.discard(unit)
                self.evicted += 1
            self.references[unit] = 1
        self.probe.cache_hit(request, len(hits) * 16, need * 16)
        self.pool.share(hits)
        self.pool.alloc(fresh)
        self.tables[request] = hits + fresh
        self.pool.assign(request, self.tables[request])
        new = fresh[: len(fresh) // 2]
        self.pool.cache(new)
        self.content.update(new)
        self.probe.admitted(request)
        self.probe.progress(request, need * 16, False)

    def finish(self, request: int) -> None:
        """A request ends; its units go back to the end of the free list."""
        self.probe.finished(request, int(FinishReason.STOP), 8)
        units = self.tables.pop(request)
        self.pool.unshare(units)
        for unit in units:
            self.references[unit] -= 1
            if self.references[unit] == 0:
                self.free.append(unit)
                self.released += 1

    def _take_content(self, most: int) -> list[int]:
        hits: list[int] = []
        for unit in self.random.sample(sorted(self.content), min(most, len(self.content))):
            if self.references[unit] == 0:
                self.free.remove(unit)
                self.revived += 1
            self.references[unit] += 1
            hits.append(unit)
        return hits

    def close(self) -> None:
        """End in order."""
        self.probe.close()


def main() -> None:
    """Run in real time until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("engine")
    parser.add_argument("rank", type=int)
    parser.add_argument("--units", type=int, default=256)
    parser.add_argument("--budget", type=int, default=64 << 20)
    parser.add_argument("--rate", type=float, default=50.0)
    options = parser.parse_args()
    engine = ToyEngine(options.directory, options.engine, options.rank, units=options.units, budget=options.budget)
    print("ready", flush=True)
    while True:
        engine.run(1)
        time.sleep(1 / options.rate)


if __name__ == "__main__":
    main()

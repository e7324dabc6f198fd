"""The two engines of `kvmon demo`, in a process of their own: the same traffic through a contiguous and a paged pool.

Started as `python -m kvmon.cli.demo_engine DIR SEED SECONDS SPEED`. Speaks with its parent in two lines: it writes
`ready` when everything is compiled, and begins at `go`; the end of its input ends it, so that it never outlives its
parent.

Invariant: what happens depends on the seed and on `SECONDS * SPEED` alone. The scheduler lives in simulated time;
real time only paces it, and a machine that cannot keep up takes longer. Recorded times are simulated time divided by
the speed, from the start on.
"""

from __future__ import annotations

import select
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from kvmon.adapters.reference import ReferenceAdapter, ReferenceAudit, engine_config, pool_info
from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.cli.demo_plan import (
    ARRIVALS_PER_SECOND,
    CAPACITY_TOKENS,
    CHUNK_TOKENS,
    PREFIX_TOKENS,
    TOKEN_BYTES,
    UNIT_TOKENS,
)
from kvmon.probe import StreamProbe
from kvmon.serving import Scheduler, SchedulerConfig, StepTime, Workload
from kvmon.serving import state as at
from kvmon.serving.workloads import chat_and_agents

__all__ = ["DemoEngine", "engines", "main", "run"]

_PATIENCE_NS = 2_000_000  # steps that end this much ahead of real time are not waited for
_BUDGET = 256 << 20
_REQUESTS = 4096  # one number for every usual length, so that a longer run is a continuation of a shorter one
_WARM_UP_SECONDS = 12.0  # of simulated time: long enough to meet every kernel


class DemoEngine:
    """One pool under the demo's traffic, recorded by the real probe. `start_ns` is when simulated time 0 is on the
    clock."""

    def __init__(
        self, directory: Path, name: str, allocator: AllocatorConfig, workload: Workload, speed: float, start_ns: int
    ) -> None:
        self.now_ns = 0
        self._start_ns = start_ns
        self._speed = speed
        self._workload = workload
        self._arrived = 0
        self._step_time = StepTime()
        config = SchedulerConfig(token_budget=2048, max_sequences=128)
        self.scheduler = Scheduler(allocator, config, hash_tokens=workload.hash_tokens, journal=True)
        self._probe = StreamProbe(
            directory, name, config=engine_config(allocator, config), budget=_BUDGET, clock=lambda: self.recorded_ns
        )
        pool = self._probe.attach_pool(pool_info(allocator, TOKEN_BYTES))
        self._adapter = ReferenceAdapter(
            self._probe, pool, identities=self._identities, hash_tokens=workload.hash_tokens, time_base_ns=start_ns
        )
        self._probe.audit_from(ReferenceAudit(self.scheduler, start_ns))
        self._probe.tick()

    @property
    def recorded_ns(self) -> int:
        """Simulated time as the recording has it: on the machine's monotonic clock, faster by the speed."""
        return self._start_ns + int(self.now_ns / self._speed)

    def step(self) -> None:
        """One engine step, and the arrivals before it; an idle engine goes on to the next arrival."""
        self._add_arrivals()
        if not self.scheduler.has_work:
            self.now_ns = int(self._workload.arrival_ns[self._arrived])
            self._add_arrivals()
        self.scheduler.schedule()
        tally = self.scheduler.state.tally
        duration = self._step_time.duration_ns(
            int(tally[at.PREFILL_TOKENS]), int(tally[at.DECODE_TOKENS]), int(tally[at.CONTEXT_TOKENS])
        )
        start = self.recorded_ns
        self.now_ns += duration
        self.scheduler.commit(start - self._start_ns, self.recorded_ns - start)

    def record(self) -> None:
        """Hand what the last step did to the probe."""
        self._adapter.emit(self.scheduler.drain())

    def close(self) -> None:
        """End the recording in order."""
        self._probe.close()

    def _add_arrivals(self) -> None:
        work = self._workload
        while self._arrived < len(work) and work.arrival_ns[self._arrived] <= self.now_ns:
            index = self._arrived
            self._arrived += 1
            self.scheduler.add(
                int(work.prompt_tokens[index]),
                int(work.token_limit[index]),
                intended_output=int(work.output_tokens[index]),
                class_id=int(work.class_id[index]),
                identities=self._identities(self._arrived),
                arrival_ns=int(work.arrival_ns[index] / self._speed),
            )

    def _identities(self, request: int) -> npt.NDArray[np.uint64]:
        offsets = self._workload.hash_offsets
        return self._workload.hashes[offsets[request - 1] : offsets[request]]


def engines(directory: Path, seed: int, seconds: float, speed: float, start_ns: int) -> list[DemoEngine]:
    """The two engines over the same traffic, enough of it for `seconds` at `speed`."""
    units = CAPACITY_TOKENS // UNIT_TOKENS
    requests = max(_REQUESTS, int(seconds * speed * ARRIVALS_PER_SECOND * 1.5))
    traffic = chat_and_agents(seed, requests, rate_per_s=ARRIVALS_PER_SECOND, shared_prefix_tokens=PREFIX_TOKENS)
    pools: dict[str, AllocatorConfig] = {
        "contiguous": ContiguousConfig(units, UNIT_TOKENS, chunk_tokens=CHUNK_TOKENS),
        "paged": PagedConfig(units, UNIT_TOKENS),
    }
    return [DemoEngine(directory, name, pool, traffic, speed, start_ns) for name, pool in pools.items()]


def run(directory: Path, seed: int, seconds: float, speed: float, start_ns: int, *, paced: bool = True) -> bool:
    """Serve `seconds * speed` seconds of simulated traffic; False when the parent ended it before."""
    both = engines(directory, seed, seconds, speed, start_ns)
    end = int(seconds * speed * 1e9)
    whole = True
    while True:
        engine = min(both, key=lambda one: one.now_ns)
        if engine.now_ns >= end:
            break
        engine.step()
        if paced and not _wait_until(engine.recorded_ns):
            whole = False
            break
        engine.record()
    for engine in both:
        engine.close()
    return whole


def _wait_until(recorded_ns: int) -> bool:
    """Wait for real time to come near; False when the parent has gone or wants no more."""
    ahead = recorded_ns - time.monotonic_ns()
    readable, _, _ = select.select([sys.stdin], [], [], ahead / 1e9 if ahead > _PATIENCE_NS else 0)
    return not readable


def main(arguments: list[str]) -> int:
    """The process: compile, say so, wait for `go`, run; 1 when the parent ended it before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this by closing its input
    directory, seed, seconds, speed = Path(arguments[0]), int(arguments[1]), float(arguments[2]), float(arguments[3])
    with TemporaryDirectory(prefix="kvmon-demo-") as nowhere:
        run(Path(nowhere), seed, _WARM_UP_SECONDS, 1.0, time.monotonic_ns(), paced=False)
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return 1
    return 0 if run(directory, seed, seconds, speed, time.monotonic_ns()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What watching costs a vLLM scheduler with 256 running requests; prints a JSON object.

    python -m tests.engines.vllm_cost [STEPS]

Schedulers that do the same with and without a watcher take turns, a few steps each, in an order that is drawn anew
every round; what one costs is the ratio of its time in `schedule` and `update_from_output` to that of the unwatched one
of the same round. In a replicate of its own every body of a hook is timed, a clock around each.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import kvmon
from kvmon.adapters.vllm.blocks import BlockHooks
from kvmon.adapters.vllm.geometry import pool_info
from kvmon.adapters.vllm.held import Held
from kvmon.adapters.vllm.requests import Requests
from kvmon.adapters.vllm.steps import Steps
from kvmon.adapters.vllm.waits import Waits
from kvmon.probe import Patches, PoolProbe, StreamProbe
from tests.engines.vllm_alone import Driver, make_scheduler

RUNNING, BLOCKS, ROUND, WARM = 256, 9000, 10, 300
WATCHERS = ("nothing", "pool events", "everything", "KV events over ZMQ", "nothing again")


def _scheduler(models: Path, **options: Any) -> Any:
    return make_scheduler(models, blocks=BLOCKS, max_seqs=RUNNING, budget=2048, max_model_len=2048, **options)


def _fill(driver: Driver) -> None:
    """Keep 256 requests running: prompts of a few families, as much again to generate."""
    draw = driver.random
    while len(driver.scheduler.requests) < RUNNING:
        driver.add(draw.randint(200, 800), draw.randint(100, 500), family=draw.randint(0, 40))


def _pool_events(scheduler: Any, directory: Path) -> None:
    """The hooks of blocks and a step record, and nothing else."""
    probe = StreamProbe(directory, "pool-events")
    pool = probe.attach_pool(pool_info(scheduler, net=False))
    BlockHooks(scheduler, pool, Held(scheduler, pool), lambda rid, units: None, print).install()

    def after(result: object, *args: Any, **kwargs: Any) -> None:
        probe.step(0, 0, 0, 0, 0, 0, 0)

    Patches().hook(scheduler, "update_from_output", after=after)


def ratios(steps: int, folder: Path) -> tuple[dict[str, list[float]], float]:
    """For each watcher the ratio of every round, and the unwatched scheduler's nanoseconds a step."""
    drivers: dict[str, Driver] = {}
    for number, name in enumerate(WATCHERS):
        scheduler = _scheduler(folder / "models", kv_events="zmq" if name.startswith("KV") else None, rank=number)
        if name == "pool events":
            _pool_events(scheduler, folder)
        elif name == "everything":
            kvmon.attach(scheduler, directory=folder, name="everything")
        drivers[name] = Driver(scheduler, 7)
    order, draw, found = list(WATCHERS), random.Random(1), defaultdict(list)
    unwatched = []
    for done in range(0, WARM + steps, ROUND):
        draw.shuffle(order)
        spent = {}
        for name in order:
            driver = drivers[name]
            driver.nanoseconds = 0
            for _ in range(ROUND):
                _fill(driver)
                driver.step()
            spent[name] = driver.nanoseconds
        if done >= WARM:
            unwatched.append(spent["nothing"] / ROUND)
            for name in WATCHERS[1:]:
                found[name].append(spent[name] / spent["nothing"])
    return dict(found), statistics.median(unwatched)


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and between which two values it lies in 95 of 100 cases (order statistics)."""
    ordered, count = sorted(values), len(values)
    reach = round(0.98 * count**0.5)
    middle = count // 2
    return statistics.median(ordered), ordered[max(middle - reach, 0)], ordered[min(middle + reach, count - 1)]


def clocked(steps: int, folder: Path) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Calls a step and ns a call of every body, bytes a step, and ms to attach.

    Bodies that run within another one are in its time too; `PoolProbe` and `StreamProbe.step` alone are listed beside.
    """
    spent: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def clock(owner: type, name: str) -> None:
        original, entry = getattr(owner, name), spent[f"{owner.__name__}.{name}"]

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter_ns()
            result = original(*args, **kwargs)
            entry[1] += time.perf_counter_ns() - begin
            entry[0] += 1
            return result

        setattr(owner, name, timed)

    originals = [(owner, name, getattr(owner, name)) for owner, names in _BODIES for name in names]
    for owner, name, _ in originals:
        clock(owner, name)
    scheduler = _scheduler(folder / "models")
    begin = time.perf_counter_ns()
    recording: Any = kvmon.attach(scheduler, directory=folder, name="clocked")
    attach_ms = (time.perf_counter_ns() - begin) / 1e6
    driver = Driver(scheduler, 7)
    written = 0
    for step in range(WARM + steps):
        if step == WARM:
            for entry in spent.values():
                entry[:] = [0, 0]
        before = recording.probe.emitter.at
        _fill(driver)
        driver.step()
        if step >= WARM:
            written += max(recording.probe.emitter.at - before, 0)
    recording.detach()
    for owner, name, original in originals:
        setattr(owner, name, original)
    return (
        {name: (calls / steps, ns / max(calls, 1)) for name, (calls, ns) in spent.items()},
        4 * written / steps,
        attach_ms,
    )


_BODIES: list[tuple[type, tuple[str, ...]]] = [
    (Steps, ("before_schedule", "after_schedule", "after_update")),
    (Requests, ("arrive", "end")),
    (Waits, ("_refused",)),
    (PoolProbe, ("alloc", "alloc_one", "unshare", "share", "cache")),
    (StreamProbe, ("step",)),
]


def main() -> None:
    """Measure and print."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    folder = Path(tempfile.mkdtemp())
    found, unwatched = ratios(steps, folder)
    bodies, size, attach_ms = clocked(min(steps, 500), folder)
    print(
        json.dumps(
            {
                "unwatched_us": unwatched / 1e3,
                "ratios": {name: interval(values) for name, values in found.items()},
                "bodies": bodies,
                "bytes_a_step": size,
                "attach_ms": attach_ms,
            }
        )
    )


if __name__ == "__main__":
    main()

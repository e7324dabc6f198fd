"""Random traffic through the Scheduler of whatever vLLM stands first on the path; prints a JSON object.

    PYTHONPATH=SOURCES/vllm-0.19.0 python -m tests.engines.vllm_versions 0.19.0 [SEED ...]

After every step the fold of the recording is held against the engine; see `vllm_truth`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import kvmon
from kvmon.events import FAILURE_REASONS
from kvmon.events.totals import PoolTotal, StreamTotal
from tests.engines.vllm_alone import Driver, make_scheduler
from tests.engines.vllm_truth import Followed, differences

SCENARIOS: dict[str, dict[str, Any]] = {
    "pages": {"blocks": 40},
    "no prefix cache": {"blocks": 30, "caching": False},
    "window": {"blocks": 40, "window": 40},
    "hybrid": {"blocks": 90, "hybrid": True},
    "priorities": {"blocks": 40, "policy": "priority"},
    "async": {"blocks": 40, "asynchronous": True},
    "hybrid async": {"blocks": 90, "hybrid": True, "asynchronous": True},
    "whole prompt": {"blocks": 40, "full_need": True, "watermark": 0.05},
    "late": {"blocks": 40},
}
_STEPS = 250
_LATE = 60  # steps before kvmon comes


def run(models: Path, name: str, seed: int) -> dict[str, Any]:
    """One scenario: what differed first, and the counters of both sides."""
    options = SCENARIOS[name]
    in_flight = 2 if options.get("asynchronous") else 1
    scheduler = make_scheduler(models, **options)
    directory = Path(tempfile.mkdtemp())
    before = set(vars(scheduler)), set(vars(scheduler.kv_cache_manager.block_pool))
    driver = Driver(scheduler, seed, in_flight=in_flight)
    late = _LATE if name == "late" else 0
    recording = followed = None
    preempted = 0
    found: list[str] = []
    compared = 0
    for step in range(_STEPS):
        if step == late:
            recording = kvmon.attach(scheduler, directory=directory)
            followed = Followed.of(directory)
            assert recording.grade == "exact", recording.why
            driver.queries = driver.hits = 0
            preempted = driver.preempted
        _traffic(driver, in_flight)
        driver.step()
        if recording is None or followed is None or step < late + in_flight - 1:
            continue
        state = followed.read()
        if not state.converged:  # a late start is made good by a sweep of the audit
            continue
        compared += 1
        found = differences(state, scheduler, recording, driver.in_flight())
        if found:
            found.insert(0, f"step {step}")
            break
    assert recording is not None and followed is not None
    state = followed.read()
    totals = recording.probe.emitter.totals
    pool = next(recording.probe.pools())[0].totals
    left = recording.detach()
    after = set(vars(scheduler)), set(vars(scheduler.kv_cache_manager.block_pool))
    return {
        "differences": found,
        "compared": compared,
        "faults": [str(fault) for fault in state.faults()][:5],
        "lost": recording.probe.lost,
        "preempted": totals[StreamTotal.PREEMPTED],
        "lookups": totals[StreamTotal.LOOKUP_TOKENS],
        "hits": totals[StreamTotal.HIT_TOKENS],
        "engine": {"lookups": driver.queries, "hits": driver.hits, "preempted": driver.preempted - preempted},
        "failures": {
            reason: pool[PoolTotal.FAILED_FIRST + number]
            for number, reason in enumerate(FAILURE_REASONS)
            if pool[PoolTotal.FAILED_FIRST + number]
        },
        "drift": state.drift.get(1),
        "left": left + sorted((after[0] | after[1]) - (before[0] | before[1])),
    }


def _traffic(driver: Driver, in_flight: int) -> None:
    """Arrivals that share prefixes, hang-ups, resets."""
    from vllm.v1.request import RequestStatus

    scheduler, draw = driver.scheduler, driver.random
    if draw.random() < 0.5 and len(scheduler.requests) < 20:
        driver.add(draw.randint(1, 150), draw.randint(1, 60), family=draw.randint(0, 2), priority=draw.randint(0, 2))
    if draw.random() < 0.03 and scheduler.requests:
        scheduler.finish_requests(draw.choice(sorted(scheduler.requests)), RequestStatus.FINISHED_ABORTED)
    if draw.random() < 0.02:
        running_too = draw.random() < 0.5 and in_flight == 1
        scheduler.reset_prefix_cache(reset_running_requests=running_too)


def main() -> None:
    """Every scenario with every seed."""
    import vllm

    version, seeds = sys.argv[1], [int(seed) for seed in sys.argv[2:]] or [0]
    if vllm.__version__.partition("+")[0] != version:
        sys.exit(f"vLLM {vllm.__version__} was imported from {vllm.__file__}, not {version}")
    models = Path(tempfile.mkdtemp())
    results = {f"{name}, seed {seed}": run(models, name, seed) for name in SCENARIOS for seed in seeds}
    print(json.dumps({"version": vllm.__version__, "results": results}))


if __name__ == "__main__":
    main()

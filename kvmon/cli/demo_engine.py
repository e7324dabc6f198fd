"""One engine of `kvmon demo`, in a process of its own: a real model over its pool, recorded by the real probe.

Started as `python -m kvmon.cli.demo_engine DIR SCENARIO SEED SECONDS ENGINE`, SCENARIO `-` for the demo's own traffic.
Speaks with its parent in lines. It reads `warm` and compiles what it needs, writes `ready`, then for each number of
nanoseconds that it reads serves until that time of the engine and writes a report (JSON). The end of its input ends it,
so that it never outlives its parent.

Invariant: what happens depends on the scenario and the seed alone. The engine lives in simulated time, which is what is
recorded; when that passes is the parent's affair.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvmon.adapters.attach import Recording, attach
from kvmon.cli.demo_plan import make_plan
from kvmon.engine.drive import Driver, build_driver
from kvmon.errors import KvmonError
from kvmon.serving.scenarios import Setup

__all__ = ["RecordedEngine", "main"]

_AHEAD_NS = 86_400_000_000_000


class RecordedEngine:
    """One engine under its traffic, recorded into `directory`.

    Its time begins a day ahead of the machine's clock: an engine that is slower than real time would fall behind it,
    and look as if it hung.
    """

    def __init__(self, directory: Path, name: str, setup: Setup, seed: int) -> None:
        self._driver: Driver = build_driver(setup, seed=seed, threads=1)
        base = time.monotonic_ns() + _AHEAD_NS
        clock = self._driver.clock
        self._recording: Recording = attach(
            self._driver.engine,
            directory,
            name,
            config={"engine": "kvmon", "model": self._driver.engine.model.config.name, "workload": setup.workload.name},
            time_base_ns=base,
            clock=lambda: base + clock.now_ns,
        )
        self._recording.check()

    def serve(self, until_ns: int) -> dict[str, Any]:
        """Serve until `until_ns` of the engine's time; whether it is over, and the bytes that the store has copied."""
        over = self._driver.run(until_ns)
        return {"over": over, "copied": dict(self._driver.engine.store.copied)}

    def close(self) -> None:
        """End the recording in order."""
        self._recording.close()


def _warm_up(setup: Setup, seed: int) -> None:
    """Compile by serving the first requests for a moment."""
    work = setup.workload.first(min(2, len(setup.workload)))
    with TemporaryDirectory(prefix="kvmon-demo-") as nowhere:
        engine = RecordedEngine(Path(nowhere), "warm-up", replace(setup, workload=work), seed)
        engine.serve(int(work.arrival_ns[-1]) + 100_000_000)
        engine.close()


def main(arguments: list[str]) -> int:
    """The process; 1 when the parent ended it before it began."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this by closing its input
    directory, scenario, seed, seconds, name = arguments
    setup = make_plan(None if scenario == "-" else scenario, int(seed), float(seconds)).setups[name]
    if sys.stdin.readline() != "warm\n":
        return 1
    try:
        _warm_up(setup, int(seed))
        engine = RecordedEngine(Path(directory), name, setup, int(seed))
    except KvmonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print("ready", flush=True)
    try:
        while line := sys.stdin.readline():
            print(json.dumps(engine.serve(int(line))), flush=True)
    except BrokenPipeError:
        return 1  # nobody reads any more
    finally:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

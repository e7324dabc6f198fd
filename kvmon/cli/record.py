"""Wiring of the simulator to a capture: every event of simulated runs, in frames of simulated time.

The file depends on the workloads and the configurations alone: the same runs give the same capture, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvmon.serving.scenarios import Setup
    from kvmon.simulate import Result

    Words = npt.NDArray[np.uint32]

__all__ = ["record_setup", "run_setup", "simulate_into_capture"]

_SECOND = 1_000_000_000


def run_setup(setup: Setup) -> Result:
    """Simulate without recording."""
    from kvmon.simulate import simulate

    return simulate(
        setup.workload,
        setup.allocator,
        setup.scheduler,
        setup.step_time,
        faults=setup.faults,
        linger_ns=round(setup.linger_s * _SECOND),
    )


def simulate_into_capture(
    setups: Mapping[str, Setup], out: Path, *, details: Mapping[str, Any] | None = None, force: bool = False
) -> dict[str, Result]:
    """Simulate each setup and write the capture `out` with one stream each, named as the setups are.

    `details` stands in the recorded configuration beside what the engine says of itself. Raises ConfigError for a pool
    of more units than events can name, InputError and SystemRefused as `CaptureWriter` does; then no file is left
    behind.
    """
    from kvmon.adapters.reference import second_pool_info
    from kvmon.capture import CaptureWriter, StreamFacts
    from kvmon.events.wire import MAX_UNIT

    for setup in setups.values():
        second = second_pool_info(setup.allocator, setup.scheduler, setup.token_bytes)
        most = max(setup.allocator.capacity_units, second.capacity_units if second is not None else 0)
        if most > MAX_UNIT:
            raise ConfigError(
                f"a capture numbers at most {MAX_UNIT} units and a pool has {most}: use larger blocks or a smaller pool"
            )
    with CaptureWriter(out, force=force, wall=lambda: 0) as writer:
        return {
            name: record_setup(writer.add_stream(StreamFacts(name or "simulator")).write, setup, details)
            for name, setup in setups.items()
        }


def record_setup(write: Callable[[Words], None], setup: Setup, details: Mapping[str, Any] | None = None) -> Result:
    """Simulate and give every event to `write`, as words of whole frames. `details` as above."""
    from kvmon.adapters.journal_words import JournalWords
    from kvmon.adapters.lossy import LossySink
    from kvmon.adapters.reference import engine_config, pool_info, second_pool_info
    from kvmon.simulate import simulate

    allocator, scheduler, workload = setup.allocator, setup.scheduler, setup.workload
    config = {
        "engine": "simulator",
        "workload": workload.name,
        **engine_config(allocator, scheduler),
        **(details or {}),
    }
    words = JournalWords(
        write,
        json.dumps(config, sort_keys=True, separators=(",", ":")),
        pool_info(allocator, setup.token_bytes),
        second=second_pool_info(allocator, scheduler, setup.token_bytes),
        requests=len(workload),
        offsets=workload.hash_offsets,
        hashes=workload.hashes,
        hash_tokens=workload.hash_tokens,
    )
    lossy = None
    if setup.lost_s:
        lossy = LossySink(words, *(round(moment * _SECOND) for moment in setup.lost_s))
    result = simulate(
        workload,
        allocator,
        scheduler,
        setup.step_time,
        faults=setup.faults,
        linger_ns=round(setup.linger_s * _SECOND),
        journal_sink=words if lossy is None else lossy,
    )
    if lossy is not None:
        lossy.close()
    words.close()
    return result

"""Wiring of the simulator to a capture: every event of a simulated run, in frames of simulated time.

The file depends on the workload and the configurations alone: the same run gives the same capture, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.allocators import AllocatorConfig
    from kvmon.serving.config import SchedulerConfig
    from kvmon.serving.workload import Workload
    from kvmon.simulate import Result

__all__ = ["simulate_into_capture"]


def simulate_into_capture(
    workload: Workload,
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig,
    out: Path,
    *,
    token_bytes: int = 0,
    force: bool = False,
) -> Result:
    """Simulate and write the capture `out`; `token_bytes` = bytes of one token's keys and values, 0 = not known.

    Raises ConfigError for a pool of more units than events can name, InputError and SystemRefused as `CaptureWriter`
    does; then no file is left behind.
    """
    from kvmon.adapters.journal_words import JournalWords
    from kvmon.adapters.reference import engine_config, pool_info
    from kvmon.capture import CaptureWriter, StreamFacts
    from kvmon.events.wire import MAX_UNIT
    from kvmon.simulate import simulate

    if allocator.capacity_units > MAX_UNIT:
        raise ConfigError(
            f"a capture numbers at most {MAX_UNIT} units and the pool has {allocator.capacity_units}: use larger blocks"
        )
    config = {"engine": "simulator", "workload": workload.name, **engine_config(allocator, scheduler)}
    with CaptureWriter(out, force=force, wall=lambda: 0) as writer:
        words = JournalWords(
            writer.add_stream(StreamFacts("simulator")).write,
            json.dumps(config, sort_keys=True, separators=(",", ":")),
            pool_info(allocator, token_bytes),
            requests=len(workload),
            offsets=workload.hash_offsets,
            hashes=workload.hashes,
            hash_tokens=workload.hash_tokens,
        )
        result = simulate(workload, allocator, scheduler, journal_sink=words)
        words.close()
    return result

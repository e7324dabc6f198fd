"""Simulated runs as events: every one in frames of simulated time, to a capture or to whoever follows them in memory.

Invariant: the words depend on the setup alone: the same setup gives the same words, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import engine_config, pool_info, second_pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.adapters.lossy import LossySink
from kvmon.errors import ConfigError
from kvmon.events.wire import MAX_UNIT
from kvmon.serving import Workload
from kvmon.serving.scenarios import Setup
from kvmon.simulate import RecordedSteps, Result, simulate

__all__ = ["check_units", "record_setup"]

Words = npt.NDArray[np.uint32]

_SECOND = 1_000_000_000


def check_units(setup: Setup) -> None:
    """Raise ConfigError for a pool of more units than events can name."""
    second = second_pool_info(setup.allocator, setup.scheduler, setup.token_bytes)
    most = max(setup.allocator.capacity_units, second.capacity_units if second is not None else 0)
    if most > MAX_UNIT:
        raise ConfigError(
            f"a capture numbers at most {MAX_UNIT} units and a pool has {most}: use larger blocks or a smaller pool"
        )


def record_setup(
    write: Callable[[Words], None],
    setup: Setup,
    details: Mapping[str, Any] | None = None,
    *,
    recorded: RecordedSteps | None = None,
    most_steps: int | None = None,
) -> Result:
    """Simulate and give every event to `write`, as words of whole frames that are good until the next ones come.

    `details` stands in the recorded configuration beside what the engine says of itself. `recorded` and `most_steps`
    are those of `simulate`.
    """
    allocator, scheduler, workload = setup.allocator, setup.scheduler, setup.workload
    config = {
        "engine": "simulator",
        "workload": workload.name,
        **engine_config(allocator, scheduler, setup.faults, setup.step_time),
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
        told=_told(workload),
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
        recorded=recorded,
        most_steps=most_steps,
    )
    if lossy is not None:
        lossy.close()
    words.close()
    return result


def _told(workload: Workload) -> npt.NDArray[np.int64] | None:
    """What events say of a request that only whoever made the traffic knows; None where nothing is."""
    follows, abort = workload.follows, workload.abort_ns
    if not len(follows) and not len(abort):
        return None
    told = np.full((len(workload) + 1, 3), -1, np.int64)
    told[:, 0] = 0
    if len(follows):
        told[1:, 0] = follows
        told[1:, 1] = np.where(follows > 0, workload.arrival_ns, -1)
    if len(abort):
        told[1:, 2] = np.where(abort > 0, abort, -1)
    return told

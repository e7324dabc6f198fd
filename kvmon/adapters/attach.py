"""Attaching the probe to a reference engine: its pools, its journal and its audit, through the public adapter.

    recording = attach(engine, directory, name="reference")
    ...
    recording.close()

Purpose: what a foreign engine's adapter does when it finds a scheduler, done for ours. The engine is known by what it
shows (`Observed`), so that this module needs neither torch nor the engine.

Invariant: nothing here changes the engine; what goes wrong with the recording stays in the probe and is counted there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kvmon.adapters.described import engine_config, pool_info, second_pool_info
from kvmon.adapters.reference import ReferenceAdapter, ReferenceAudit
from kvmon.errors import SystemRefused
from kvmon.probe import StreamProbe
from kvmon.recording.writer import DEFAULT_BUDGET
from kvmon.serving import Scheduler

__all__ = ["Observed", "Recording", "attach"]

Words = npt.NDArray[np.int64]


class Observed(Protocol):
    """What an engine shows of itself; bytes are those of the keys and values of one token."""

    scheduler: Scheduler
    observers: list[Callable[[Words], None]]
    hash_tokens: int

    @property
    def token_bytes(self) -> int:
        """Of the pool."""

    @property
    def window_token_bytes(self) -> int:
        """Of the window group's own pool; 0 without one."""

    def identities(self, request: int) -> npt.NDArray[np.uint64]:
        """Names of a request's full pages, as far as they are known."""


class Recording:
    """An attached probe; closing it ends the recording in order and detaches."""

    def __init__(
        self, probe: StreamProbe, adapter: ReferenceAdapter, engine: Observed, directory: Path, name: str
    ) -> None:
        self.probe = probe
        self._directory, self._name = directory, name
        self._adapter = adapter
        self._engine = engine
        engine.observers.append(adapter.emit)

    def adopt_thread(self) -> None:
        """The calling thread runs the engine from now on."""
        self.probe.adopt_thread()

    def check(self) -> None:
        """Raise SystemRefused where nothing reaches a file, with what is in the way; the probe itself never would."""
        if self.probe.writing:
            return
        why = self.probe.loss_reasons
        if "second_writer" in why:
            raise SystemRefused(f"another engine called {self._name} records there: give this one another name")
        reasons = ", ".join(why) or "no file could be made"
        raise SystemRefused(
            f"nothing can be recorded in {self._directory} ({reasons}): give one that can be written and has room"
        )

    def close(self) -> None:
        """Detach and end the recording."""
        self._engine.observers.remove(self._adapter.emit)
        self.probe.close()


def attach(
    engine: Observed,
    directory: Path,
    name: str = "reference",
    rank: int = 0,
    *,
    config: Mapping[str, Any] | None = None,
    budget: int = DEFAULT_BUDGET,
    time_base_ns: int = 0,
    clock: Callable[[], int] | None = None,
) -> Recording:
    """Record `engine` into `directory` from now on; attach before the first request.

    `config` stands in the recording beside what the adapter says of the engine. `time_base_ns` is added to the
    engine's times, so that they stand on `clock`, which is the monotonic clock where nothing else is given.
    """
    scheduler = engine.scheduler
    allocator, policy = scheduler.allocator, scheduler.config
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    described = {**engine_config(allocator, policy, scheduler.faults), **(config or {})}
    probe = StreamProbe(directory, name, rank, config=described, budget=budget, **options)
    pool = probe.attach_pool(pool_info(allocator, engine.token_bytes))
    second_info = second_pool_info(allocator, policy, engine.window_token_bytes or engine.token_bytes)
    second = None if second_info is None else probe.attach_pool(second_info)
    adapter = ReferenceAdapter(
        probe,
        pool,
        second=second,
        identities=engine.identities if engine.hash_tokens else None,
        hash_tokens=engine.hash_tokens,
        time_base_ns=time_base_ns,
    )
    probe.audit_from(ReferenceAudit(scheduler, time_base_ns))
    probe.tick()
    return Recording(probe, adapter, engine, directory, name)

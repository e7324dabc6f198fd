"""Wiring of the simulator to a capture: every event of simulated runs, in frames of simulated time.

The file depends on the workloads and the configurations alone: the same runs give the same capture, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmon.replay.simulated import check_units, record_setup

if TYPE_CHECKING:
    from kvmon.serving.scenarios import Setup
    from kvmon.simulate import Result

__all__ = ["run_setup", "simulate_into_capture"]

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
    from kvmon.capture import CaptureWriter, StreamFacts

    for setup in setups.values():
        check_units(setup)
    with CaptureWriter(out, force=force, wall=lambda: 0) as writer:
        return {
            name: record_setup(writer.add_stream(StreamFacts(name or "simulator")).write, setup, details)
            for name, setup in setups.items()
        }

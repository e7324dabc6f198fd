"""Which setups the reference engine can run: what of the simulator's catalogue it has no part for, in one line.

Invariant: a setup without a reason here is run by `drive.py` as the simulator runs it. Nothing here needs torch.
"""

from __future__ import annotations

from kvmon.serving.scenarios import Setup

__all__ = ["why_not"]


def why_not(setup: Setup) -> str | None:
    """What the engine lacks for this setup; None where it lacks nothing."""
    if setup.scheduler.lookahead_tokens:
        return "the reference engine has no draft model"
    if setup.faults.errors:
        return "the reference engine has no allocator beside its pool that could fail"
    return None

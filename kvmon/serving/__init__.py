"""Requests, continuous batching, workloads and trace readers. No torch.

Invariant: one scheduler, used step by step by an engine and to the end by the simulator.
"""

from __future__ import annotations

from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.scheduler import Plan, Scheduler
from kvmon.serving.step_time import StepTime, read_step_time, write_step_time
from kvmon.serving.workload import Workload, page_hashes

__all__ = [
    "EngineError",
    "Faults",
    "Plan",
    "Scheduler",
    "SchedulerConfig",
    "StepTime",
    "Workload",
    "page_hashes",
    "read_step_time",
    "write_step_time",
]

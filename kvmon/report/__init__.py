"""Reports for people: a serialisable model of what is known, and renderers that only draw it."""

from __future__ import annotations

from kvmon.report.collect import Liveness, Rates, stream_view
from kvmon.report.memory_map import Cell, MemoryMap, memory_map
from kvmon.report.view import DeviceView, FailureView, HolderView, PoolView, Screen, StreamView

__all__ = [
    "Cell",
    "DeviceView",
    "FailureView",
    "HolderView",
    "Liveness",
    "MemoryMap",
    "PoolView",
    "Rates",
    "Screen",
    "StreamView",
    "memory_map",
    "stream_view",
]

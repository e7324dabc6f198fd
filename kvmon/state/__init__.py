"""Fold events into the state of pools and requests; the only definitions of every number that kvmon shows."""

from __future__ import annotations

from kvmon.state.device import DeviceSample
from kvmon.state.faults import Fault, FaultKind
from kvmon.state.frames import FrameTable, ScanEnd, find_frame, scan
from kvmon.state.pool import Failure, Histogram, Marks, PoolState, Slots
from kvmon.state.said import Claims, Step, Table
from kvmon.state.stream import StreamState
from kvmon.state.survey import Survey

__all__ = [
    "Claims",
    "DeviceSample",
    "Failure",
    "Fault",
    "FaultKind",
    "FrameTable",
    "Histogram",
    "Marks",
    "PoolState",
    "ScanEnd",
    "Slots",
    "Step",
    "StreamState",
    "Survey",
    "Table",
    "find_frame",
    "scan",
]

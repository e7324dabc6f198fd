"""Alerts on the memory of GPUs beside the KV pool: what is told wrongly, and what comes before an out-of-memory error.

Never on usage: an engine takes its share of a GPU when it starts and keeps it.
"""

from __future__ import annotations

from kvmon.alerts.recording import last
from kvmon.alerts.rule import RANK, Alert, looked_up
from kvmon.alerts.thresholds import Thresholds, duration_text

__all__ = ["device_alerts"]


def device_alerts(limits: Thresholds) -> list[Alert]:
    """The alerts of this topic, for these thresholds."""
    window = limits.duration("retries_window")
    largest = looked_up("kvmon_torch_largest_free_block_bytes", "humanize1024", *RANK, "gpu", unit="B")
    return [
        Alert(
            "KvmonTorchAllocationRetries",
            "warning",
            f"increase(kvmon_torch_allocation_retries_total[{window}]) >= {limits['retries']}",
            holds=limits.duration("retries_for"),
            keep=limits.duration("keep_firing"),
            what="torch runs out of GPU memory and tries again: an out-of-memory error is near",
            summary=(
                "{{ $labels.engine }}/{{ $labels.rank }}: torch ran out of memory about {{ $value | humanize }} times"
            ),
            description=(
                "In the engine {{ $labels.engine }}/{{ $labels.rank }} torch's allocator found no room on GPU "
                f"{{{{ $labels.gpu }}}} about {{{{ $value | humanize }}}} times in the last {duration_text(window)}, "
                f"gave back what it had cached and tried again. Its largest free block is {largest}. Each time the "
                "engine stalls; without room an out-of-memory error follows, and it is not about KV memory."
            ),
            command="kvmon replay $KVMON_DIR",
        ),
        Alert(
            "KvmonGpuOverclaimed",
            "warning",
            f"{last('kvmon_gpu_overclaimed_bytes', limits)} >= {limits['overclaimed']}",
            holds=limits.duration("overclaimed_for"),
            what="engines say that they have more of a GPU than there is",
            summary="GPU {{ $labels.gpu }}: {{ $value | humanize1024 }}B more are claimed than are used",
            description=(
                "The engines on GPU {{ $labels.gpu }} of {{ $labels.instance }} say that they have "
                "{{ $value | humanize1024 }}B more than its driver counts as used. A part of kvmon_gpu_used_bytes is "
                "told wrongly: do not act on its division."
            ),
            command="kvmon doctor",
        ),
    ]

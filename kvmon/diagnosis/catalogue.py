"""Every verdict by name, in the order of their ranks."""

from __future__ import annotations

from kvmon.diagnosis.verdict import Verdict
from kvmon.diagnosis.verdicts import (
    cache_thrash,
    capacity,
    deadlock,
    double_free,
    fragmentation,
    head_of_line,
    leak,
    never_fits,
    not_kv,
    partition,
    pinned,
    pool_starved,
    preemption_storm,
    reclaim_failed,
    reservation,
    stranded,
    tail_waste,
    telemetry_untrusted,
)

__all__ = ["HEALTHY", "VERDICTS"]

HEALTHY = "healthy"
"""Nothing was found."""

_MODULES = (
    fragmentation,
    never_fits,
    pool_starved,
    partition,
    reclaim_failed,
    reservation,
    pinned,
    stranded,
    tail_waste,
    double_free,
    leak,
    deadlock,
    preemption_storm,
    not_kv,
    cache_thrash,
    head_of_line,
    capacity,
    telemetry_untrusted,
)

VERDICTS: dict[str, Verdict] = {module.VERDICT.name: module.VERDICT for module in _MODULES}
"""By name, in the order in which findings are ranked."""

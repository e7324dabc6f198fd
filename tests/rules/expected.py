"""Which alerts fire in each scenario: what was looked at and agreed, and what promtool then proves.

A row names alerts without their prefix `Kvmon`; a `!` says that it becomes critical too (`!!`: it is critical from the
start). A scenario without a row fires nothing. Invariants of the table itself are tests of their own: an incident fires
the alert of its verdict and of no other one, a twin at most what its scenario allows it.
"""

from __future__ import annotations

from kvmon.alerts import alerts_of, load_thresholds, rule_groups
from kvmon.serving.scenarios import SCENARIOS
from tests.rules.promtool import Fired

__all__ = ["NAMES", "SECONDS", "SHORTER_S", "expected"]

SECONDS = 600.0
"""Event time of each run: a window's share of it, the longest `for`, and as much again."""
SHORTER_S = {"partition": 450.0}
"""A queue that grows for all of the time takes the simulator long; its alert fires before."""

NAMES = [name for scenario in SCENARIOS.values() for name in (scenario.name, scenario.twin().name)]

_ROWS = {
    "server-failures": "Fragmentation! RequestsLost!",
    "paged-vs-standard": "Reservation!",
    "post-incident": "Fragmentation! RequestsLost!",
    "post-incident-without-reuse": "Fragmentation! RequestsLost!",
    "root-cause": "Fragmentation! RequestsLost!",
    "stabilizing": "Fragmentation! RequestsLost!",
    "multi-tenant": "Fragmentation RequestsLost",
    "choosing": "CacheThrash",
    "prefix-mixed": "TailWaste!",
    "chatbot-degradation": "CacheThrash",
    "cache-thrash": "CacheThrash",
    "tail-waste": "TailWaste!",
    "deadlock": "Deadlock!! NoProgress!!",
    "never-fits": "NeverFits! NoProgress!!",
    "pool-starved": "PoolStarved! NoProgress!!",
    "preemption-storm": "PreemptionStorm",
    "stranded": "Stranded",
    "fragmentation": "Fragmentation! RequestsLost!",
    "reservation": "Reservation!",
    "head-of-line": "HeadOfLine",
    "capacity": "Capacity!",
    "pinned": "Pinned",
    "partition": "Partition! RequestsSlowToBegin",
    "leak": "Leak PoolUnbalanced",
    "double-free": "DoubleFree!! PoolUnbalanced",
    "not-kv": "NotKv",
    "telemetry-untrusted": "TelemetryUntrusted",
    "reclaim-failed": "ReclaimFailed!",
    # Twins that are cured of their incident and have, under the same traffic, what is left: load beyond the pool, a
    # working set beyond the cache, a request that is now refused at once instead of blocking the queue.
    "paged-vs-standard-healthy": "PreemptionStorm!",
    "post-incident-healthy": "CacheThrash",
    "post-incident-without-reuse-healthy": "CacheThrash",
    "stabilizing-healthy": "Capacity",
    "choosing-healthy": "CacheThrash",
    "prefix-mixed-healthy": "Capacity!",
    "never-fits-healthy": "NeverFits RequestsLost",
    "preemption-storm-healthy": "Capacity!",
    "fragmentation-healthy": "Capacity",
    "head-of-line-healthy": "Capacity",
    "pinned-healthy": "CacheThrash",
}

_VERDICTS = {alert.name: alert.verdict for alert in alerts_of(rule_groups(load_thresholds()))}


def expected(name: str) -> set[Fired]:
    """What fires in a scenario or twin."""
    found = set()
    for word in _ROWS.get(name, "").split():
        alert = "Kvmon" + word.rstrip("!")
        severities = {0: ("warning",), 1: ("warning", "critical"), 2: ("critical",)}[word.count("!")]
        found |= {Fired(alert, severity, _VERDICTS[alert]) for severity in severities}
    return found

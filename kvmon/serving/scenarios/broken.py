"""Engines with a fault: memory that is lost, counted twice, not reclaimed, or not the problem at all."""

from __future__ import annotations

from kvmon.allocators.config import PagedConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.scenarios.traffic import at_load
from kvmon.serving.workload import Workload
from kvmon.serving.workloads import SharedPrefixes

__all__ = ["BROKEN"]

_SECOND = 1_000_000_000
_MIB = 1 << 20
_POOL = PagedConfig(2_048, 16)
_CURED = ("healthy", "capacity")


def _calm(draw: Draw, requests: int = 500, load: float = 0.45) -> Workload:
    return at_load(
        draw.traffic_seed,
        requests,
        "uniform:150-900/gamma:220,0.87",
        pool_tokens=_POOL.capacity_units * _POOL.unit_tokens,
        load=load,
        prefixes=SharedPrefixes(6, 208),
    )


def _leak(draw: Draw, cured: bool) -> Setup:
    share = draw.number("share of requests that leak", 0.3, 0.8)
    faults = Faults(seed=draw.seed, leak_share=0.0 if cured else share, claims_every_ns=_SECOND)
    return Setup(_calm(draw, 700, 0.5), _POOL, faults=faults)


def _double_free(draw: Draw, cured: bool) -> Setup:
    share = draw.number("share of requests that free twice", 0.05, 0.2)
    faults = Faults(seed=draw.seed, double_free_share=0.0 if cured else share, claims_every_ns=_SECOND)
    return Setup(_calm(draw), _POOL, faults=faults)


def _not_kv(draw: Draw, cured: bool) -> Setup:
    """384 MiB asked, 330 free, 402 reserved but unallocated: the pool is nearly empty."""
    work = _calm(draw, 200, 0.03)
    end = float(work.arrival_ns[-1])
    errors = tuple(
        EngineError(
            int(end * part),
            384 * _MIB,
            int(draw.number(f"error {i}: MiB free", 320, 340) * _MIB),
            int(draw.number(f"error {i}: MiB reserved", 390, 410) * _MIB),
        )
        for i, part in enumerate((0.3, 0.55, 0.8), start=1)
    )
    return Setup(work, _POOL, faults=Faults(errors=() if cured else errors, claims_every_ns=_SECOND))


def _telemetry(draw: Draw, cured: bool) -> Setup:
    """Even seeds: a usage gauge that counts the wrong thing; odd ones: a recorder that lost a stretch of steps."""
    work = _calm(draw, 500, 0.55)
    wrong = draw.seed % 2 == 0 and not cured
    faults = Faults(wrong_gauge=wrong, claims_every_ns=_SECOND)
    if draw.seed % 2 == 0:
        return Setup(work, _POOL, faults=faults)
    begin = float(work.arrival_ns[-1]) / 1e9 * draw.number("loss begins at this part of the run", 0.3, 0.5)
    end = begin + draw.number("seconds lost", 3.0, 6.0)
    return Setup(work, _POOL, faults=faults, lost_s=() if cured else (begin, end))


def _reclaim_failed(draw: Draw, cured: bool) -> Setup:
    """Admission looks at empty pages alone, while content that nobody uses fills the pool."""
    work = at_load(
        draw.traffic_seed,
        160,
        "uniform:150-900/gamma:220,0.87",
        pool_tokens=16_384,
        load=draw.number("load, share of the pool", 0.4, 0.5),
        prefixes=SharedPrefixes(12, 208),
    )
    pool = PagedConfig(1_024, 16, reclaim="on-demand" if cured else "idle", evict="lru" if cured else "fifo")
    return Setup(work, pool, SchedulerConfig())


BROKEN = (
    Scenario(
        "leak",
        "leak",
        "requests end and keep their last page",
        "the engine's numbers do not reach the capacity, and it grows",
        "free on every path; a restart until then",
        _leak,
        _CURED,
    ),
    Scenario(
        "double-free",
        "double_free",
        "requests end and give their last page back twice",
        "the engine has more available than there is",
        "free on one path; a restart before content is corrupted",
        _double_free,
        _CURED,
    ),
    Scenario(
        "not-kv",
        "not_kv",
        "errors of the device's allocator while the KV pool is nearly empty",
        "out of memory, and not of KV memory",
        "less memory for the pool, a buffer for fragmentation of the device's allocator",
        _not_kv,
    ),
    Scenario(
        "telemetry-untrusted",
        "telemetry_untrusted",
        "even seeds: a gauge that says 2 % at 70 % occupied; odd ones: events lost",
        "the engine's numbers and its events disagree, or events are missing",
        "repair the gauge, or the recording",
        _telemetry,
        _CURED,
    ),
    Scenario(
        "reclaim-failed",
        "reclaim_failed",
        "admission that looks at empty pages only",
        "failures with evictable blocks at hand",
        "evict on demand",
        _reclaim_failed,
        _CURED,
    ),
)

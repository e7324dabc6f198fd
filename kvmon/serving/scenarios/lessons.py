"""Contiguous pools under lengths that vary: enough is free, and no run of it is long enough.

The case studies that this project grew out of. Blocks grow by chunks of 64 tokens, units are 16 tokens, the pool has
65,536 slots; the cure is the same traffic in pages of 16.
"""

from __future__ import annotations

from kvmon.allocators.config import ContiguousConfig, PagedConfig, Quotas
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.scenarios.traffic import at_load, delayed, one_by_one
from kvmon.serving.workload import Workload
from kvmon.serving.workloads import SharedPrefixes, merge

__all__ = ["LESSONS"]

_SLOTS = 65_536
_UNIT = 16
_CHUNK = 64
#: What grows in the middle of a stream and finds no room is lost; what has not begun waits.
_ABORTING = SchedulerConfig(on_growth_failure="abort")
_CURED = ("healthy", "capacity", "preemption_storm")


def _contiguous(retained: int = 0) -> ContiguousConfig:
    return ContiguousConfig(_SLOTS // _UNIT, _UNIT, chunk_tokens=_CHUNK, retained_prefixes=retained)


def _paged(quotas: Quotas = ()) -> PagedConfig:
    return PagedConfig(_SLOTS // _UNIT, _UNIT, quotas=quotas)


def _server_failures(draw: Draw, cured: bool) -> Setup:
    short = draw.whole("which end first", 0, 1)
    rows = [(0.0, 2, 1 if i % 2 == short else 6, 6) for i in range(8)]
    rows.append((0.010, 10, 6, 6))
    refusing = SchedulerConfig(on_no_fit="refuse")
    pool = PagedConfig(8, 8) if cured else ContiguousConfig(64, 1)
    return Setup(one_by_one(rows), pool, refusing)


def _mixed(draw: Draw, agents: str, chats: str, prefixes: SharedPrefixes, share: float, load: float) -> Workload:
    """Agents and chats, of which agents take `share` of the load."""
    a = at_load(
        draw.traffic_seed,
        170,
        agents,
        pool_tokens=_SLOTS,
        load=load * share,
        prefixes=prefixes,
        class_id=2,
    )
    seconds = float(a.arrival_ns.max()) / 1e9
    b = at_load(
        draw.traffic_seed + 1,
        4000,
        chats,
        pool_tokens=_SLOTS,
        load=load * (1 - share),
        prefixes=prefixes,
        class_id=1,
    )
    kept = int((b.arrival_ns <= seconds * 1e9).sum())
    return merge(a, b.first(max(kept, 1)))


def _post_incident(draw: Draw, cured: bool) -> Setup:
    load = draw.number("load, share of the pool", 0.75, 0.80)
    prefixes = SharedPrefixes(draw.whole("prefixes", 30, 50), 600)
    work = _mixed(draw, "log-uniform:50-4000/uniform:800-1500", "lognormal:120,1/gamma:200,0.87", prefixes, 0.85, load)
    return Setup(work, _paged() if cured else _contiguous(retained=16), SchedulerConfig() if cured else _ABORTING)


def _post_incident_without_reuse(draw: Draw, cured: bool) -> Setup:
    setup = _post_incident(draw, cured)
    return setup if cured else Setup(setup.workload, _contiguous(), _ABORTING)


def _root_cause(draw: Draw, cured: bool) -> Setup:
    work = at_load(
        draw.traffic_seed,
        500,
        "uniform:20-2000/one-of:50,1500",
        pool_tokens=_SLOTS,
        load=draw.number("load, share of the pool", 0.78, 0.82),
        prefixes=SharedPrefixes(1, 220),
    )
    return Setup(work, _paged() if cured else _contiguous(), SchedulerConfig() if cured else _ABORTING)


def _stabilizing(draw: Draw, cured: bool) -> Setup:
    prefixes = SharedPrefixes(1, 250)
    load = draw.number("load, share of the pool", 0.62, 0.68)
    work = _mixed(draw, "uniform:2000-6000/uniform:200-600", "lognormal:150,1/gamma:250,0.87", prefixes, 0.6, load)
    full = SchedulerConfig(admit_by="full", token_budget=1024)
    return Setup(work, _paged() if cured else _contiguous(), full if cured else _ABORTING)


def _multi_tenant(draw: Draw, cured: bool) -> Setup:
    tenants = SharedPrefixes(draw.whole("tenants", 4, 8), 200, zipf=0.5)
    day = at_load(
        draw.traffic_seed,
        400,
        "lognormal:200,1/gamma:250,0.87",
        pool_tokens=_SLOTS,
        load=draw.number("load by day", 0.25, 0.35),
        prefixes=tenants,
        class_id=1,
    )
    dusk = float(day.arrival_ns.max()) / 1e9
    night = at_load(
        draw.traffic_seed + 1,
        1200,
        "lognormal:200,1/gamma:250,0.87",
        pool_tokens=_SLOTS,
        load=0.25,
        prefixes=tenants,
        class_id=1,
    )
    batch = at_load(
        draw.traffic_seed + 2,
        150,
        "uniform:1000-6000/uniform:400-1500",
        pool_tokens=_SLOTS,
        load=draw.number("load of the night's batch", 0.36, 0.42),
        prefixes=SharedPrefixes(1, 200),
        class_id=2,
    )
    work = merge(day, delayed(night, dusk), delayed(batch, dusk))
    if cured:
        return Setup(work, _paged(quotas=((2, 0.75),)))
    return Setup(work, _contiguous(), _ABORTING)


LESSONS = (
    Scenario(
        "server-failures",
        "fragmentation",
        "64 slots, eight sequences of 8, every second one ends, then a request of 16",
        "refused with half the memory free",
        "pages of 8",
        _server_failures,
    ),
    Scenario(
        "post-incident",
        "fragmentation",
        "prefixes of 600 of which 16 stay behind; agents 50-4,000 in, 800-1,500 out; load 75-80 %",
        "time to first token up, tokens/s flat, out of memory at a quarter free; islands of retained prefixes",
        "pages with shared prefix blocks",
        _post_incident,
        (*_CURED, "cache_thrash"),
    ),
    Scenario(
        "post-incident-without-reuse",
        "fragmentation",
        "post-incident without retained prefixes",
        "1.4 x the prefill of post-incident at the same seed, and a third of its failures at start",
        "pages with shared prefix blocks",
        _post_incident_without_reuse,
        (*_CURED, "cache_thrash"),
        draws_as="post-incident",
    ),
    Scenario(
        "root-cause",
        "fragmentation",
        "prefix of 220 and 20-2,000 in; 50 or 1,500 out; load 80 %",
        "out of memory and spikes in token latency",
        "pages first: prefix caching alone does not cure it",
        _root_cause,
        _CURED,
    ),
    Scenario(
        "stabilizing",
        "fragmentation",
        "prefix of 250; mostly short chats, some of 2,000-6,000",
        "the median is good, the 99th percentile bad when a long one arrives",
        "pages, prefix cache, chunked prefill, admission by full need",
        _stabilizing,
        _CURED,
    ),
    Scenario(
        "multi-tenant",
        "fragmentation",
        "tenants with a header of 200 each; at night a batch of long requests",
        "works in the morning, fails at night",
        "pages and a quota for the batch",
        _multi_tenant,
        (*_CURED, "partition"),
    ),
)

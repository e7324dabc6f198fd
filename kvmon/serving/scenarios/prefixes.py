"""Prefix caches that work, that thrash, and that cannot hit."""

from __future__ import annotations

from kvmon.allocators.config import PagedConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.scenarios.traffic import at_load
from kvmon.serving.workloads import ClosedLoop, OpenLoop, SharedPrefixes, Traffic, generate

__all__ = ["PREFIXES"]

_CURED = ("healthy", "capacity")


def _choosing(draw: Draw, cured: bool) -> Setup:
    """More prefixes than the pool holds beside the running requests; the cure pins the hot ones."""
    prefixes = SharedPrefixes(draw.whole("prefixes", 300, 400), 304, zipf=draw.number("popularity", 0.9, 1.1))
    work = at_load(
        draw.traffic_seed,
        900,
        "uniform:20-400/gamma:350,0.87",
        pool_tokens=16_384,
        load=draw.number("load, share of the pool", 0.65, 0.75),
        prefixes=prefixes,
    )
    return Setup(work, PagedConfig(1024, 16, pin_after_hits=2, pin_share=0.2) if cured else PagedConfig(1024, 16))


def _prefix_mixed(draw: Draw, cured: bool) -> Setup:
    """Prefixes of 200 in pages of 256: no page of them is ever full by itself."""
    work = at_load(
        draw.traffic_seed,
        700,
        "uniform:20-600/gamma:150,0.87",
        pool_tokens=65_536,
        load=draw.number("load, share of the pool", 0.85, 0.95),
        prefixes=SharedPrefixes(draw.whole("prefixes", 1, 3), 200),
    )
    return Setup(work, PagedConfig(4096, 16) if cured else PagedConfig(256, 256))


def _chatbot(draw: Draw, cured: bool) -> Setup:
    """Conversations whose histories outgrow the pool between two turns."""
    work = generate(
        Traffic(
            500,
            seed=draw.traffic_seed,
            kind="chats",
            lengths="lognormal:250,1/gamma:250,0.87",
            steps="uniform:6-12",
            arrivals=ClosedLoop(draw.whole("clients", 36, 44), 8.0),
            pause_s=draw.number("pause, s", 6.0, 10.0),
        )
    )
    return Setup(work, PagedConfig(16_384 if cured else 2_048, 16))


def _cache_thrash(draw: Draw, cured: bool) -> Setup:
    """Agents that come back to a long context; the pool was cut from 268 k to below their working set."""
    work = generate(
        Traffic(
            360,
            seed=draw.traffic_seed,
            kind="agents",
            lengths="lognormal:900,1/gamma:120,1",
            steps="uniform:12-20",
            prefixes=SharedPrefixes(4, 6_000),
            arrivals=ClosedLoop(draw.whole("agents", 12, 15), 2.0),
            pause_s=3.0,
            limit=512,
        )
    )
    return Setup(work, PagedConfig(16_768 if cured else 3_400, 16), SchedulerConfig(max_sequences=64))


def _warm_cache(draw: Draw, cured: bool) -> Setup:
    """A pool that is full of content nobody uses now: that is what a prefix cache is for."""
    work = generate(
        Traffic(
            400,
            seed=draw.traffic_seed,
            lengths="uniform:200-900/gamma:120,0.87",
            arrivals=OpenLoop(draw.number("requests a second", 1.5, 2.5)),
            prefixes=SharedPrefixes(8, 400),
        )
    )
    return Setup(work, PagedConfig(8_192 if cured else 2_048, 16))


def _tail_waste(draw: Draw, cured: bool) -> Setup:
    """Short prompts in large pages: what is short is the unfilled rest of each."""
    unit = draw.one_of("page", (256, 512))
    slots = 65_536
    # A request holds one page for about 95 steps of 12 ms.
    rate = draw.number("load, share of the pool", 1.3, 1.4) * (slots / unit) / (95 * 0.012)
    work = generate(
        Traffic(
            1500,
            seed=draw.traffic_seed,
            lengths="uniform:12-60/uniform:40-150",
            arrivals=OpenLoop(rate),
            limit=150,
        )
    )
    page = 16 if cured else unit
    return Setup(work, PagedConfig(slots // page, page), SchedulerConfig(max_sequences=1024))


PREFIXES = (
    Scenario(
        "choosing",
        "cache_thrash",
        "many prefixes of 300, mixed prompt lengths, memory pressure",
        "the hit rate collapses",
        "pin hot prefixes under a cap",
        _choosing,
        (*_CURED, "cache_thrash"),
    ),
    Scenario(
        "prefix-mixed",
        "tail_waste",
        "prefixes of 200 in pages of 256",
        "no hits, by construction: a prefix shorter than a page fills none",
        "smaller pages",
        _prefix_mixed,
        _CURED,
    ),
    Scenario(
        "chatbot-degradation",
        "cache_thrash",
        "multi-turn chats, the history grows, the pool does not hold it between turns",
        "slower each turn: the history was evicted and is prefilled again",
        "affinity, a larger pool",
        _chatbot,
        _CURED,
    ),
    Scenario(
        "cache-thrash",
        "cache_thrash",
        "agents come back to a context of which the pool holds a part",
        "half of the context is computed again, time to first token up, hardly a preemption",
        "a pool that holds the working set",
        _cache_thrash,
        _CURED,
    ),
    Scenario(
        "warm-cache",
        "healthy",
        "a prefix cache that grows until the pool is full",
        "usage near 100 %, nothing active: must not alarm",
        "nothing to avoid",
        _warm_cache,
    ),
    Scenario(
        "tail-waste",
        "tail_waste",
        "prompts of 12-60 tokens in pages of 256 or 512",
        "requests wait at a block usage of 100 % while a fraction is written",
        "smaller pages",
        _tail_waste,
        _CURED,
    ),
)

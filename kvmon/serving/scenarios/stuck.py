"""Memory that is short, promised, or in the wrong place: requests wait, some for ever."""

from __future__ import annotations

from kvmon.allocators.config import ContiguousConfig, PagedConfig
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.scenarios.scenario import Draw, Scenario, Setup
from kvmon.serving.scenarios.traffic import at_load, delayed, one_by_one
from kvmon.serving.workloads import OpenLoop, Patience, SharedPrefixes, Traffic, generate, merge

__all__ = ["STUCK"]

_LINGER_S = 60.0
_CURED = ("healthy", "capacity")


def _deadlock(draw: Draw, cured: bool) -> Setup:
    """Two prompts that take half of the pool each, so that neither has a page left for its first token."""
    pages = 2 * draw.whole("half of the pages", 240, 270) + 1
    first, second = (pages // 2 + 1) * 16, pages // 2 * 16
    rows = [(0.0, first, 60, 60), (0.0, second, 60, 60)]
    rows += [(0.5 + i, 300, 40, 40) for i in range(20)]
    parking = SchedulerConfig(token_budget=16_384, on_growth_failure="preempt" if cured else "wait")
    return Setup(one_by_one(rows), PagedConfig(pages, 16), parking, linger_s=_LINGER_S)


def _never_fits(draw: Draw, cured: bool) -> Setup:
    """A request larger than the pool at the head of the queue of an engine that does not look."""
    pages = draw.whole("pages", 4_600, 4_900)
    prompt = draw.whole("prompt", 95_000, 110_000)
    before = at_load(draw.traffic_seed, 40, "uniform:200-2000/gamma:200,0.87", pool_tokens=pages * 16, load=0.2)
    middle = float(before.arrival_ns[20]) / 1e9
    late = one_by_one([(middle, prompt, 200, 200)], class_id=3)
    looking = SchedulerConfig(on_never_fits="refuse" if cured else "wait")
    return Setup(merge(before, late), PagedConfig(pages, 16), looking, linger_s=_LINGER_S)


def _pool_starved(draw: Draw, cured: bool) -> Setup:
    """The pool of the sliding-window layers has one page of 256 while a prompt needs 384 slots of it."""
    prompt = draw.whole("prompt", 384, 700)
    rows = [(0.0, 100, 60, 60), *((1.0 + 0.5 * i, prompt, 60, 60) for i in range(10))]
    pool = PagedConfig(64, 256, prefix_cache=False, window_tokens=1024, window_pool_units=32 if cured else 1)
    return Setup(one_by_one(rows), pool, SchedulerConfig(on_never_fits="wait"), linger_s=_LINGER_S)


def _preemption_storm(draw: Draw, cured: bool) -> Setup:
    """Long prompts that are admitted in part and preempt each other in a loop."""
    pages = draw.whole("pages", 900, 1000)
    work = at_load(
        draw.traffic_seed,
        60,
        "uniform:5000-9000/uniform:400-900",
        pool_tokens=pages * 16,
        load=draw.number("load, share of the pool", 2.0, 3.0),
    )
    admitting = SchedulerConfig(token_budget=512, admit_by="full" if cured else "chunk")
    return Setup(work, PagedConfig(pages, 16, prefix_cache=cured), admitting)


def _stranded(draw: Draw, cured: bool) -> Setup:
    """Blocks of requests whose client hung up wait for a transfer that nobody will ask for."""
    work = generate(
        Traffic(
            260,
            seed=draw.traffic_seed,
            lengths="uniform:800-2500/uniform:100-300",
            arrivals=OpenLoop(draw.number("requests a second", 5.0, 6.0)),
            patience=Patience(draw.number("share that hangs up", 0.45, 0.6), 1.0),
        )
    )
    faults = Faults() if cured else Faults(seed=draw.seed, strand_share=1.0, strand_ns=480_000_000_000)
    sending = SchedulerConfig(transfer_share=1.0, transfer_ns=200_000_000)
    return Setup(work, PagedConfig(4_096, 16, prefix_cache=False), sending, faults=faults, linger_s=_LINGER_S)


def _fragmentation(draw: Draw, cured: bool) -> Setup:
    """A store that places entries of every size first fit and exactly, and has no room for the next one in its gaps."""
    work = at_load(
        draw.traffic_seed,
        900,
        "log-uniform:100-6000/uniform:100-800",
        pool_tokens=65_536,
        load=draw.number("load, share of the pool", 0.58, 0.64),
    )
    refusing = SchedulerConfig(on_no_fit="refuse", on_growth_failure="abort")
    store = PagedConfig(4_096, 16) if cured else ContiguousConfig(4_096, 16, reserve="oracle")
    return Setup(work, store, SchedulerConfig() if cured else refusing)


def _reservation(draw: Draw, cured: bool) -> Setup:
    """Blocks for the longest sequence, of which a fraction is written."""
    work = generate(
        Traffic(
            400,
            seed=draw.traffic_seed,
            lengths="sharegpt",
            arrivals=OpenLoop(draw.number("requests a second", 4.0, 5.0)),
        )
    )
    slots = 16_384
    longest = SchedulerConfig(max_model_len=2048)
    if cured:
        return Setup(work, PagedConfig(slots // 16, 16), longest)
    return Setup(work, ContiguousConfig(slots // 16, 16), longest)


def _head_of_line(draw: Draw, cured: bool) -> Setup:
    """Long requests wait at the head for nearly all of the pool; short ones behind them wait with them."""
    pages = 4_096
    base = at_load(
        draw.traffic_seed,
        500,
        "uniform:100-400/uniform:1000-2000",
        pool_tokens=pages * 16,
        load=draw.number("load, share of the pool", 0.24, 0.3),
        class_id=1,
    )
    prompt = draw.whole("long prompt", 58_000, 61_000)
    rows = [(float(base.arrival_ns[place]) / 1e9, prompt, 100, 100) for place in (120, 250, 380)]
    work = merge(base, one_by_one(rows, class_id=2))
    levels = ((2, 1),) if cured else ()
    chunks = SchedulerConfig(priorities=levels)
    return Setup(work, PagedConfig(pages, 16, prefix_cache=False), chunks)


def _capacity(draw: Draw, cured: bool) -> Setup:
    """More work than memory, well packed."""
    pages = 1_024
    work = at_load(
        draw.traffic_seed,
        400,
        "uniform:200-1200/gamma:300,0.87",
        pool_tokens=pages * 16,
        load=draw.number("load, share of the pool", 1.6, 2.0),
    )
    return Setup(work, PagedConfig(8 * pages if cured else pages, 16, prefix_cache=False), SchedulerConfig())


def _pinned(draw: Draw, cured: bool) -> Setup:
    """Pinned prefixes that hold a large part of the pool while requests wait."""
    work = at_load(
        draw.traffic_seed,
        500,
        "uniform:200-900/gamma:250,0.87",
        pool_tokens=16_384,
        load=draw.number("load, share of the pool", 0.65, 0.75),
        prefixes=SharedPrefixes(60, 400, zipf=0.3),
    )
    share = draw.number("share pinned", 0.5, 0.6)
    return Setup(work, PagedConfig(1_024, 16, pin_after_hits=1, pin_share=0.05 if cured else share))


def _partition(draw: Draw, cured: bool) -> Setup:
    """A class at its quota waits while the rest of the pool is free."""
    load = draw.number("load, share of the pool", 0.4, 0.5)
    big = at_load(draw.traffic_seed, 250, "uniform:400-1500/gamma:300,0.87", pool_tokens=32_768, load=load, class_id=2)
    small = at_load(
        draw.traffic_seed + 1, 250, "uniform:100-300/gamma:150,0.87", pool_tokens=32_768, load=0.1, class_id=1
    )
    quota = draw.number("quota, share of the pool", 0.22, 0.3)
    pool = PagedConfig(2_048, 16, prefix_cache=False, quotas=((2, 0.95 if cured else quota),))
    return Setup(merge(big, small), pool)


def _short_burst(draw: Draw, cured: bool) -> Setup:
    """A burst that has to wait for about two seconds, once."""
    calm = at_load(
        draw.traffic_seed,
        300,
        "uniform:200-800/gamma:200,0.87",
        pool_tokens=32_768,
        load=draw.number("load, share of the pool", 0.3, 0.4),
    )
    middle = float(calm.arrival_ns[150]) / 1e9
    burst = generate(
        Traffic(50, seed=draw.traffic_seed + 1, lengths="uniform:400-700/uniform:100-200", arrivals=OpenLoop(80.0))
    )
    return Setup(merge(calm, delayed(burst, middle)), PagedConfig(8_192 if cured else 2_304, 16, prefix_cache=False))


STUCK = (
    Scenario(
        "deadlock",
        "deadlock",
        "some 511 blocks of 16, two prompts of half of it each, such as 4,096 and 4,080",
        "parked halves, free 0, nothing runs, health 200",
        "preempt, or admit by full need",
        _deadlock,
        _CURED,
    ),
    Scenario(
        "never-fits",
        "never_fits",
        "a pool of some 76,000 tokens, a request of 100,000",
        "the queue behind it starves",
        "refuse what can never fit",
        _never_fits,
        ("healthy", "never_fits", "capacity"),
    ),
    Scenario(
        "pool-starved",
        "pool_starved",
        "the window layers' own pool has one page of 256, prompts need 384 slots and more",
        "waits for ever while the pool is empty",
        "a larger second pool",
        _pool_starved,
    ),
    Scenario(
        "preemption-storm",
        "preemption_storm",
        "long prompts admitted in part, preempting each other",
        "prefill tokens up, output down",
        "admission by full need",
        _preemption_storm,
        _CURED,
    ),
    Scenario(
        "stranded",
        "stranded",
        "clients hang up while another engine reads the blocks",
        "active blocks, nothing scheduled, held for 480 s",
        "a timeout on transfers",
        _stranded,
        _CURED,
    ),
    Scenario(
        "fragmentation",
        "fragmentation",
        "entries of every size in a first-fit store, as host tiers have it",
        "refused with several times the need free",
        "a paged store",
        _fragmentation,
        _CURED,
    ),
    Scenario(
        "reservation",
        "reservation",
        "ShareGPT lengths, blocks of 2,048 for each",
        "requests wait at full memory of which three quarters are never written",
        "pages, or growth by chunks",
        _reservation,
        _CURED,
    ),
    Scenario(
        "head-of-line",
        "head_of_line",
        "long requests at the head that need most of the pool, memory free, everybody waits",
        "short requests wait although they would fit",
        "a lower priority for long requests",
        _head_of_line,
        ("healthy", "capacity", "head_of_line"),
    ),
    Scenario(
        "capacity",
        "capacity",
        "load of 1.6 to 2 times the pool, in pages",
        "requests wait, almost every slot is written",
        "a larger pool or fewer requests",
        _capacity,
    ),
    Scenario(
        "pinned",
        "pinned",
        "many prefixes pinned on their first hit, half of the pool",
        "requests wait while pinned content sits idle",
        "a lower cap for pins",
        _pinned,
        (*_CURED, "cache_thrash"),
    ),
    Scenario(
        "partition",
        "partition",
        "a class with half of the load and a quarter of the pool",
        "it waits at half of the memory free",
        "a quota that fits the load",
        _partition,
        _CURED,
    ),
    Scenario(
        "short-burst",
        "healthy",
        "a burst of fifty requests in half a second",
        "some wait for about two seconds, once: must not alarm",
        "nothing to avoid",
        _short_burst,
        _CURED,
    ),
)

"""Every option of allocators, scheduler and faults, drawn at random in combinations that are allowed."""

from __future__ import annotations

from hypothesis import strategies as st

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig
from kvmon.serving import SchedulerConfig
from kvmon.serving.faults import Faults

HASH_TOKENS = 8
STEP_NS = 1000

_shares = st.sampled_from([0.01, 0.2, 0.5, 0.8, 1.0])
_quotas = st.one_of(st.just({}), st.just({}), st.dictionaries(st.integers(0, 2), _shares, min_size=1, max_size=3))


@st.composite
def paged_pools(draw: st.DrawFn) -> PagedConfig:
    """With a prefix cache and its policies, with a window group, or plain."""
    size = {
        "capacity_units": draw(st.integers(2, 40)),
        "unit_tokens": draw(st.sampled_from([1, 2, 4, 8, 16])),
        "quotas": tuple(sorted(draw(_quotas).items())),
    }
    kind = draw(st.sampled_from(["cache", "cache", "window", "plain"]))
    if kind == "plain":
        return PagedConfig(**size, prefix_cache=False)
    if kind == "window":
        return PagedConfig(
            **size,
            prefix_cache=False,
            window_tokens=draw(st.sampled_from([1, 2, 3, 5, 8, 17, 40, 200])),
            window_pool_units=draw(st.one_of(st.just(0), st.integers(1, 25))),
        )
    pins = draw(st.sampled_from([(0, 0.0), (0, 0.0), (1, 0.3), (1, 1.0), (2, 0.5), (2, 0.01)]))
    return PagedConfig(
        **size,
        evict=draw(st.sampled_from(["lru", "lfu", "fifo"])),
        reclaim=draw(st.sampled_from(["on-demand", "on-demand", "idle"])),
        pin_after_hits=pins[0],
        pin_share=pins[1],
    )


@st.composite
def contiguous_pools(draw: st.DrawFn) -> ContiguousConfig:
    """Every placement and reservation, with compaction or retained prefixes or neither."""
    reserve = draw(st.sampled_from(["max", "pow2", "oracle", "chunk", "chunk"]))
    placement = draw(st.sampled_from(["first-fit", "best-fit", "buddy"]))
    extra = draw(st.sampled_from(["none", "compaction", "retained"])) if placement != "buddy" else "none"
    return ContiguousConfig(
        capacity_units=draw(st.integers(8, 120)),
        unit_tokens=draw(st.sampled_from([1, 4])),
        chunk_tokens=draw(st.sampled_from([1, 4, 7])) if reserve == "chunk" else None,
        reserve=reserve,
        placement=placement,
        compaction=extra == "compaction",
        retained_prefixes=draw(st.integers(1, 3)) if extra == "retained" else 0,
        quotas=tuple(sorted(draw(_quotas).items())),
    )


@st.composite
def schedulers(draw: st.DrawFn, allocator: AllocatorConfig) -> SchedulerConfig:
    """Every policy that means something for this pool."""
    paged = isinstance(allocator, PagedConfig)
    swap = draw(st.booleans()) and not (isinstance(allocator, PagedConfig) and allocator.window_pool_units)
    drafts = draw(st.sampled_from([0, 0, 1, 3, 9]))
    transfers = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])) if paged else 0.0
    levels = draw(st.one_of(st.just({}), st.dictionaries(st.integers(0, 2), st.integers(-1, 2), min_size=1)))
    return SchedulerConfig(
        token_budget=draw(st.sampled_from([3, 8, 32, 200])),
        max_sequences=draw(st.integers(1, 6)),
        chunked_prefill=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.2])),
        admit_by=draw(st.sampled_from(["prompt", "chunk", "full"])),
        on_no_fit=draw(st.sampled_from(["wait", "wait", "wait", "refuse"])),
        on_never_fits=draw(st.sampled_from(["refuse", "refuse", "wait"])),
        on_growth_failure=draw(st.sampled_from(["preempt", "preempt", "preempt", "wait", "abort"])),
        max_model_len=draw(st.sampled_from([None, None, 60])),
        priorities=tuple(sorted(levels.items())),
        preemption="swap" if swap else "recompute",
        host_tokens=draw(st.sampled_from([1, 3, 6, 12])) * 16 if swap else 0,
        lookahead_tokens=drafts,
        acceptance=draw(st.sampled_from([0.0, 0.6, 1.0])) if drafts else 0.0,
        transfer_share=transfers,
        transfer_ns=draw(st.sampled_from([1, 3 * STEP_NS, 20 * STEP_NS])) if transfers else 0,
    )


@st.composite
def faults(draw: st.DrawFn, allocator: AllocatorConfig) -> Faults:
    """None mostly; else everything that can strike this pool."""
    claims = draw(st.sampled_from([0, 1, 3 * STEP_NS]))
    if draw(st.integers(0, 2)) or not isinstance(allocator, PagedConfig):
        return Faults(claims_every_ns=claims)
    share = st.sampled_from([0.0, 0.3, 1.0])
    return Faults(
        seed=draw(st.integers(0, 9)),
        leak_share=draw(share),
        double_free_share=draw(share),
        strand_share=draw(share),
        strand_ns=draw(st.sampled_from([0, 30 * STEP_NS])),
        wrong_gauge=draw(st.booleans()) and claims > 0,
        claims_every_ns=claims,
        from_ns=draw(st.sampled_from([0, 10 * STEP_NS])),
    )


@st.composite
def option_sets(
    draw: st.DrawFn, pools: st.SearchStrategy[AllocatorConfig]
) -> tuple[AllocatorConfig, SchedulerConfig, Faults]:
    """A pool, a scheduler over it, and what goes wrong."""
    allocator = draw(pools)
    return allocator, draw(schedulers(allocator)), draw(faults(allocator))

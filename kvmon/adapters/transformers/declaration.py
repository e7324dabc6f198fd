"""What the adapter of transformers sees, and by which hook; nothing here needs transformers."""

from __future__ import annotations

from kvmon.adapters.base import Declaration, Sight

__all__ = ["DECLARATION", "HOME"]

HOME = "transformers.generation.continuous_batching"
"""The package that holds everything that is watched."""

DECLARATION = Declaration(
    name="transformers",
    title="transformers",
    distributions=("transformers",),
    module="transformers",
    first=(5, 20),
    last=(5, 24),
    tested=("5.20.0", "5.22.2", "5.23.0", "5.24.0"),
    attaches="a ContinuousBatchingManager (or its ContinuousBatchProcessor) of transformers",
    sees={
        "allocations": Sight("exact", "CachePool.get_free_blocks"),
        "frees": Sight("exact", "CacheAllocator.free_blocks"),
        "sharing": Sight("exact", "search_prefix_match, prepare_fork_request, mark_complete_blocks"),
        "cache": Sight("exact", "BlockLedger.register_new_hash"),
        "evictions": Sight("exact", "BlockLedger.evict_cached_blocks, and what an offloaded request leaves uncached"),
        "resets": Sight("exact", "BlockLedger.reset"),
        "owners": Sight("exact", "the block tables, at each call that changes them"),
        "deferred": Sight("absent", "the engine has no such state: copies to the host are ordered by its stream"),
        "arrivals": Sight("exact", "Scheduler.add_waiting_request; forks by prepare_fork_request"),
        "page names": Sight("exact", "prompts, up to 64 pages a step; what is generated is not named"),
        "hits": Sight("exact", "PagedAttentionCache.search_prefix_match, told at the admission"),
        "failures": Sight("exact", "PagedAttentionCache.can_store_request_tokens, and the safety margin"),
        "preemptions": Sight("exact", "OffloadingManager.offload_requests"),
        "endings": Sight("exact", "Scheduler.finish_request, cancellations, the end of the loop"),
        "tokens": Sight("exact", "the batches; slots of a sliding window's ring buffer to a page"),
        "steps": Sight("exact", "prepare_next_batch to update_batch, on the host's clock"),
        "claims": Sight("exact", "the pool's free blocks, the ledgers and the tables, once a second"),
        "audit": Sight("exact", "pool, ledgers and tables; which group a full sector belongs to is remembered"),
        "geometry": Sight("exact", "sectors, blocks and pages; tensor-parallel shards as an attribute"),
        "offload": Sight("exact", "the CPU swap pool, as a second pool"),
    },
    not_run={
        "asynchronous batching": "needs CUDA; its order of calls is tested on a CPU, its streams are not",
        "tensor parallelism": "needs several devices; only the driver of a group records",
        "the CPU swap pool": "pins memory, which needs a GPU; its bookkeeping is tested on a CPU without pinning",
    },
)

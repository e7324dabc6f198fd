"""What an engine has to look like for its hooks to be right: names and parameters, looked at before it is patched.

Invariant: nothing here changes the engine or imports it. What does not look as it did when the hooks were written is
named, and then not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmon.adapters.shapes import absent, can_patch, is_a, parameters
from kvmon.adapters.transformers.declaration import HOME

__all__ = ["is_manager", "is_processor", "missing_for_counts", "missing_for_units", "missing_in_manager"]

_MANAGER = ("_create_batch_processor",)
_PROCESSOR = ("cache", "scheduler", "offloading_manager", "prepare_next_batch", "update_batch", "fail_all_requests")
_SCHEDULER = ("active_requests", "waiting_requests", "schedule_batch")
_CACHE = ("pool", "cache_allocators", "bytes_per_sector", "num_sectors")
_ALLOCATOR = ("index", "bytes_per_block", "bytes_per_page", "blocks_per_sector", "tokens_per_page")
_POOL = ("free_sectors", "num_reserved_sectors", "count_free_blocks")

# Beyond, for units: where it is -> (name, the parameters that a hook reads, in their order).
_CALLS = {
    "cache": (
        ("can_store_request_tokens", ("state", "request_len", "dry_run")),
        ("search_prefix_match", ("request_id", "prompt_ids")),
        ("prepare_fork_request", ("src_state", "dst_req_ids")),
    ),
    "cache.pool": (
        ("get_free_blocks", ("index", "num_blocks")),
        ("allocate_sector", ("index",)),
        ("reset", ()),
    ),
    "allocator": (
        ("free_blocks", ("request_id",)),
        ("mark_complete_blocks", ("request_id",)),
        ("needs_new_blocks", ("request_id", "past_length", "query_length")),
    ),
    "ledger": (("register_new_hash", ("block_id", "block_hash")), ("evict_cached_blocks", ()), ("reset", ())),
    "scheduler": (
        ("add_waiting_request", ("state",)),
        ("finish_request", ("request_id",)),
        ("clear_cancelled_requests", ()),
        ("reset", ()),
    ),
    "offloading_manager": (("offload_requests", ()), ("restore_scheduled_requests", ("requests_in_batch",))),
}
_EXACT = ("can_store_request_tokens", "get_free_blocks")  # what stands around these takes no other arguments
_HAS = {
    "cache.pool": ("_free_blocks",),
    "allocator": ("block_table",),
    "ledger": ("shared_ref_counts", "block_to_hash", "cached_blocks"),
    "scheduler": ("waiting_requests_order", "max_requests_per_batch", "block_new_requests"),
    "offloading_manager": ("_cpu_pool", "_request_id_to_cpu_blocks"),
    "cache": ("max_batch_tokens",),
}


def is_manager(engine: object) -> bool:
    """Whether this is a manager of continuous batching; transformers is not imported."""
    return is_a(engine, "ContinuousBatchingManager", HOME)


def is_processor(engine: object) -> bool:
    """Whether this is what a manager runs."""
    return is_a(engine, "ContinuousBatchProcessor", HOME)


def missing_in_manager(manager: Any) -> list[str]:
    """What it takes to find a manager's processor, as far as it is not there."""
    return [f"ContinuousBatchingManager.{name}" for name in _MANAGER if not callable(getattr(manager, name, None))]


def missing_for_counts(processor: Any) -> list[str]:
    """What no recording at all can do without, as far as it is not there."""
    missing = list(absent("ContinuousBatchProcessor", processor, _PROCESSOR))
    if missing:
        return missing
    cache, scheduler = processor.cache, processor.scheduler
    missing += [*absent("Scheduler", scheduler, _SCHEDULER), *absent("PagedAttentionCache", cache, _CACHE)]
    if missing:
        return missing
    missing += absent("CachePool", cache.pool, _POOL)
    if not isinstance(cache.cache_allocators, dict) or not cache.cache_allocators:
        return [*missing, "PagedAttentionCache.cache_allocators by name"]
    for allocator in cache.cache_allocators.values():
        missing += absent(type(allocator).__name__, allocator, _ALLOCATOR)
    return missing


def missing_for_units(processor: Any) -> list[str]:
    """What a recording of units needs beyond, as far as it is not there."""
    allocators = list(processor.cache.cache_allocators.values())
    places: list[tuple[str, Any]] = [
        ("cache", processor.cache),
        ("cache.pool", processor.cache.pool),
        ("scheduler", processor.scheduler),
        ("offloading_manager", processor.offloading_manager),
        *(("allocator", allocator) for allocator in allocators),
    ]
    missing: list[str] = []
    for allocator in allocators:
        if hasattr(allocator, "ledger"):
            places.append(("ledger", allocator.ledger))
        else:
            missing.append(f"{type(allocator).__name__}.ledger")
    for where, owner in places:
        missing += absent(type(owner).__name__, owner, _HAS.get(where, ()))
        missing += _other_calls(owner, _CALLS[where])
        if not can_patch(owner):
            missing.append(f"{type(owner).__name__} without attributes of its own")
    if not missing and any(not hasattr(tree, "trees") for tree in processor.cache.pool._free_blocks):
        missing.append("CachePool._free_blocks as trees")
    return list(dict.fromkeys(missing))


def _other_calls(owner: Any, calls: tuple[tuple[str, tuple[str, ...]], ...]) -> Iterator[str]:
    for name, wanted in calls:
        found = parameters(owner, name)
        if found is None or (found if name in _EXACT else found[: len(wanted)]) != wanted:
            yield f"{type(owner).__name__}.{name}({', '.join(wanted)})"

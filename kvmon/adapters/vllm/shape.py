"""What a vLLM scheduler has to look like for its hooks to be right: names, signatures, the null block.

Invariant: looked at before anything is patched, changes nothing and imports nothing of vLLM. What does not look as it
was when the hooks were written is named, and then not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmon.adapters.shapes import absent, can_patch, is_a, parameters

__all__ = ["SCHEDULER_MODULE", "is_scheduler", "missing_in_pool", "missing_in_scheduler"]

SCHEDULER_MODULE = "vllm.v1.core.sched.scheduler"
_SCHEDULER = (
    "running", "waiting", "requests", "kv_cache_manager", "kv_cache_config", "cache_config", "parallel_config",
    "scheduler_config", "max_model_len", "schedule", "update_from_output", "add_request", "_free_request",
    "_preempt_request", "get_request_counts",
)  # fmt: skip
_MANAGER = ("block_pool", "coordinator", "allocate_slots", "enable_caching")
_POOL = (
    "blocks", "null_block", "free_block_queue", "num_gpu_blocks", "get_new_blocks", "touch", "free_blocks",
    "cache_full_blocks", "reset_prefix_cache", "get_num_free_blocks", "get_usage",
)  # fmt: skip
_BLOCK = ("block_id", "ref_cnt", "_block_hash", "next_free_block")
_PARAMETERS = {
    "get_new_blocks": ("num_blocks",),
    "touch": ("blocks",),
    "free_blocks": ("ordered_blocks",),
    "reset_prefix_cache": (),
}


def is_scheduler(engine: object) -> bool:
    """Whether this is a scheduler of vLLM, or of a class derived from it; vLLM is not imported."""
    return is_a(engine, "Scheduler", SCHEDULER_MODULE)


def missing_in_scheduler(scheduler: Any) -> list[str]:
    """What no recording at all can do without, as far as it is not there."""
    missing = list(absent("Scheduler", scheduler, _SCHEDULER))
    if missing:
        return missing
    manager = scheduler.kv_cache_manager
    missing = list(absent("KVCacheManager", manager, _MANAGER))
    if missing:
        return missing
    missing += absent("KVCacheCoordinator", manager.coordinator, ("get_num_blocks_to_allocate",))
    missing += absent("BlockPool", manager.block_pool, ("num_gpu_blocks", "get_num_free_blocks"))
    return missing + [
        f"{type(one).__name__} with attributes of its own" for one in (scheduler, manager) if not can_patch(one)
    ]


def missing_in_pool(scheduler: Any) -> list[str]:
    """What an exact recording of units needs beyond, as far as it is not there."""
    return list(_of_pool(scheduler.kv_cache_manager))


def _of_pool(manager: Any) -> Iterator[str]:
    pool = manager.block_pool
    missing = list(absent("BlockPool", pool, _POOL))
    if not missing and not can_patch(pool):
        missing = [f"{type(pool).__name__} with attributes of its own"]
    yield from missing
    if missing:
        return
    block = pool.null_block
    missing = list(absent("KVCacheBlock", block, _BLOCK))
    yield from missing
    if not missing and (block.block_id != 0 or pool.blocks[0] is not block or len(pool.blocks) != pool.num_gpu_blocks):
        yield "BlockPool whose null block is number 0 of its blocks"
    for name, wanted in _PARAMETERS.items():
        found = parameters(pool, name) or ("?",)
        if found[: len(wanted)] != wanted or (name == "get_new_blocks" and found != wanted):
            yield f"BlockPool.{name}({', '.join(wanted)})"
    if not {"blocks", "num_cached_blocks", "num_full_blocks"} <= set(parameters(pool, "cache_full_blocks") or ()):
        yield "BlockPool.cache_full_blocks(blocks, num_cached_blocks, num_full_blocks)"
    groups = getattr(manager.coordinator, "single_type_managers", None)
    if not groups or any(not hasattr(group, "req_to_blocks") for group in groups):
        yield "KVCacheCoordinator.single_type_managers with req_to_blocks"

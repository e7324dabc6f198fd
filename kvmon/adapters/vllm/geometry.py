"""How large a block is, how many tokens it holds, and how many shards it is spread over.

What the numbers stand on moved between versions; each rule names the versions it was read in.
"""

from __future__ import annotations

from math import prod
from typing import Any

from kvmon.adapters.counted import NET
from kvmon.probe import PoolInfo

__all__ = ["block_bytes", "config_of", "pool_info", "smallest_block_tokens"]


def block_bytes(config: Any) -> int:
    """Bytes that one block takes on one shard, all layers together; 0 where the configuration does not say it.

    Up to 0.23 each tensor holds a layer (or layers that alias it) whole: their sizes add up. From 0.24 tensors can be
    packed (`block_stride`), from 0.29 `size` is the backing allocation that all of them lie in: each allocation counts
    once. Memory of the host is no part of it.
    """
    tensors = [one for one in config.kv_cache_tensors if not getattr(one, "host_resident", False)]
    blocks = int(config.num_blocks)
    if not tensors or blocks < 1:
        return 0
    if all(hasattr(one, "layers") for one in tensors):
        return max(int(one.size) for one in tensors) // blocks
    packed = max((int(getattr(one, "block_stride", 0)) for one in tensors), default=0)
    return packed or sum(int(one.size) for one in tensors) // blocks


def _spec(group: Any) -> Any:
    """What a group's layers need; of layers with specs of their own that of the first one."""
    spec = group.kv_cache_spec
    layers = getattr(spec, "kv_cache_specs", None)
    return next(iter(layers.values())) if isinstance(layers, dict) and layers else spec


def _tokens(group: Any, scheduler: Any) -> int:
    """Tokens in a block of a group, of all shards of the context together."""
    parallel = scheduler.parallel_config
    context = prod(
        int(getattr(parallel, name, 1) or 1)
        for name in ("decode_context_parallel_size", "prefill_context_parallel_size")
    )
    return int(_spec(group).block_size) * context


def smallest_block_tokens(scheduler: Any) -> int:
    """Tokens in the smallest block of any group."""
    return max(1, min(_tokens(group, scheduler) for group in scheduler.kv_cache_config.kv_cache_groups))


def _window(group: Any) -> int | None:
    """Tokens that a group's layers look back at; None where they look at all of them. Of Mamba it is the last state."""
    spec = _spec(group)
    if "Mamba" in type(spec).__name__:
        return int(spec.block_size)
    if type(spec).__name__ == "FullAttentionSpec":  # windows that the engine keeps whole are none to the allocator
        return None
    window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
    return None if window is None else int(window)


def pool_info(scheduler: Any, *, net: bool) -> PoolInfo:
    """The one pool of a rank: every group draws its blocks from it, and the null block is no part of it.

    Groups alias the same bytes, a block belonging to one of them at a time, so that nothing is counted twice. Where
    their blocks hold different numbers of tokens, `unit_tokens` is that of full attention. `net` says that only the
    number of used blocks will be known.
    """
    config, parallel = scheduler.kv_cache_config, scheduler.parallel_config
    groups = config.kv_cache_groups
    counting = next((group for group in groups if _window(group) is None), groups[0])
    shards = int(parallel.tensor_parallel_size) * int(parallel.pipeline_parallel_size)
    attributes: dict[str, Any] = {"shards": shards, **(NET if net else {})}
    if len(groups) > 1:
        attributes["groups"] = len(groups)
        attributes["group_kinds"] = [type(_spec(group)).__name__ for group in groups][:8]
        attributes["group_tokens"] = [_tokens(group, scheduler) for group in groups][:8]
    windows = [window for group in groups if (window := _window(group)) is not None]
    if windows:
        attributes["window_tokens"] = min(windows)
    return PoolInfo(
        name="kv",
        capacity_units=int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1,
        unit_bytes=block_bytes(config),
        unit_tokens=_tokens(counting, scheduler),
        attributes=attributes,
    )


def config_of(scheduler: Any) -> dict[str, Any]:
    """What `engine_config` says of the scheduler's policies; names only where they are there."""
    options, cache = scheduler.scheduler_config, scheduler.cache_config
    found: dict[str, Any] = {
        "allocator": "paged",
        "prefix_cache": bool(scheduler.kv_cache_manager.enable_caching),
        "reserve": "none",
        "eviction": "lru",
        "preemption": "recompute",
        "token_budget": getattr(options, "max_num_batched_tokens", None),
        "max_sequences": getattr(options, "max_num_seqs", None),
        "chunked_prefill": getattr(options, "enable_chunked_prefill", None),
        "watermark": getattr(options, "watermark", None),
        "admission": "prompt" if getattr(options, "scheduler_reserve_full_isl", False) else "chunk",
        "on_never_fits": "wait",
        "queue": str(getattr(options, "policy", "")) or None,
        "async_scheduling": getattr(options, "async_scheduling", None),
        "max_model_len": scheduler.max_model_len,
        "kv_dtype": str(getattr(cache, "cache_dtype", "")) or None,
        "connector": getattr(getattr(scheduler.vllm_config, "kv_transfer_config", None), "kv_connector", None),
    }
    return {name: value for name, value in found.items() if value is not None}

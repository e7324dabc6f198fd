"""What a recording says of its engine: versions, policies and the shape of the model; never a name of a client."""

from __future__ import annotations

import platform
import sys
from typing import Any

from kvmon import __version__
from kvmon.adapters.transformers.layout import Layout

__all__ = ["config_of", "running_version"]


def running_version() -> str:
    """The version of transformers that this process has imported; empty where it has not."""
    return str(getattr(sys.modules.get("transformers"), "__version__", ""))


def config_of(processor: Any, layout: Layout, version: str, class_by: str, reduced: str) -> dict[str, Any]:
    """The fields of `engine_config`; what an engine of another shape does not have is left out.

    `reduced` says why only counts are recorded; empty where everything is.
    """
    cache, scheduler, manager = processor.cache, processor.scheduler, processor.offloading_manager
    host = getattr(manager, "_cpu_pool", None) is not None
    said = {
        "adapter": "transformers",
        "adapter_version": __version__,
        "engine_version": version,
        "python": platform.python_version(),
        "fidelity": "counts" if reduced else "exact",
        "reduced": reduced or None,
        "class_by": class_by,
        "allocator": "sectors",
        "reserve": "none",
        "scheduler": type(scheduler).__name__,
        "token_budget": _number(cache, "max_batch_tokens"),
        "max_sequences": _number(scheduler, "max_requests_per_batch"),
        "watermark": _number(scheduler, "safety_margin"),
        "prefix_cache": bool(getattr(cache, "use_prefix_sharing", False)),
        "chunked_prefill": True,
        "admission": "chunk",
        "preemption": "swap" if host else "recompute",
        "eviction": "all-at-once",
        "async": bool(getattr(processor, "use_async_batching", False)),
        "page_tokens": layout.unit_tokens,
        "groups": {group.name: len(getattr(group.allocator, "layer_indices", ())) for group in layout.groups},
        "dtype": str(getattr(cache, "dtype", "")).removeprefix("torch."),
        "device": str(getattr(getattr(cache, "device", None), "type", getattr(cache, "device", ""))),
        "data_parallel": _number(getattr(processor, "distributed_helper", None), "dp_size"),
        "shards": _number(getattr(processor, "distributed_helper", None), "tp_size"),
    }
    config = getattr(processor, "config", None)
    shape = {
        "layers": _number(config, "num_hidden_layers"),
        "kv_heads": _number(config, "num_key_value_heads"),
        "head_dim": _number(layout.groups[0].allocator, "head_dim"),
        "model_type": str(getattr(config, "model_type", "")),
    }
    return {name: value for name, value in {**said, "model": shape}.items() if value is not None}


def _number(owner: Any, name: str) -> int | float | None:
    value = getattr(owner, name, None)
    return value if isinstance(value, int | float) else None

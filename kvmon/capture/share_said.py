"""What an engine and its pools say of themselves, with everything left out that could name somebody.

An allowlist: a key that is not named here goes, whatever it holds. Words pass only where they look like one, and names
that a user can choose only where kvmon or the engine has chosen them. Invariant: what a diagnosis or a what-if reads
stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["shared_config", "shared_pool"]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONFIG_WORDS = _names(
    """
    adapter adapter_version engine_version python fidelity class_by allocator reserve eviction preemption admission
    queue kv_dtype dtype device on_no_fit on_never_fits on_growth_failure reclaim scenario
    """
)
_CONFIG_NUMBERS = _names(
    """
    prefix_cache token_budget max_sequences chunked_prefill watermark max_model_len async async_scheduling page_tokens
    host_tokens lookahead_tokens acceptance transfer_share transfer_ns pin_share pin_after_hits window_tokens
    compaction retained_prefixes data_parallel shards seed hash_tokens
    """
)
_CONFIG_TABLES = _names("quotas priorities groups step_time_ns model")  # of numbers, by short names
_CONFIG_TREES = _names("faults")  # of kvmon's own simulator: numbers and lists of them
_KNOWN = {
    "engine": _names("simulator"),
    "connector": _names(
        """
        NixlConnector LMCacheConnectorV1 LMCacheMPConnector SharedStorageConnector ExampleConnector MultiConnector
        OffloadingConnector MooncakeConnector MooncakeStoreConnector P2pNcclConnector SimpleCPUOffloadConnector
        HF3FSKVConnector FlexKVConnectorV1 DecodeBenchConnector
        """
    ),
    "scheduler": _names("FIFOScheduler PrefillFirstScheduler"),
}

_POOL_WORDS = _names("layout contiguity tier placement")
_POOL_NUMBERS = _names("capacity_units unit_bytes unit_tokens first_engine_unit fresh net shards groups window_tokens")
_POOL_LISTS = _names("group_tokens")
_POOL_NAMES = _names("kv kv-window kv-host gpu cpu host swap")
_GROUP_KINDS = re.compile(
    r"(Full|SlidingWindow|ChunkedLocal|MLA|SinkFull|Cross|EncoderOnly|TQFull|SlidingWindowMLA)AttentionSpec|MambaSpec|"
    r"SlidingWindowSpec|SlidingWindowMLASpec|UniformTypeKVCacheSpecs"
)


def shared_config(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of an engine's own description may be seen by anybody, and the keys that are left out."""
    kept, removed = {}, []
    for key, value in said.items():
        if (
            (key in _CONFIG_NUMBERS and _number(value))
            or (key in _CONFIG_WORDS and _word(value))
            or (key in _CONFIG_TABLES and _table(value))
            or (key in _CONFIG_TREES and _tree(value))
            or (isinstance(value, str) and value in _KNOWN.get(key, ()))
        ):
            kept[key] = value
        else:
            removed.append(str(key))
    return kept, removed


def shared_pool(number: int, said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same of a pool; it keeps a name: its own where kvmon has chosen it, else its number."""
    kept, removed = {}, []
    for key, value in said.items():
        if key == "name":
            kept[key] = value if value in _POOL_NAMES else f"pool{number}"
            removed += [] if kept[key] == value else [f"name '{value}'"]
        elif (
            (key in _POOL_NUMBERS and _number(value))
            or (key in _POOL_WORDS and _word(value))
            or (key in _POOL_LISTS and isinstance(value, list) and all(map(_number, value)))
            or (key == "group_kinds" and isinstance(value, list) and all(map(_kind_of_group, value)))
        ):
            kept[key] = value
        else:
            removed.append(str(key))
    return kept, removed


def _number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _word(value: Any) -> bool:
    return isinstance(value, str) and (not value or _WORD.fullmatch(value) is not None)


def _table(value: Any) -> bool:
    """Numbers, and words that look like one, by keys that do."""
    return isinstance(value, dict) and all(
        _KEY.fullmatch(str(key)) and (_number(one) or (key == "model_type" and _word(one)))
        for key, one in value.items()
    )


def _tree(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_KEY.fullmatch(str(key)) and _tree(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_tree, value))
    return _number(value)


def _kind_of_group(value: Any) -> bool:
    return isinstance(value, str) and _GROUP_KINDS.fullmatch(value) is not None

"""What an engine and its pools say of themselves, with everything left out that could name somebody.

An allowlist of keys and of what each of them may hold: a key that is not named here goes, whatever it holds, and a word
passes only where it is one of those that kvmon or the engines chose, never because it looks harmless. A version keeps
its numbers; what a builder put behind them goes.

Invariant: no text that somebody else could choose passes; what a diagnosis or a what-if reads stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["shared_config", "shared_pool", "shared_reason"]

Keep = Callable[[Any], bool]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DTYPES = _names(
    """
    auto half float bfloat16 float16 float32 bf16 fp16 fp32 fp8 fp8_e4m3 fp8_e5m2 fp8_inc fp8_ds_mla float8_e4m3fn
    float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz int8 uint8 int4 fp4 nvfp4
    """
)
# Public architectures, as transformers names them.
_MODEL_TYPES = _names(
    """
    aria baichuan bloom chatglm codegen cohere cohere2 dbrx deepseek deepseek_v2 deepseek_v3 deepseek_v32 exaone exaone4
    falcon falcon_h1 gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid hunyuan_v1_dense hunyuan_v1_moe internlm2 internlm3 jamba
    kimi_k2 lfm2 llama llama4 llama4_text llava mamba mamba2 minicpm minicpm3 minimax ministral mistral mistral3 mixtral
    mllama mpt nemotron nemotron_h olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe pixtral qwen2 qwen2_5_vl
    qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe seed_oss smollm3 solar stablelm starcoder2
    zamba2
    """
)
_SCENARIOS = _names(
    """
    server-failures paged-vs-standard post-incident post-incident-without-reuse root-cause stabilizing multi-tenant
    choosing prefix-mixed chatbot-degradation cache-thrash warm-cache tail-waste two-phase updating single-step space
    structure deadlock never-fits pool-starved preemption-storm stranded fragmentation reservation head-of-line capacity
    pinned partition short-burst leak double-free not-kv telemetry-untrusted reclaim-failed
    """
)
_WORDS: dict[str, frozenset[str]] = {
    "engine": _names("simulator"),
    "adapter": _names("reference vllm transformers sglang"),
    "fidelity": _names("exact sampled counts cache_only"),
    "class_by": _names("none length priority lora salt"),
    "allocator": _names("paged sectors first-fit best-fit buddy"),
    "eviction": _names("lru lfu fifo none all-at-once"),
    "preemption": _names("recompute swap"),
    "admission": _names("chunk prompt full"),
    "queue": _names("fcfs priority"),
    "on_no_fit": _names("wait refuse"),
    "on_never_fits": _names("refuse wait"),
    "on_growth_failure": _names("preempt wait abort"),
    "reclaim": _names("on-demand idle"),
    "kv_dtype": _DTYPES,
    "dtype": _DTYPES,
    "device": _names("cpu cuda hip hpu mps npu tpu xla xpu"),
    "scenario": _SCENARIOS | {f"{name}-healthy" for name in _SCENARIOS},
    "scheduler": _names("FIFOScheduler PrefillFirstScheduler"),
    "connector": _names(
        """
        NixlConnector LMCacheConnectorV1 LMCacheMPConnector SharedStorageConnector ExampleConnector MultiConnector
        OffloadingConnector MooncakeConnector MooncakeStoreConnector P2pNcclConnector SimpleCPUOffloadConnector
        HF3FSKVConnector FlexKVConnectorV1 DecodeBenchConnector
        """
    ),
}
_VERSIONS = _names("adapter_version engine_version python")
_VERSION = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,3}(?:(?:a|b|rc|\.post|\.dev)\d{1,6})*")
_BUILD = re.compile(r"\+(?:cpu|cu\d{2,3}|rocm\d(?:\.\d)*|xpu)")  # of the framework; any other was chosen by a builder
_RESERVE = re.compile(r"none|max|pow2|oracle|chunk:\d{1,9}")
_CLASS = re.compile(r"\d{1,9}")

_CONFIG_NUMBERS = _names(
    """
    prefix_cache token_budget max_sequences chunked_prefill watermark max_model_len async async_scheduling page_tokens
    host_tokens lookahead_tokens acceptance transfer_share transfer_ns pin_share pin_after_hits window_tokens
    compaction retained_prefixes data_parallel shards seed hash_tokens
    """
)
_TABLES = {  # of numbers, by these keys
    "groups": _names("full_attention sliding_attention chunked_attention linear_attention"),
    "step_time_ns": _names("base_ns prefill_token_ns decode_sequence_ns context_token_ns"),
    "faults": _names("seed leak_share double_free_share strand_share strand_ns wrong_gauge claims_every_ns from_ns"),
}
_MODEL = _names("layers kv_heads head_dim")

_POOL_WORDS = {
    "name": _names("kv kv-window kv-host gpu cpu host swap"),
    "layout": _names("paged contiguous token arena"),
    "contiguity": _names("none preferred required"),
    "tier": _names("gpu cpu disk remote"),
    "placement": _names("first-fit best-fit buddy"),
}
_POOL_NUMBERS = _names(
    """
    capacity_units unit_bytes unit_tokens first_engine_unit fresh net shards groups window_tokens sector_units
    """
)
_POOL_LISTS = _names("group_tokens group_slices")
_GROUP_KINDS = _TABLES["groups"] | _names(
    """
    FullAttentionSpec SlidingWindowSpec ChunkedLocalAttentionSpec MLAAttentionSpec SlidingWindowMLASpec MambaSpec
    SinkFullAttentionSpec CrossAttentionSpec EncoderOnlyAttentionSpec TQFullAttentionSpec UniformTypeKVCacheSpecs
    """
)

_LOST = "something is missing here"
_REASON = re.compile(
    r"older segments were retired|frames are missing before segment \d{1,12}|\d{1,12}\.seg has a damaged header|"
    r"the frame's checksum is wrong|the frame says another length than it has|the frame is not whole|"
    r"a word of the frame begins no record|a chunk of the capture is damaged|chunks of the capture are lost here|"
    r"the open frame at the end is damaged|a note about a hole is damaged|"
    r"no chunk begins here|no chunk begins here, and none follows|the file ends in this chunk|"
    r"the file was cut off, or its writer was stopped: there is no index|" + _LOST
)


def shared_config(said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of an engine's own description may be seen by anybody, and the keys of which something is left out."""
    kept: dict[str, Any] = {}
    removed: list[str] = []
    for key, value in said.items():
        if key in _VERSIONS:
            left = _version(value)
            if left:
                kept[key] = left
            removed += [] if left == value else [key]
        elif key == "model":
            shape = _model(value)
            if shape:
                kept[key] = shape
            removed += [] if shape == value else [key]
        elif _config_keeps(key, value):
            kept[key] = value
        else:
            removed.append(str(key))
    return kept, removed


def shared_pool(number: int, said: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The same of a pool; it keeps a name: its own where kvmon has chosen it, else its number."""
    kept: dict[str, Any] = {}
    removed: list[str] = []
    for key, value in said.items():
        if (
            (key in _POOL_NUMBERS and _number(value))
            or (key in _POOL_LISTS and _list_of(_number, value))
            or (key == "group_kinds" and _list_of(lambda kind: _one_of(_GROUP_KINDS, kind), value))
            or _one_of(_POOL_WORDS.get(key, frozenset()), value)
            or (key == "placement" and value == "")
        ):
            kept[key] = value
        elif key == "name":
            kept[key] = f"pool{number}"
            removed += [] if kept[key] == value else [key]
        else:
            removed.append(str(key))
    return kept, removed


def shared_reason(reason: str) -> str:
    """Why something is missing, where kvmon wrote it."""
    return reason if _REASON.fullmatch(reason) else _LOST


def _config_keeps(key: str, value: Any) -> bool:
    if key in _CONFIG_NUMBERS:
        return _number(value)
    if key == "reserve":
        return isinstance(value, str) and _RESERVE.fullmatch(value) is not None
    if key in ("quotas", "priorities"):
        return isinstance(value, dict) and all(_CLASS.fullmatch(name) and _number(one) for name, one in value.items())
    if key in _TABLES:
        return isinstance(value, dict) and all(
            (name in _TABLES[key] and _number(one)) or (key == "faults" and name == "errors" and _errors(one))
            for name, one in value.items()
        )
    return _one_of(_WORDS.get(key, frozenset()), value)


def _version(value: Any) -> str:
    """Its numbers, and the build of the framework; empty where there are none."""
    numbers = _VERSION.match(value) if isinstance(value, str) else None
    if numbers is None:
        return ""
    behind = value[numbers.end() :]
    return numbers[0] + (behind if _BUILD.fullmatch(behind) else "")


def _model(value: Any) -> dict[str, Any]:
    """The shape of a model, and its architecture where that is a public one."""
    if not isinstance(value, dict):
        return {}
    return {
        name: one
        for name, one in value.items()
        if (name in _MODEL and _number(one)) or (name == "model_type" and _one_of(_MODEL_TYPES, one))
    }


def _number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _one_of(allowed: frozenset[str], value: Any) -> bool:
    return isinstance(value, str) and value in allowed


def _list_of(keep: Keep, value: Any) -> bool:
    return isinstance(value, list) and all(map(keep, value))


def _errors(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(row, list | tuple) and all(map(_number, row)) for row in value
    )

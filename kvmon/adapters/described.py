"""How an engine is described in a recording, and what can be run from such a description: both halves, side by side.

`engine_config` and the pools are what the reference engine and the simulator write; `read_described` makes the
configurations of them again, for these and for foreign engines, and says what of it the simulator cannot run.

Invariant: what a reference engine or the simulator wrote is read back equal. Policies stand by their names, options
only where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kvmon.allocators.config import EVICTIONS, PLACEMENTS, AllocatorConfig, ContiguousConfig, PagedConfig, parse_reserve
from kvmon.errors import ConfigError, InputError
from kvmon.probe import PoolInfo
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import EngineError, Faults
from kvmon.serving.step_time import StepTime

__all__ = ["Described", "engine_config", "pool_info", "read_described", "second_pool_info"]

_SECOND = 2  # number of the pool that an engine has beside
_USUAL = {"on_no_fit": "wait", "on_never_fits": "refuse", "on_growth_failure": "preempt"}


@dataclass(frozen=True)
class Described:
    """An engine as the simulator can run it.

    step_time       the formula of its clock, where it says one
    token_bytes     bytes of one token's keys and values, 0 = not said
    notes           what is run differently from what the engine does, one line each
    """

    allocator: AllocatorConfig
    scheduler: SchedulerConfig
    faults: Faults
    step_time: StepTime | None
    token_bytes: int
    notes: tuple[str, ...] = ()


def pool_info(allocator: AllocatorConfig, token_bytes: int, name: str = "kv") -> PoolInfo:
    """The pool of an allocator; `token_bytes` = bytes of keys and values of one token over all layers of a group."""
    paged = isinstance(allocator, PagedConfig)
    attributes: dict[str, Any] = {}
    if isinstance(allocator, PagedConfig) and allocator.window_tokens and not allocator.window_pool_units:
        attributes = {"groups": 2, "window_tokens": allocator.window_tokens}
    return PoolInfo(
        name=name,
        capacity_units=allocator.capacity_units,
        unit_bytes=allocator.unit_tokens * token_bytes,
        unit_tokens=allocator.unit_tokens,
        layout="paged" if paged else "contiguous",
        contiguity="none" if paged else "required",
        placement="buddy" if isinstance(allocator, ContiguousConfig) and allocator.placement == "buddy" else "",
        attributes=attributes,
    )


def second_pool_info(allocator: AllocatorConfig, scheduler: SchedulerConfig, token_bytes: int) -> PoolInfo | None:
    """The pool that an engine has beside: the window group's own, or the host tier; None where there is none."""
    unit = allocator.unit_tokens
    if isinstance(allocator, PagedConfig) and allocator.window_pool_units:
        return PoolInfo(
            name="kv-window",
            capacity_units=allocator.window_pool_units,
            unit_bytes=unit * token_bytes,
            unit_tokens=unit,
            attributes={"window_tokens": allocator.window_tokens},
        )
    if scheduler.host_tokens >= unit:
        return PoolInfo(
            name="kv-host",
            capacity_units=scheduler.host_tokens // unit,
            unit_bytes=unit * token_bytes,
            unit_tokens=unit,
            layout="contiguous",
            contiguity="required",
            tier="cpu",
        )
    return None


def engine_config(
    allocator: AllocatorConfig,
    scheduler: SchedulerConfig,
    faults: Faults | None = None,
    step_time: StepTime | None = None,
) -> dict[str, Any]:
    """What `engine_config` says of the reference engine: policies by their names, options only where they are used.

    `faults` that were injected on purpose are part of it, and `step_time` where the engine's clock is a formula.
    """
    config: dict[str, Any] = {
        "adapter": "reference",
        "fidelity": "exact",
        "allocator": allocator.placement if isinstance(allocator, ContiguousConfig) else "paged",
        "prefix_cache": isinstance(allocator, PagedConfig) and allocator.prefix_cache,
        "reserve": "none",
        "token_budget": scheduler.token_budget,
        "max_sequences": scheduler.max_sequences,
        "chunked_prefill": scheduler.chunked_prefill,
        "watermark": scheduler.watermark,
        "admission": scheduler.admit_by,
        "preemption": scheduler.preemption,
        "eviction": allocator.evict if isinstance(allocator, PagedConfig) else "none",
    }
    if isinstance(allocator, ContiguousConfig):
        chunk = allocator.chunk_tokens
        config["reserve"] = allocator.reserve if chunk is None else f"chunk:{chunk}"
    options: dict[str, Any] = {
        "max_model_len": scheduler.max_model_len,
        "quotas": {str(class_id): share for class_id, share in allocator.quotas},
        "priorities": {str(class_id): level for class_id, level in scheduler.priorities},
        "host_tokens": scheduler.host_tokens,
        "lookahead_tokens": scheduler.lookahead_tokens,
        "acceptance": scheduler.acceptance,
        "transfer_share": scheduler.transfer_share,
        "transfer_ns": scheduler.transfer_ns,
        "faults": _unusual(faults or Faults()),
        "step_time_ns": {} if step_time is None else asdict(step_time),
        **{name: getattr(scheduler, name) for name, usual in _USUAL.items() if getattr(scheduler, name) != usual},
    }
    if isinstance(allocator, PagedConfig):
        options["reclaim"] = "" if allocator.reclaim == "on-demand" else allocator.reclaim
        options["pin_share"] = allocator.pin_share
        options["pin_after_hits"] = allocator.pin_after_hits
        options["window_tokens"] = allocator.window_tokens
    else:
        options["compaction"] = allocator.compaction
        options["retained_prefixes"] = allocator.retained_prefixes
    return {**config, **{name: value for name, value in options.items() if value}}


def _unusual(faults: Faults) -> dict[str, Any]:
    usual = Faults()
    return {
        field.name: value
        for field in fields(Faults)
        if (value := getattr(faults, field.name)) != getattr(usual, field.name)
    }


def read_described(config: Mapping[str, Any], pools: Mapping[int, Mapping[str, Any]]) -> Described:
    """The configurations that `config` (of ENGINE_CONFIG) and the `pools` by number (of POOL_ATTACHED) describe.

    Raises InputError where there is no pool, or a value is none that an engine can have.
    """
    if 1 not in pools:
        raise InputError("the recording names no pool: its begin is lost, or the engine had none")
    notes: list[str] = []
    try:
        scheduler = _scheduler(config, notes)
        allocator = _allocator(config, pools, notes)
        scheduler.check_for(allocator)
        faults = _faults(config.get("faults") or {})
        faults.check_for(allocator)
        stated = config.get("step_time_ns")
        step_time = StepTime(**stated) if stated else None
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"what the recording says of its engine cannot be run: {error}") from error
    tokens = max(int(pools[1].get("unit_tokens", 1)), 1)
    return Described(
        allocator, scheduler, faults, step_time, int(pools[1].get("unit_bytes", 0)) // tokens, tuple(notes)
    )


def _allocator(config: Mapping[str, Any], pools: Mapping[int, Mapping[str, Any]], notes: list[str]) -> AllocatorConfig:
    pool = pools[1]
    units, tokens = int(pool["capacity_units"]), max(int(pool.get("unit_tokens", 1)), 1)
    quotas = tuple((int(class_id), float(share)) for class_id, share in (config.get("quotas") or {}).items())
    kind = str(config.get("allocator", "paged"))
    if pool.get("contiguity", "none") != "none" or kind in PLACEMENTS:
        if kind not in PLACEMENTS:
            placement = "buddy" if pool.get("placement") == "buddy" else "first-fit"
            notes.append(f"its allocator '{kind}' is run as {placement}")
            kind = placement
        reserve, chunk = parse_reserve(str(config.get("reserve", "max")))
        return ContiguousConfig(
            units,
            tokens,
            chunk,
            reserve=reserve,
            placement=kind,
            compaction=bool(config.get("compaction", False)),
            retained_prefixes=int(config.get("retained_prefixes", 0)),
            quotas=quotas,
        )
    if kind != "paged":
        notes.append(f"its allocator '{kind}' is run as pages")
    window = int(config.get("window_tokens") or pool.get("window_tokens") or 0)
    groups = int(pool.get("groups", 1))
    own = pools.get(_SECOND, {})
    cached = bool(config.get("prefix_cache", False))
    if window and groups < 2 and not own:
        notes.append(f"its layers keep the last {window} tokens alone; they are run as if they kept all")
        window = 0
    elif groups > 1 + bool(window) or (window and cached):
        notes.append(
            f"its {groups} groups of layers are run as one that keeps every token"
            if cached or not window
            else f"its {groups} groups of layers are run as two, one of them with a window of {window} tokens"
        )
        window = 0 if cached else window
    evict = str(config.get("eviction", "lru")) if cached else "lru"
    if evict not in EVICTIONS:
        if evict != "none":
            notes.append(f"its eviction '{evict}' is run as lru")
        evict = "lru"
    return PagedConfig(
        units,
        tokens,
        prefix_cache=cached,
        evict=evict,
        reclaim=str(config.get("reclaim", "on-demand")),
        pin_after_hits=int(config.get("pin_after_hits", 0)),
        pin_share=float(config.get("pin_share", 0.0)),
        quotas=quotas,
        window_tokens=window,
        window_pool_units=int(own.get("capacity_units", 0)) if window and own.get("tier", "gpu") == "gpu" else 0,
    )


def _scheduler(config: Mapping[str, Any], notes: list[str]) -> SchedulerConfig:
    usual = SchedulerConfig()
    for name, key in (("token budget", "token_budget"), ("most sequences", "max_sequences")):
        if config.get(key) is None:
            notes.append(f"its {name} is not recorded: {getattr(usual, key):,} is taken")
    if config.get("queue") == "priority":
        notes.append("its queue goes by priorities that are not recorded; first come, first served is run")
    if config.get("connector"):
        notes.append("its transfers to and from other engines are not run")
    if config.get("async_scheduling"):
        notes.append("it schedules a step while the one before still runs; steps are run one after the other")
    longest = config.get("max_model_len")
    return SchedulerConfig(
        token_budget=int(config.get("token_budget") or usual.token_budget),
        max_sequences=int(config.get("max_sequences") or usual.max_sequences),
        chunked_prefill=bool(config.get("chunked_prefill", True)),
        watermark=float(config.get("watermark", 0.0)),
        admit_by=str(config.get("admission", usual.admit_by)),
        max_model_len=None if longest is None else int(longest),
        priorities=tuple((int(class_id), int(level)) for class_id, level in (config.get("priorities") or {}).items()),
        preemption="swap" if config.get("host_tokens") else "recompute",
        host_tokens=int(config.get("host_tokens") or 0),
        lookahead_tokens=int(config.get("lookahead_tokens") or 0),
        acceptance=float(config.get("acceptance", 0.0)),
        transfer_share=float(config.get("transfer_share", 0.0)) if config.get("transfer_ns") else 0.0,
        transfer_ns=int(config.get("transfer_ns", 0)),
        **{name: str(config.get(name, value)) for name, value in _USUAL.items()},
    )


def _faults(stated: Mapping[str, Any]) -> Faults:
    errors = tuple(EngineError(*map(int, error)) for error in stated.get("errors", ()))
    return Faults(**{**stated, "errors": errors})

"""Options of an engine by the names that people type, into configurations and back.

One vocabulary for `kvmon simulate` and for what-ifs. Invariant: `allocator_config(options_of(a, s), tokens of a) == a`
and the same for the scheduler; an option of another allocator is an error, never ignored. Each value is checked by the
configuration that it goes into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, parse_reserve
from kvmon.errors import ConfigError
from kvmon.serving.config import SchedulerConfig

__all__ = [
    "ALLOCATORS",
    "CONTIGUOUS_ONLY",
    "PAGED_ONLY",
    "allocator_config",
    "as_flag",
    "options_of",
    "scheduler_config",
]

#: Allocators by name, with the tokens of a block where nobody says.
ALLOCATORS = {"paged": 16, "first-fit": 1, "best-fit": 1, "buddy": 1}
#: Options of one kind of allocator alone.
PAGED_ONLY = ("evict", "reclaim", "pin_after", "pin_share", "window_tokens", "window_pool_tokens")
CONTIGUOUS_ONLY = ("reserve", "compaction", "retain")

_SECOND = 1_000_000_000
_SHORTEST_TRANSFER_S, _LONGEST_TRANSFER_S = 1e-9, 1e9
_MOST_HOST_TOKENS = 1 << 31
_DIGITS = 18  # of a number that people type

Spelling = Callable[[str], str]


def as_flag(name: str) -> str:
    """The name of an option as the command line has it."""
    return f"--{name.replace('_', '-')}"


def allocator_config(options: Mapping[str, Any], tokens: int, spell: Spelling = as_flag) -> AllocatorConfig:
    """The allocator of `tokens` tokens that the options describe; `spell` is how messages name an option."""
    kind = options["allocator"]
    if kind not in ALLOCATORS:
        raise ConfigError(f"'{kind}' is no allocator: choose {', '.join(ALLOCATORS)}")
    foreign = CONTIGUOUS_ONLY if kind == "paged" else PAGED_ONLY
    for name in foreign:
        if options[name] not in (None, False):
            owner = "contiguous blocks" if kind == "paged" else "paged"
            raise ConfigError(f"{spell(name)} belongs to {owner}: leave it out with {spell('allocator')} {kind}")
    block = ALLOCATORS[kind] if options["block_size"] is None else options["block_size"]
    if block < 1:
        raise ConfigError(f"a block of {block} tokens is none: choose a block size of at least 1")
    quotas = tuple(
        (class_id, _share(text, spell("quota"))) for class_id, text in _pairs(options["quota"], spell("quota"))
    )
    if kind != "paged":
        if options["prefix_cache"]:
            raise ConfigError(
                f"{spell('prefix_cache')} belongs to paged: contiguous blocks share nothing in place, "
                f"see {spell('retain')}"
            )
        reserve, chunk = parse_reserve("max" if options["reserve"] is None else options["reserve"])
        return ContiguousConfig(
            tokens // block,
            block,
            chunk,
            reserve=reserve,
            placement=kind,
            compaction=options["compaction"],
            retained_prefixes=options["retain"] or 0,
            quotas=quotas,
        )
    window, pool = options["window_tokens"] or 0, options["window_pool_tokens"]
    if pool is not None and pool < block:
        raise ConfigError(f"{spell('window_pool_tokens')} {pool} holds no page of {block}: enlarge it, or leave it out")
    cache = options["prefix_cache"]
    share = options["pin_share"]
    return PagedConfig(
        tokens // block,
        block,
        prefix_cache=not window if cache is None else cache,
        evict="lru" if options["evict"] is None else options["evict"],
        reclaim="on-demand" if options["reclaim"] is None else options["reclaim"],
        pin_after_hits=options["pin_after"] or 0,
        pin_share=_share(share, spell("pin_share")) if share is not None else 0.0,
        quotas=quotas,
        window_tokens=window,
        window_pool_units=(pool or 0) // block,
    )


def scheduler_config(options: Mapping[str, Any], spell: Spelling = as_flag) -> SchedulerConfig:
    """The scheduler that the options describe."""
    if options["lookahead"] and options["acceptance"] is None:
        raise ConfigError(f"drafts need the chance that one is accepted: add {spell('acceptance')}, such as 0.7")
    seconds = options["transfer_seconds"]
    if (seconds is None) != (options["transfer_share"] is None):
        raise ConfigError(f"transfers need both: give {spell('transfer_share')} and {spell('transfer_seconds')}")
    if seconds is not None and not _SHORTEST_TRANSFER_S <= seconds < _LONGEST_TRANSFER_S:
        raise ConfigError(f"a transfer of {seconds:g} seconds is none: choose a nanosecond to 30 years")
    host = options["host_tokens"]
    if host is not None and not 1 <= host <= _MOST_HOST_TOKENS:
        raise ConfigError(f"a host tier of {host} tokens is none: choose 1 to {_MOST_HOST_TOKENS}")
    levels = _pairs(options["priority"], spell("priority"))
    return SchedulerConfig(
        token_budget=options["token_budget"],
        max_sequences=options["max_seqs"],
        chunked_prefill=options.get("chunked_prefill", True),
        watermark=options["watermark"],
        max_model_len=options["max_model_len"],
        admit_by=options["admit_by"],
        on_no_fit=options["on_no_fit"],
        on_never_fits=options["on_never_fits"],
        on_growth_failure=options["on_growth_failure"],
        priorities=tuple((class_id, _whole(text, spell("priority"))) for class_id, text in levels),
        preemption="recompute" if host is None else "swap",
        host_tokens=host or 0,
        lookahead_tokens=options["lookahead"] or 0,
        acceptance=options["acceptance"] or 0.0,
        transfer_share=options["transfer_share"] or 0.0,
        transfer_ns=round((seconds or 0.0) * _SECOND),
    )


def options_of(allocator: AllocatorConfig, scheduler: SchedulerConfig) -> dict[str, Any]:
    """The options that describe these configurations, all but the size of the pool; None where one means nothing."""
    options: dict[str, Any] = dict.fromkeys((*PAGED_ONLY, *CONTIGUOUS_ONLY, "prefix_cache"))
    options |= {
        "block_size": allocator.unit_tokens,
        "quota": tuple(f"{class_id}={share!r}" for class_id, share in allocator.quotas),
        "max_seqs": scheduler.max_sequences,
        "token_budget": scheduler.token_budget,
        "chunked_prefill": scheduler.chunked_prefill,
        "watermark": scheduler.watermark,
        "max_model_len": scheduler.max_model_len,
        "admit_by": scheduler.admit_by,
        "on_no_fit": scheduler.on_no_fit,
        "on_never_fits": scheduler.on_never_fits,
        "on_growth_failure": scheduler.on_growth_failure,
        "priority": tuple(f"{class_id}={level}" for class_id, level in scheduler.priorities),
        "host_tokens": scheduler.host_tokens or None,
        "lookahead": scheduler.lookahead_tokens or None,
        "acceptance": scheduler.acceptance if scheduler.lookahead_tokens else None,
        "transfer_share": scheduler.transfer_share or None,
        "transfer_seconds": scheduler.transfer_ns / _SECOND if scheduler.transfer_ns else None,
    }
    if isinstance(allocator, ContiguousConfig):
        chunk = allocator.chunk_tokens
        return options | {
            "allocator": allocator.placement,
            "reserve": allocator.reserve if chunk is None else f"chunk:{chunk}",
            "compaction": allocator.compaction,
            "retain": allocator.retained_prefixes or None,
        }
    return options | {
        "allocator": "paged",
        "prefix_cache": allocator.prefix_cache,
        "evict": allocator.evict,
        "reclaim": allocator.reclaim,
        "pin_after": allocator.pin_after_hits or None,
        "pin_share": repr(allocator.pin_share) if allocator.pin_after_hits else None,
        "window_tokens": allocator.window_tokens or None,
        "window_pool_tokens": allocator.window_pool_units * allocator.unit_tokens or None,
    }


def _pairs(texts: tuple[str, ...], flag: str) -> list[tuple[int, str]]:
    """CLASS=VALUE of a repeated option."""
    pairs = []
    for text in texts:
        class_id, sign, value = text.partition("=")
        if not sign or not class_id.strip().isdecimal() or len(class_id) > _DIGITS:
            raise ConfigError(f"{flag} '{text}' names no class: write CLASS=VALUE, such as 2=1")
        pairs.append((int(class_id), value.strip()))
    return pairs


def _share(text: str, flag: str) -> float:
    """A share as 40% or 0.4."""
    try:
        if "_" in text:
            raise ValueError
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is no share: write 40% or 0.4") from None


def _whole(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{flag}: '{text}' is no whole number") from None

"""A what-if in words, and the engine that it means: `allocator=paged,block=16,pool=+20%`.

Keys are the options of `kvmon simulate` without their dashes, and short forms of some. What a change makes meaningless
(a reservation policy, once there are pages) goes with it; what contradicts it is an error.

Invariant: a text means the same engine wherever it is read, and no key and no value is ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvmon.adapters.described import Described
from kvmon.allocators import AllocatorConfig
from kvmon.errors import ConfigError
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.faults import Faults
from kvmon.serving.options import CONTIGUOUS_ONLY, PAGED_ONLY, allocator_config, options_of, scheduler_config
from kvmon.serving.workload import check_page_hashes
from kvmon.units import parse_size

__all__ = ["KEYS", "UNCHANGED", "Changed", "WhatIf", "changed", "parse_what_if"]

_MOST = 2**31 - 2
_PAGE = 16
_WORDS = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}
_ADMISSIONS = {"full-need": "full"}


def _whole(key: str, text: str) -> int:
    try:
        value = int(text) if "_" not in text else None
    except ValueError:
        value = None
    if value is None or not 0 <= value <= _MOST:
        raise ConfigError(f"{key}={text} is no whole number: write one from 0, such as {key}=64")
    return value


def _share(key: str, text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError(f"{key}={text} is no number: write {key}=5% or {key}=0.05") from None


def _switch(key: str, text: str) -> bool:
    if text not in _WORDS:
        raise ConfigError(f"{key}={text} is neither on nor off: write {key}=on or {key}=off")
    return _WORDS[text]


def _several(key: str, text: str) -> tuple[str, ...]:
    return () if text in ("off", "none") else tuple(text.split("/"))


def _word(key: str, text: str) -> str:
    return text


def _or_none(read: Callable[[str, str], Any]) -> Callable[[str, str], Any]:
    return lambda key, text: read(key, text) or None


_READ: dict[str, Callable[[str, str], Any]] = {
    "allocator": _word,
    "pool": _word,
    "block_size": _whole,
    "reserve": _word,
    "compaction": _switch,
    "retain": _or_none(_whole),
    "quota": _several,
    "prefix_cache": _switch,
    "evict": _word,
    "reclaim": _word,
    "pin_after": _or_none(_whole),
    "pin_share": _word,
    "window_tokens": _or_none(_whole),
    "window_pool_tokens": _or_none(_whole),
    "max_seqs": _whole,
    "token_budget": _whole,
    "chunked_prefill": _switch,
    "watermark": _share,
    "max_model_len": _or_none(_whole),
    "admit_by": lambda key, text: _ADMISSIONS.get(text, text),
    "on_no_fit": _word,
    "on_never_fits": _word,
    "on_growth_failure": _word,
    "priority": _several,
    "host_tokens": _or_none(_whole),
    "lookahead": _or_none(_whole),
    "acceptance": _share,
    "transfer_share": _or_none(_share),
    "transfer_seconds": _or_none(_share),
    "faults": _switch,
}
_SHORT = {
    "block": "block_size",
    "admission": "admit_by",
    "capacity": "pool",
    "capacity_tokens": "pool",
    "capacity_bytes": "pool",
}
#: Every key that a what-if may name, as people type it.
KEYS = tuple(sorted(name.replace("_", "-") for name in (*_READ, *_SHORT)))


@dataclass(frozen=True)
class WhatIf:
    """One change: its text, and what it says of each option by name. Nothing in it: the engine as it was."""

    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)


UNCHANGED = WhatIf("no change")
"""The engine as it was."""


@dataclass(frozen=True)
class Changed:
    """The engine that a what-if means."""

    allocator: AllocatorConfig
    scheduler: SchedulerConfig
    faults: Faults

    def to_json(self) -> dict[str, Any]:
        """By the names of `kvmon simulate`'s options, ready for `json.dumps`."""
        options = {
            name: value for name, value in options_of(self.allocator, self.scheduler).items() if value is not None
        }
        return {"capacity_tokens": self.allocator.capacity_units * self.allocator.unit_tokens, **options}


def parse_what_if(text: str) -> WhatIf:
    """The change that `key=value,key=value` describes. Raises ConfigError for an unknown key, a key without a value or
    one that stands there twice."""
    changes: dict[str, Any] = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not sign or not key or not value:
            raise ConfigError(f"what-if '{text}': '{part.strip()}' is no change: write key=value, such as pool=+20%")
        name = key.replace("-", "_")
        name = _SHORT.get(name, name)
        if name not in _READ:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose of {', '.join(KEYS)}"
            raise ConfigError(f"what-if '{text}': there is nothing called '{key}': {hint}")
        if name in changes:
            raise ConfigError(f"what-if '{text}': {key} is said twice: say it once")
        changes[name] = _READ[name](key, value)
    return WhatIf(text.replace(" ", ""), changes)


def changed(engine: Described, what_if: WhatIf, hash_tokens: int) -> Changed:
    """The engine with the change; `hash_tokens`: what one name of a page stands for in the recording, 0 = it has none.

    Raises ConfigError where the change is impossible or contradicts itself.
    """
    said = dict(what_if.changes)
    faults = engine.faults if said.pop("faults", True) else Faults(claims_every_ns=engine.faults.claims_every_ns)
    options = options_of(engine.allocator, engine.scheduler)
    before = engine.allocator.capacity_units * engine.allocator.unit_tokens
    tokens = _pool_tokens(str(said.pop("pool")), before, engine.token_bytes) if "pool" in said else before
    if tokens != before and options["window_pool_tokens"]:
        options["window_pool_tokens"] = max(options["window_pool_tokens"] * tokens // before, 1)
    _forget_what_is_meaningless(options, said, named=hash_tokens > 0)
    if said.get("prefix_cache") and not hash_tokens:
        raise ConfigError(
            "prefix-cache=on cannot be answered: the recording names no pages, because its engine had no prefix cache"
        )
    options |= said
    try:
        allocator = allocator_config(options, tokens, _spelled)
        scheduler = scheduler_config(options, _spelled)
        scheduler.check_for(allocator)
        faults.check_for(allocator)
        check_page_hashes(hash_tokens, allocator)
    except ConfigError as error:
        raise ConfigError(f"what-if '{what_if.text}' is impossible: {error}") from None
    return Changed(allocator, scheduler, faults)


def _forget_what_is_meaningless(options: dict[str, Any], said: Mapping[str, Any], *, named: bool) -> None:
    """Options of the recorded engine that go with what the change takes away."""
    kind = said.get("allocator", options["allocator"])
    if (kind == "paged") != (options["allocator"] == "paged"):
        for name in (*PAGED_ONLY, *CONTIGUOUS_ONLY):
            options[name] = None
        options["compaction"] = False
        options["prefix_cache"] = (named and not said.get("window_tokens")) if kind == "paged" else None
        if kind == "paged" and options["block_size"] == 1:
            options["block_size"] = _PAGE
    if kind == "buddy":
        options["compaction"], options["retain"] = False, None
    if said.get("prefix_cache", options["prefix_cache"]) is False:
        options |= {"evict": None, "reclaim": None, "pin_after": None, "pin_share": None}
    if said.get("pin_after", 1) is None:
        options["pin_share"] = None
    if said.get("lookahead", 1) is None:
        options["acceptance"] = None
    if said.get("transfer_share", 1) is None:
        options["transfer_seconds"] = None
    if said.get("window_tokens", 1) is None:
        options["window_pool_tokens"] = None


def _pool_tokens(text: str, before: int, token_bytes: int) -> int:
    """The size that `+20%`, `-20%`, `80%`, `120000` or `40GiB` means."""
    digits = text.lstrip("+-")
    try:
        if text.endswith("%"):
            share = float(digits[:-1]) / 100
            if "_" in text or len(text) - len(digits) > 1:
                raise ValueError
            factor = {"+": 1 + share, "-": 1 - share}.get(text[0], share)
            tokens = round(before * factor)
        elif digits.isdecimal() and digits == text:
            tokens = int(digits)
        elif token_bytes and digits == text:
            tokens = parse_size(text) // token_bytes
        else:
            raise ValueError
    except (ValueError, OverflowError, ConfigError):
        bytes_too = ", or bytes (40GiB)" if token_bytes else ""
        raise ConfigError(
            f"pool={text} is no size: write a change (+20%), a share (80%), tokens (120000){bytes_too}"
        ) from None
    if tokens < 1:
        raise ConfigError(f"pool={text} leaves no memory: the pool has {before:,} tokens, keep at least a block")
    return tokens


def _spelled(name: str) -> str:
    return name.replace("_", "-")

"""Options of `kvmon simulate` into configurations. Wiring only: each value is checked where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.allocators import AllocatorConfig
    from kvmon.serving.config import SchedulerConfig

__all__ = ["ENGINE_OPTIONS", "SECTIONS", "allocator_config", "capacity", "engine_options", "scheduler_config"]

_DEFAULT_BLOCK = {"paged": 16, "first-fit": 1, "best-fit": 1, "buddy": 1}
_SECOND = 1_000_000_000
_SHORTEST_TRANSFER_S, _LONGEST_TRANSFER_S = 1e-9, 1e9
_MOST_HOST_TOKENS = 1 << 31
_DIGITS = 18  # of a number that people type
_PAGED = ("evict", "reclaim", "pin_after", "pin_share", "window_tokens", "window_pool_tokens")
_CONTIGUOUS = ("reserve", "compaction", "retain")


@dataclass(frozen=True)
class _Given:
    """One option: its flag, its keywords for click, and the section it stands in."""

    section: str
    flag: str
    keywords: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.flag.partition("/")[0].removeprefix("--").replace("-", "_")


def _given(section: str, flag: str, help: str, **keywords: Any) -> _Given:
    return _Given(section, flag, {"help": help, **keywords})


_POOL, _CACHE, _SCHEDULER = "The pool", "Pages and their cache", "The scheduler"
_ALL = (
    _given(_POOL, "--allocator", "paged, first-fit, best-fit or buddy.", default="paged", show_default=True),
    _given(_POOL, "--capacity-tokens", "Size of the pool in tokens.", type=int),
    _given(_POOL, "--capacity-bytes", "Size of the pool, such as 40GiB or 40GB; needs --model-shape."),
    _given(
        _POOL,
        "--model-shape",
        "A known model (--shapes), LAYERS,KV_HEADS,HEAD_DIM,BYTES, or the path of its config.json.",
    ),
    _given(_POOL, "--block-size", "Tokens of a page or granule.  [default: paged 16, others 1]", type=int),
    _given(
        _POOL,
        "--reserve",
        "Contiguous: max (the longest it may become), pow2, oracle, or chunk:N (grow by N tokens).  [default: max]",
    ),
    _given(_POOL, "--compaction", "Contiguous: slide blocks together when no run is long enough.", is_flag=True),
    _given(_POOL, "--retain", "Contiguous: shared prefixes that stay behind for the next request.", type=int),
    _given(_POOL, "--quota", "CLASS=SHARE: most of the pool that a class may hold, such as 2=40%.", multiple=True),
    _given(
        _CACHE,
        "--prefix-cache/--no-prefix-cache",
        "Reuse equal prefixes.  [default: on; off with --window-tokens]",
        default=None,
    ),
    _given(_CACHE, "--evict", "Whose content goes first: lru, lfu or fifo.  [default: lru]"),
    _given(_CACHE, "--reclaim", "When content may go: on-demand, or idle (nobody runs).  [default: on-demand]"),
    _given(_CACHE, "--pin-after", "Pin content after so many hits; needs --pin-share.", type=int),
    _given(_CACHE, "--pin-share", "Most of the pool that pins may take, such as 10%."),
    _given(_CACHE, "--window-tokens", "A second group of layers with a sliding window.", type=int),
    _given(_CACHE, "--window-pool-tokens", "A pool of its own for that group.", type=int),
    _given(_SCHEDULER, "--max-seqs", "Most requests that hold memory.", type=int, default=256, show_default=True),
    _given(_SCHEDULER, "--token-budget", "Most tokens of a step.", type=int, default=2048, show_default=True),
    _given(_SCHEDULER, "--watermark", "Share of the pool kept free.", type=float, default=0.0, show_default=True),
    _given(_SCHEDULER, "--max-model-len", "Longest sequence.  [default: prompt + limit of each request]", type=int),
    _given(
        _SCHEDULER,
        "--admit-by",
        "What must fit at admission: the first chunk, the prompt, or the full length.",
        default="prompt",
        show_default=True,
    ),
    _given(_SCHEDULER, "--on-no-fit", "What does not fit may wait or refuse.", default="wait", show_default=True),
    _given(_SCHEDULER, "--on-never-fits", "What can never fit: refuse or wait.", default="refuse", show_default=True),
    _given(
        _SCHEDULER,
        "--on-growth-failure",
        "A running request that cannot grow: preempt the youngest, wait, or abort.",
        default="preempt",
        show_default=True,
    ),
    _given(_SCHEDULER, "--priority", "CLASS=LEVEL: lower levels first, such as 2=1.", multiple=True),
    _given(_SCHEDULER, "--host-tokens", "Swap preempted requests to a host tier of this size.", type=int),
    _given(_SCHEDULER, "--lookahead", "Draft tokens a step (speculative decoding).", type=int),
    _given(
        _SCHEDULER,
        "--acceptance",
        "Chance that a draft is accepted if all before it were; needs --lookahead.",
        type=float,
    ),
    _given(_SCHEDULER, "--transfer-share", "Share of requests whose memory is read by another engine.", type=float),
    _given(_SCHEDULER, "--transfer-seconds", "How long that takes.", type=float),
    _given(
        _SCHEDULER,
        "--step-time",
        "Constants of a step from `kvmon fit`.",
        type=click.Path(path_type=Path, readable=False),
    ),
)

#: Names of every option that describes an engine.
ENGINE_OPTIONS = tuple(option.name for option in _ALL)
#: Headings of the help page and what stands under them.
SECTIONS = {
    section: tuple(option.name for option in _ALL if option.section == section)
    for section in (_POOL, _CACHE, _SCHEDULER)
}


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option that describes an engine."""
    for option in reversed(_ALL):
        command = click.option(option.flag, **option.keywords)(command)
    return command


def capacity(options: Mapping[str, Any]) -> tuple[int, int]:
    """The pool's size in tokens, from the two ways to say it, and the bytes of a token (0 = not said)."""
    from kvmon.serving.model_shape import parse_model_shape
    from kvmon.units import parse_size

    tokens, size, shape = options["capacity_tokens"], options["capacity_bytes"], options["model_shape"]
    if (tokens is None) == (size is None):
        raise ConfigError("the pool needs one size: give --capacity-tokens, or --capacity-bytes with --model-shape")
    token_bytes = 0 if shape is None else parse_model_shape(shape)
    if tokens is not None:
        return int(tokens), token_bytes
    if shape is None:
        raise ConfigError("--capacity-bytes needs the bytes of a token: add --model-shape, such as 32,8,128,2")
    return parse_size(size) // token_bytes, token_bytes


def allocator_config(options: Mapping[str, Any], tokens: int) -> AllocatorConfig:
    """The allocator that the options describe; an option of another allocator is an error."""
    from kvmon.allocators import ContiguousConfig, PagedConfig, parse_reserve

    kind = options["allocator"]
    if kind not in _DEFAULT_BLOCK:
        raise ConfigError(f"'{kind}' is no allocator: choose {', '.join(_DEFAULT_BLOCK)}")
    foreign = _CONTIGUOUS if kind == "paged" else _PAGED
    for name in foreign:
        if options[name] not in (None, False):
            owner = "contiguous blocks" if kind == "paged" else "paged"
            raise ConfigError(f"--{name.replace('_', '-')} belongs to {owner}: leave it out with --allocator {kind}")
    block = _DEFAULT_BLOCK[kind] if options["block_size"] is None else options["block_size"]
    if block < 1:
        raise ConfigError(f"a block of {block} tokens is none: choose a block size of at least 1")
    quotas = tuple((class_id, _share(text, "--quota")) for class_id, text in _pairs(options["quota"], "--quota"))
    if kind != "paged":
        if options["prefix_cache"]:
            raise ConfigError("--prefix-cache belongs to paged: contiguous blocks share nothing in place, see --retain")
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
        raise ConfigError(f"--window-pool-tokens {pool} holds no page of {block}: enlarge it, or leave it out")
    cache = options["prefix_cache"]
    return PagedConfig(
        tokens // block,
        block,
        prefix_cache=not window if cache is None else cache,
        evict="lru" if options["evict"] is None else options["evict"],
        reclaim="on-demand" if options["reclaim"] is None else options["reclaim"],
        pin_after_hits=options["pin_after"] or 0,
        pin_share=_share(options["pin_share"], "--pin-share") if options["pin_share"] is not None else 0.0,
        quotas=quotas,
        window_tokens=window,
        window_pool_units=(pool or 0) // block,
    )


def scheduler_config(options: Mapping[str, Any]) -> SchedulerConfig:
    """The scheduler that the options describe."""
    from kvmon.serving.config import SchedulerConfig

    if options["lookahead"] and options["acceptance"] is None:
        raise ConfigError("drafts need the chance that one is accepted: add --acceptance, such as 0.7")
    seconds = options["transfer_seconds"]
    if (seconds is None) != (options["transfer_share"] is None):
        raise ConfigError("transfers need both: give --transfer-share and --transfer-seconds")
    if seconds is not None and not _SHORTEST_TRANSFER_S <= seconds < _LONGEST_TRANSFER_S:
        raise ConfigError(f"a transfer of {seconds:g} seconds is none: choose a nanosecond to 30 years")
    host = options["host_tokens"]
    if host is not None and not 1 <= host <= _MOST_HOST_TOKENS:
        raise ConfigError(f"a host tier of {host} tokens is none: choose 1 to {_MOST_HOST_TOKENS}")
    return SchedulerConfig(
        token_budget=options["token_budget"],
        max_sequences=options["max_seqs"],
        watermark=options["watermark"],
        max_model_len=options["max_model_len"],
        admit_by=options["admit_by"],
        on_no_fit=options["on_no_fit"],
        on_never_fits=options["on_never_fits"],
        on_growth_failure=options["on_growth_failure"],
        priorities=tuple(
            (class_id, _whole(text, "--priority")) for class_id, text in _pairs(options["priority"], "--priority")
        ),
        preemption="recompute" if host is None else "swap",
        host_tokens=host or 0,
        lookahead_tokens=options["lookahead"] or 0,
        acceptance=options["acceptance"] or 0.0,
        transfer_share=options["transfer_share"] or 0.0,
        transfer_ns=round((seconds or 0.0) * _SECOND),
    )


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

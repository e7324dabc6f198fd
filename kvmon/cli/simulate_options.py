"""Options of `kvmon simulate`; `kvmon.serving.options` makes configurations of them. Wiring only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kvmon.errors import ConfigError

__all__ = ["ENGINE_OPTIONS", "SECTIONS", "capacity", "engine_options"]


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

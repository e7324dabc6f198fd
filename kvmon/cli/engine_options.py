"""Options that describe a reference engine, into what builds one. Wiring only: each value is checked where it is used.

Invariant: an option of the other layout is refused by name, and the pool has one size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from kvmon.errors import ConfigError, SystemRefused
from kvmon.units import parse_size

__all__ = ["BUILDING", "SECTIONS", "build_options", "engine_options"]

BUILDING = "kvmon: building the engine ..."
"""Said while that takes long."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_TEXTS = ("model", "dtype", "reserve", "placement", "directory")
_SIZES = ("capacity_tokens", "capacity_bytes", "memory_share")
_PAGED, _CONTIGUOUS = ("no_prefix_cache",), ("reserve", "placement")

#: Headings of the help page and what stands under them.
SECTIONS = {
    "The model": ("model", "seed", "dtype", "device", "threads"),
    "The pool": (
        "layout",
        *_SIZES,
        "block_size",
        "no_prefix_cache",
        "reserve",
        "placement",
    ),
    "The scheduler": (
        "max_sequences",
        "token_budget",
        "max_model_len",
        "admit_by",
        "preemption",
        "host_tokens",
    ),
    "The recording": ("directory", "name"),
}

_OPTIONS = (
    click.option(
        "--model",
        metavar="DIR",
        help="A model directory of Hugging Face's layout.  [default: a small one with random weights]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Random weights, and answers that bring none."),
    click.option("--dtype", help="float32, bfloat16 or float16.  [default: the model's]"),
    click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto."),
    click.option(
        "--threads", type=int, help="Threads that the model computes with.  [default: as many as torch likes]"
    ),
    click.option("--layout", default="paged", show_default=True, help="paged or contiguous."),
    click.option("--capacity-tokens", type=int, help="Size of the pool in tokens.  [default: 16384]"),
    click.option("--capacity-bytes", help="Size of the pool, such as 4GiB or 4GB."),
    click.option(
        "--memory-share", type=float, help="Size of the pool as a share of the device's free memory, such as 0.5."
    ),
    click.option("--block-size", type=int, help="Tokens of a page or granule.  [default: 16]"),
    click.option("--no-prefix-cache", is_flag=True, help="Paged: do not reuse equal prefixes."),
    click.option(
        "--reserve",
        help="Contiguous: max (the longest it may become), pow2, or chunk:N (grow by N).  [default: chunk:64]",
    ),
    click.option("--placement", help="Contiguous: first-fit, best-fit or buddy.  [default: first-fit]"),
    click.option(
        "--max-sequences", type=int, default=64, show_default=True, help="Most answers that hold memory at once."
    ),
    click.option("--token-budget", type=int, default=2048, show_default=True, help="Most tokens of a step."),
    click.option(
        "--max-model-len", type=int, help="Longest prompt with its answer, in tokens.  [default: the model's]"
    ),
    click.option(
        "--admit-by",
        default="prompt",
        show_default=True,
        help="What must fit at admission: chunk (the first tokens), prompt, or full (all it may become).",
    ),
    click.option(
        "--preemption",
        default="recompute",
        show_default=True,
        help="What becomes of preempted tokens: recompute, or swap to the host.",
    ),
    click.option("--host-tokens", type=int, default=0, help="swap: size of the host's pool in tokens."),
    click.option(
        "--dir",
        "directory",
        metavar="DIR",
        help="Record into this directory; made if need be.  [env: KVMON_DIR; default: no recording]",
    ),
    click.option("--name", default="reference", show_default=True, help="The engine's name in the recording."),
)


def engine_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option that describes an engine."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def build_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `build_engine` from the options, without `threads`. Raises ConfigError."""
    options = {name: value for name, value in given.items() if name not in ("threads", "no_prefix_cache")}
    for name in _TEXTS:
        if options[name] == "":
            raise ConfigError(f"--{'dir' if name == 'directory' else name} is empty: give a value or leave it out")
    if not _NAME.fullmatch(options["name"]):
        raise ConfigError("--name is for files and labels: give up to 63 letters, digits, '.', '_' or '-'")
    if (options["preemption"] == "swap") != bool(options["host_tokens"]):
        raise ConfigError("--preemption swap and --host-tokens go together: give both or neither")
    layout = options["layout"]
    if layout not in ("paged", "contiguous"):
        raise ConfigError(f"'{layout}' is no layout: choose paged or contiguous")
    for name in _CONTIGUOUS if layout == "paged" else _PAGED:
        if given[name]:
            owner = "contiguous" if layout == "paged" else "paged"
            raise ConfigError(f"--{name.replace('_', '-')} belongs to {owner}: leave it out with --layout {layout}")
    if options["reserve"] == "oracle":
        raise ConfigError("nobody tells an engine how long an answer will be: reserve max, pow2 or chunk:N")
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device '{options['device']}' is unknown: choose auto, cpu or cuda")
    if not 0 <= options["seed"] < 2**63:
        raise ConfigError(f"a seed of {options['seed']} is none: choose 0 to {2**63 - 1}")
    sizes = [name for name in _SIZES if options[name] is not None]
    if len(sizes) > 1:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in sizes)
        raise ConfigError(f"the pool has one size, and there are {flags}: give one of them")
    if options["capacity_bytes"] is not None:
        options["capacity_bytes"] = parse_size(options["capacity_bytes"])
    options["prefix_cache"] = layout == "paged" and not given["no_prefix_cache"]
    options["model"] = Path(options["model"]) if options["model"] else None
    directory = options["directory"] or os.environ.get("KVMON_DIR")
    options["directory"] = Path(directory) if directory else None
    if options["directory"] is not None:
        _make(options["directory"])
    return options


def _make(directory: Path) -> None:
    """The recording directory, for its owner alone where it is not there. The probe would say nothing of it."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SystemRefused(
            f"cannot make the directory {directory} ({error.strerror}): give another to --dir"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SystemRefused(f"cannot write to the directory {directory}: give another to --dir")

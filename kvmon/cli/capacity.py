"""`kvmon capacity`: what a model's KV cache weighs, and how much of it a pool can hold.

Wiring only: `kvmon.serving.capacity` has the formulas, `kvmon.replay.capacity_run` runs a trace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.sections import SectionedCommand
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.replay.capacity_run import Ran
    from kvmon.serving import Workload
    from kvmon.serving.capacity import Lengths
    from kvmon.serving.gpu_memory import GpuMemory
    from kvmon.serving.model_shape import ModelShape

__all__ = ["command"]

_PAGES = "16,32,64,128"
_DRAWN = 10_000  # requests of a distribution of lengths
_AUTO = "auto"
_COMPILING = "simulating; the first run on a machine compiles for the better part of a minute"


@click.command(
    "capacity",
    cls=SectionedCommand,
    sections={
        "The model": ("shape", "config", "kv_dtype", "tensor_parallel"),
        "The pool of one GPU": ("capacity_bytes", "gpu_memory", "utilization", "weights", "other", "block_size"),
        "The requests": ("lengths", "length", "prefix", "trace_format", "limit", "max_seqs"),
        "Output": ("as_json", "help"),
    },
)
@click.argument("trace", required=False, type=click.Path(path_type=Path, readable=False))
@click.option("--model-shape", "shape", help="A known model ('kvmon simulate --shapes'), or LAYERS,KV_HEADS,DIM,BYTES.")
@click.option(
    "--config", type=click.Path(path_type=Path, readable=False), help="The model's config.json, or its directory."
)
@click.option("--kv-dtype", help="Type of the cache's elements: fp8, int8, fp16, bf16, fp32.  [default: the model's]")
@click.option("--tensor-parallel", type=int, default=1, show_default=True, help="GPUs that share the model's heads.")
@click.option("--capacity-bytes", help="The pool of one GPU as the engine reports it, such as 40GiB.")
@click.option("--gpu-memory", help="Or all memory of one GPU, such as 80GiB; needs --weights.")
@click.option("--utilization", type=float, help="The share of it that the engine takes.  [default: 0.9]")
@click.option("--weights", help="Bytes of the model's weights, such as 15GiB; auto: of the files beside --config.")
@click.option("--other", help="Bytes of activations, graphs and others on one GPU.  [default: not taken off]")
@click.option(
    "--block-size", "block_size", default=_PAGES, show_default=True, help="Tokens of a page, several to compare."
)
@click.option("--lengths", help="Lengths of requests: a name, or PROMPT/OUTPUT ('kvmon workload --list').")
@click.option("--length", type=int, help="Also requests of so many tokens, such as the longest allowed.")
@click.option("--prefix", type=int, help="A prefix of so many tokens that requests share.")
@click.option("--format", "trace_format", help="mooncake, azure or csv; without it, the first line decides.")
@click.option("--limit", type=int, help="Only the first N requests of the trace.")
@click.option("--max-seqs", type=int, default=256, show_default=True, help="Trace: most requests that hold memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, /, trace: Path | None, as_json: bool, **options: Any) -> None:
    """Say what a token of a model weighs, and how many tokens and requests a pool holds, by page size.

    With lengths, from --lengths or from TRACE: how many requests fit at once, what is lost in unfilled pages, and how
    much of a shared prefix can be found again. TRACE is also run, as it arrived, through scheduler and allocator, so
    that preemptions and failures are seen; `kvmon simulate` has more options for that.

    A model that is not known is refused: state-space layers, shared layers and compressed caches have formulas of their
    own. What --gpu-memory leaves is an upper bound: only the engine knows what activations and graphs take, so where it
    has told the size of its pool, give that.
    """
    from kvmon.cli.capacity_output import as_text, described
    from kvmon.serving.capacity import plan

    _check(context, trace, options)
    shape = _shape(options)
    memory = _memory(options)
    pool = _pool(options, memory)
    pages = _block_sizes(options["block_size"])
    shards = options["tensor_parallel"]
    workload = None if trace is None else _workload(trace, options)
    lengths = _lengths(options["lengths"], workload)
    plans = [] if pool is None else [plan(shape, pool, page, shards=shards) for page in pages]
    ran = [] if workload is None or pool is None else _run(shape, workload, pool, pages, options)
    said = described(
        shape.on_one_of(shards), shape, shards, pages, plans, lengths, ran, memory,
        length=options["length"], prefix=options["prefix"], max_seqs=options["max_seqs"],
        trace=None if trace is None else trace.name,
    )  # fmt: skip
    click.echo(json.dumps(said, indent=2) if as_json else as_text(said))


def _check(context: click.Context, trace: Path | None, options: dict[str, Any]) -> None:
    """Refuse options that say the same twice, and those that would be ignored."""
    if (options["shape"] is None) == (options["config"] is None):
        raise ConfigError("the model needs one description: give --model-shape, such as llama-3.1-8b, or --config")
    if options["capacity_bytes"] is not None and options["gpu_memory"] is not None:
        raise ConfigError("the pool needs one size: give --capacity-bytes, or --gpu-memory with --weights")
    if options["gpu_memory"] is None:
        for name in ("utilization", "weights", "other"):
            if options[name] is not None:
                raise ConfigError(f"--{name} belongs to --gpu-memory: leave it out, or give that")
    elif options["weights"] is None:
        raise ConfigError(
            "--gpu-memory needs what the weights take: add --weights, such as 15GiB, or auto with --config"
        )
    if trace is not None and options["lengths"] is not None:
        raise ConfigError("a trace brings its own lengths: leave out --lengths")
    if trace is None:
        for name, flag in (("limit", "--limit"), ("trace_format", "--format"), ("max_seqs", "--max-seqs")):
            if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
                raise ConfigError(f"{flag} belongs to a trace: give one, or leave it out")
    elif options["capacity_bytes"] is None and options["gpu_memory"] is None:
        raise ConfigError("a trace runs through a pool: give --capacity-bytes, or --gpu-memory with --weights")
    for name in ("length", "prefix", "max_seqs"):
        if options[name] is not None and options[name] < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]} is none: give at least 1")


def _shape(options: dict[str, Any]) -> ModelShape:
    from kvmon.serving.model_shape import model_shape, shape_of_config
    from kvmon.serving.model_shape.known import ELEMENT_BYTES

    path, kind = options["config"], options["kv_dtype"]
    if kind is not None and kind not in ELEMENT_BYTES:
        raise ConfigError(f"'{kind}' is no type of a cache: choose {', '.join(ELEMENT_BYTES)}")
    size = None if kind is None else ELEMENT_BYTES[kind]
    if path is not None:
        shape = shape_of_config(path / "config.json" if path.is_dir() else path, size)
    else:
        shape = model_shape(options["shape"])
    if size is None or (shape.element_bytes == size and shape.name.endswith(f"-{kind}")):
        return shape
    return shape.with_element_bytes(size, kind)


def _memory(options: dict[str, Any]) -> GpuMemory | None:
    from kvmon.serving.gpu_memory import GpuMemory, weights_of
    from kvmon.units import parse_size

    if options["gpu_memory"] is None:
        return None
    text = options["weights"]
    if text == _AUTO:
        path = options["config"]
        if path is None:
            raise ConfigError("--weights auto reads the files beside --config: give that, or the bytes")
        weights = weights_of(path if path.is_dir() else path.parent)
    else:
        weights = parse_size(text)
    return GpuMemory(
        parse_size(options["gpu_memory"]),
        0.9 if options["utilization"] is None else options["utilization"],
        -(-weights // max(options["tensor_parallel"], 1)),
        0 if options["other"] is None else parse_size(options["other"]),
    )


def _pool(options: dict[str, Any], memory: GpuMemory | None) -> int | None:
    from kvmon.units import parse_size

    if memory is not None:
        return memory.pool
    return None if options["capacity_bytes"] is None else parse_size(options["capacity_bytes"])


def _block_sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise ConfigError(f"--block-size '{text}' is no list of page sizes: write tokens, such as 16,32,64")
    return sorted({int(part) for part in parts})


def _workload(trace: Path, options: dict[str, Any]) -> Workload:
    from kvmon.serving.traces import read_trace

    workload = read_trace(trace, options["trace_format"])
    return workload if options["limit"] is None else workload.first(options["limit"])


def _lengths(text: str | None, workload: Workload | None) -> Lengths | None:
    """Lengths of the trace, or drawn from distributions, always the same ones."""
    import numpy as np

    from kvmon.serving.capacity import Lengths
    from kvmon.serving.workloads.lengths import parse_lengths

    if workload is not None:
        return Lengths(workload.prompt_tokens.astype(np.int64), workload.output_tokens.astype(np.int64))
    if text is None:
        return None
    asked, random = parse_lengths(text), np.random.default_rng(0)
    prompt = np.minimum(asked.prompt.draw(random, _DRAWN), asked.max_tokens - 1)
    output = np.minimum(asked.output.draw(random, _DRAWN), asked.max_tokens - prompt)
    return Lengths(prompt, output)


def _run(shape: ModelShape, workload: Workload, pool: int, pages: list[int], options: dict[str, Any]) -> list[Ran]:
    """The trace through each page size. A pool of two groups of layers is not simulated."""
    from rich.console import Console

    from kvmon.allocators import PagedConfig
    from kvmon.replay.capacity_run import run_capacity
    from kvmon.serving import SchedulerConfig
    from kvmon.serving.scenarios import Setup

    one = shape.on_one_of(options["tensor_parallel"])
    if one.window_layers:
        return []
    scheduler = SchedulerConfig(max_sequences=options["max_seqs"])
    done = []
    with Console(stderr=True).status(_COMPILING):
        for page in pages:
            allocator = PagedConfig(pool // (page * one.bytes_per_token), page)
            done.append(run_capacity(Setup(workload, allocator, scheduler, token_bytes=one.bytes_per_token)))
    return done

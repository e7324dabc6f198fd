"""`kvmon simulate`: a request trace under an allocator, as fast as the machine computes it.

Wiring only: options into configurations, a result onto the terminal. Nothing heavy is imported before the verb runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.allocators import AllocatorConfig
    from kvmon.simulate import Result

__all__ = ["command"]

_DEFAULT_BLOCK = {"paged": 16, "first-fit": 1}


@click.command("simulate")
@click.argument("trace", type=click.Path(path_type=Path, readable=False))
@click.option("--format", "trace_format", help="mooncake, azure or csv; without it, the first line decides.")
@click.option("--allocator", default="paged", show_default=True, help="paged or first-fit.")
@click.option(
    "--reserve", help="first-fit: max (for the longest output) or chunk:N (grow by N tokens).  [default: max]"
)
@click.option("--block-size", type=int, help="Tokens of a page or granule.  [default: paged 16, first-fit 1]")
@click.option("--capacity-tokens", type=int, help="Size of the pool in tokens.")
@click.option("--capacity-bytes", help="Size of the pool, such as 40GiB; needs --model-shape.")
@click.option("--model-shape", help="LAYERS,KV_HEADS,HEAD_DIM,BYTES or a known model, such as llama-3.1-8b.")
@click.option("--prefix-cache/--no-prefix-cache", default=None, help="paged: reuse equal prefixes.  [default: on]")
@click.option("--max-seqs", type=int, default=256, show_default=True, help="Most requests that hold memory at once.")
@click.option("--token-budget", type=int, default=2048, show_default=True, help="Most tokens of a step.")
@click.option("--watermark", type=float, default=0.0, show_default=True, help="Share of the pool kept free.")
@click.option(
    "--max-model-len", type=int, help="Longest sequence in tokens.  [default: prompt + limit of each request]"
)
@click.option("--on-no-fit", default="wait", show_default=True, help="A request that does not fit may wait or refuse.")
@click.option(
    "--on-growth-failure",
    default="preempt",
    show_default=True,
    help="A running request that cannot grow: preempt the youngest, wait, or abort.",
)
@click.option("--limit", type=int, help="Only the first N requests of the trace.")
@click.option(
    "--out", type=click.Path(path_type=Path, readable=False), help="Write every event of the run into this capture."
)
@click.option("--force", is_flag=True, help="Replace the capture if it is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    trace: Path,
    trace_format: str | None,
    allocator: str,
    reserve: str | None,
    block_size: int | None,
    capacity_tokens: int | None,
    capacity_bytes: str | None,
    model_shape: str | None,
    prefix_cache: bool | None,
    max_seqs: int,
    token_budget: int,
    watermark: float,
    max_model_len: int | None,
    on_no_fit: str,
    on_growth_failure: str,
    limit: int | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run the requests of TRACE through a scheduler and an allocator and say what the memory did.

    TRACE is Mooncake's JSON lines, Azure's CSV, or a CSV with the header
    arrival_s,prompt_tokens,output_tokens[,class,limit,prefix_id,prefix_tokens]. Time is simulated: 6 ms a step, 30 us a
    prompt token, 20 us a decoding sequence and 40 ns a token of context, an 8-billion-parameter model on one H100.
    """
    from rich.console import Console

    from kvmon.cli.record import simulate_into_capture
    from kvmon.serving.config import SchedulerConfig
    from kvmon.serving.traces import read_trace
    from kvmon.simulate import simulate

    if force and out is None:
        raise ConfigError("--force replaces a capture: it goes with --out")
    tokens, token_bytes = _capacity_tokens(capacity_tokens, capacity_bytes, model_shape, recorded=out is not None)
    pool = _allocator(allocator, reserve, block_size, tokens, prefix_cache)
    scheduler = SchedulerConfig(
        token_budget=token_budget,
        max_sequences=max_seqs,
        watermark=watermark,
        max_model_len=max_model_len,
        on_no_fit=on_no_fit,
        on_growth_failure=on_growth_failure,
    )
    with Console(stderr=True).status("simulating; the first run on a machine compiles for half a minute"):
        workload = read_trace(trace, trace_format)
        if limit is not None:
            workload = workload.first(limit)
        if out is None:
            result = simulate(workload, pool, scheduler)
        else:
            result = simulate_into_capture(workload, pool, scheduler, out, token_bytes=token_bytes, force=force)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    else:
        _print(result, f"{trace.name}, {allocator}, {pool.capacity_units} units of {pool.unit_tokens} tokens")


def _capacity_tokens(tokens: int | None, size: str | None, shape: str | None, *, recorded: bool) -> tuple[int, int]:
    """The pool's size in tokens, from the two ways to say it, and the bytes of a token (0 = not said)."""
    from kvmon.serving.model_shape import parse_model_shape
    from kvmon.units import parse_size

    if (tokens is None) == (size is None):
        raise ConfigError("the pool needs one size: give --capacity-tokens, or --capacity-bytes with --model-shape")
    token_bytes = 0 if shape is None else parse_model_shape(shape)
    if tokens is not None:
        if shape is not None and not recorded:
            raise ConfigError(
                "--model-shape says nothing beside --capacity-tokens: leave it out, or give --capacity-bytes or --out"
            )
        return tokens, token_bytes
    if shape is None:
        raise ConfigError("--capacity-bytes needs the bytes of a token: add --model-shape, such as 32,8,128,2")
    return parse_size(size or "") // token_bytes, token_bytes


def _allocator(
    kind: str, reserve: str | None, block_size: int | None, tokens: int, prefix_cache: bool | None
) -> AllocatorConfig:
    """The allocator that the options describe; an option of another allocator is an error."""
    from kvmon.allocators import ContiguousConfig, PagedConfig, parse_reserve

    if kind not in _DEFAULT_BLOCK:
        raise ConfigError(f"'{kind}' is no allocator: choose paged or first-fit")
    block = _DEFAULT_BLOCK[kind] if block_size is None else block_size
    if block < 1:
        raise ConfigError(f"a block of {block} tokens is none: choose a block size of at least 1")
    if kind == "paged":
        if reserve is not None:
            raise ConfigError("--reserve belongs to first-fit: pages are given as they fill")
        return PagedConfig(tokens // block, block, prefix_cache is not False)
    if prefix_cache:
        raise ConfigError("--prefix-cache belongs to paged: contiguous blocks share nothing")
    return ContiguousConfig(tokens // block, block, parse_reserve(reserve or "max"))


def _print(result: Result, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from kvmon.units import format_count, format_duration, format_ratio

    def ratio(value: float | None) -> str:
        return "-" if value is None else format_ratio(value)

    def seconds(value: float | None) -> str:
        return "-" if value is None else format_duration(value)

    hits = result.prefix_hit_tokens / result.prefix_lookup_tokens if result.prefix_lookup_tokens else None
    failures = ", ".join(f"{name} {format_count(count)}" for name, count in result.allocation_failures.items())
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("requests completed", f"{format_count(result.completed)} of {format_count(result.requests)}"),
        ("refused / aborted / unfinished", f"{result.refused} / {result.errors} / {result.unfinished}"),
        ("waits and refusals for memory", failures or "none"),
        ("  at start / in mid-stream", f"{result.failures_at_start} / {result.failures_mid_stream}"),
        ("preemptions", format_count(result.preemptions)),
        ("evictions", format_count(result.evictions)),
        ("prefix tokens found", ratio(hits)),
        ("slots in use that hold tokens", ratio(result.page_utilization_ratio)),
        ("  unfilled tail / reserved", f"{ratio(result.tail_waste_ratio)} / {ratio(result.reserved_ratio)}"),
        ("external fragmentation", ratio(result.external_fragmentation_ratio)),
        ("most units in use", f"{format_count(result.peak_active_units)} of {format_count(result.capacity_units)}"),
        ("time to first token p50 / p99", f"{seconds(result.ttft_p50_s)} / {seconds(result.ttft_p99_s)}"),
        ("simulated / wall time", f"{seconds(result.duration_s)} / {seconds(result.wall_seconds)}"),
    ):
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(title, style="bold")
    console.print(table)
    console.print(_sentence(result))


def _sentence(result: Result) -> str:
    """What the numbers say, in one sentence."""
    if result.deadlock:
        return (
            f"Deadlock: {result.unfinished} requests hold or want memory and none can go on; "
            "allow preemption or enlarge the pool."
        )
    failures = result.allocation_failures
    if not failures and not result.preemptions:
        return "Memory never kept a request waiting."
    worst = max(failures, key=lambda name: failures[name]) if failures else "exhausted"
    if worst == "exhausted" and (result.reserved_ratio or 0) >= 0.1:
        return "Memory was short while much of it was reserved and never written: grow in chunks, or use pages."
    if worst == "exhausted" and (result.tail_waste_ratio or 0) >= 0.1:
        return "Memory was short while much of it was the unfilled rest of pages: choose smaller pages."
    return {
        "no_contiguous_run": "Fragmentation kept requests waiting: enough was free, but in no single run.",
        "never_fits": "Some requests could never fit: enlarge the pool or limit the length of requests.",
        "watermark": "The watermark kept requests waiting while memory was left: lower it or enlarge the pool.",
    }.get(worst, "Memory was short: enlarge the pool, or let fewer requests in at once.")

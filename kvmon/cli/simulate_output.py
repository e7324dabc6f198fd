"""What `kvmon simulate` prints: a table and a sentence for one run, a table of runs side by side, the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmon.serving.model_shape import ModelShape
    from kvmon.serving.scenarios import Scenario
    from kvmon.simulate import Result

__all__ = [
    "comparison",
    "conclusion",
    "print_catalogue",
    "print_comparison",
    "print_result",
    "print_scenario",
    "print_shapes",
]

_NAMES = 40  # width of the names, so that two runs can be read side by side
_MUCH = 0.1  # a share of the slots worth a word
_STORM = 3.0  # preemptions a request


def print_result(result: Result, title: str, token_bytes: int = 0) -> None:
    """A table of what happened, and what it means; `token_bytes` 0: the bytes of a token are not known."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe
    from kvmon.units import format_duration, format_ratio

    def ratio(value: float | None) -> str:
        return "-" if value is None else format_ratio(value)

    def seconds(value: float | None) -> str:
        return "-" if value is None else format_duration(value)

    hits = result.prefix_hit_tokens / result.prefix_lookup_tokens if result.prefix_lookup_tokens else None
    failures = ", ".join(f"{name} {count:,}" for name, count in result.allocation_failures.items())
    states = ", ".join(f"{state} {units:,}" for state, units in result.units_at_end.items() if units)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(min_width=_NAMES, no_wrap=True)
    table.add_column()
    for name, value in (
        *_rows_of_pool(result, token_bytes),
        ("requests completed", f"{result.completed:,} of {result.requests:,}"),
        (
            "refused / failed / hung up / unfinished",
            f"{result.refused:,} / {result.errors:,} / {result.aborted:,} / {result.unfinished:,}",
        ),
        ("failed allocations, once a wait", failures or "none"),
        ("  at start / in mid-stream", f"{result.failures_at_start:,} / {result.failures_mid_stream:,}"),
        ("preemptions / tokens computed again", f"{result.preemptions:,} / {result.recomputed_tokens:,}"),
        ("units of cached content dropped", f"{result.evictions:,}"),
        ("prefix tokens found", ratio(hits)),
        ("slots of held units that are written", ratio(result.page_utilization_ratio)),
        ("  unfilled tail / reserved", f"{ratio(result.tail_waste_ratio)} / {ratio(result.reserved_ratio)}"),
        *_rows_of_placement(result),
        ("most units that requests held", _amount(result, result.peak_active_units, token_bytes)),
        ("units at the end", states),
        ("time to first token p50 / p99", f"{seconds(result.ttft_p50_s)} / {seconds(result.ttft_p99_s)}"),
        *_rows_of_options(result),
        ("simulated / wall time", f"{seconds(result.duration_s)} / {seconds(result.wall_seconds)}"),
    ):
        table.add_row(name, value)
    console = QuietPipe(highlight=False)
    console.print(title, style="bold")
    console.print(table)
    console.print(conclusion(result))


def _rows_of_pool(result: Result, token_bytes: int) -> list[tuple[str, str]]:
    """What the units of the pool are worth, where a token has known bytes."""
    from kvmon.units import format_bytes

    if not token_bytes:
        return []
    tokens = result.capacity_units * result.unit_tokens
    return [("the pool", f"{format_bytes(tokens * token_bytes)}, {tokens:,} tokens of {token_bytes:,} B")]


def _amount(result: Result, units: int, token_bytes: int) -> str:
    """So many units of the pool, as a share, and in bytes where those are known."""
    from kvmon.units import format_bytes, format_ratio

    said = f"{units:,} of {result.capacity_units:,} ({format_ratio(units / result.capacity_units)})"
    return f"{said}, {format_bytes(units * result.unit_tokens * token_bytes)}" if token_bytes else said


def _rows_of_placement(result: Result) -> list[tuple[str, str]]:
    """Rows about where blocks lie, which means nothing in pages."""
    from kvmon.units import format_ratio

    if result.external_fragmentation_ratio is None:
        return []
    rows = [("external fragmentation, 1 - L/F", format_ratio(result.external_fragmentation_ratio))]
    free, largest = result.free_at_fragmentation_ratio, result.largest_at_fragmentation_ratio
    if free is not None and largest is not None:
        rows.append(("  at such failures: free, largest of it", f"{format_ratio(free)}, {format_ratio(largest)}"))
    return rows


def _rows_of_options(result: Result) -> list[tuple[str, str]]:
    """Rows about what most runs do not have."""
    rows = []
    if result.relocations:
        rows.append(("moves / tokens copied", f"{result.relocations:,} / {result.copied_tokens:,}"))
    if result.compactions:
        rows.append(("compactions / tokens copied", f"{result.compactions:,} / {result.compacted_tokens:,}"))
    if result.swapped_out_tokens or result.swaps_refused:
        swapped = f"{result.swapped_out_tokens:,} / {result.swapped_in_tokens:,} / {result.swaps_refused:,}"
        rows.append(("tokens swapped out / in / swaps refused", swapped))
    if result.draft_tokens:
        rows.append(("draft tokens accepted", f"{result.accepted_tokens:,} of {result.draft_tokens:,}"))
    if result.transfers:
        rows.append(("transfers / never over", f"{result.transfers:,} / {result.stranded_transfers:,}"))
    if result.leaked_units or result.twice_freed_units:
        rows.append(("units leaked / freed twice", f"{result.leaked_units:,} / {result.twice_freed_units:,}"))
    return rows


def conclusion(result: Result) -> str:
    """What the numbers of a run say, in one sentence: its totals are no diagnosis, but its faults come first."""
    failures, units = result.allocation_failures, result.units_at_end
    worst = max(failures, key=lambda name: failures[name]) if failures else ""
    if result.leaked_units:
        return f"The allocator leaks: {result.leaked_units:,} units are held for requests that have ended."
    if result.twice_freed_units:
        return f"The allocator gave {result.twice_freed_units:,} units back twice: others may hold them by now."
    if result.stranded_transfers:
        held = f"{units['deferred']:,} units" if units["deferred"] else "their units"
        return f"{result.stranded_transfers:,} transfers never ended and kept {held}: give transfers a timeout."
    if result.deadlock:
        return _stuck(result)
    if not failures and not result.preemptions:
        if result.errors:
            return f"{_requests(result.errors)} died of an error, and not for want of KV memory."
        return "Memory never kept a request waiting."
    if result.preemptions >= _STORM * result.requests:
        again = result.recomputed_tokens / max(result.computed_tokens, 1)
        return (
            f"Requests preempted each other, {result.preemptions / result.requests:.0f} times each, and {again:.0%} of "
            "the tokens were computed again: admit by the full need."
        )
    lost = result.refused + result.errors
    did = f"made {_requests(lost)} fail" if lost else "kept requests waiting"
    if worst == "exhausted" and (result.reserved_ratio or 0) >= _MUCH:
        return "Memory was short while much of it was reserved and never written: grow in chunks, or use pages."
    if worst == "exhausted" and (result.tail_waste_ratio or 0) >= _MUCH:
        return "Memory was short while much of it was the unfilled rest of pages: choose smaller pages."
    return {
        "no_contiguous_run": f"Fragmentation {did}: enough was free, but in no single run.",
        "never_fits": "Some requests could never fit: enlarge the pool, limit their length, or reserve less for each.",
        "watermark": "Admission held requests back with memory left: lower the watermark, or admit by the prompt.",
        "all_pinned": f"Pinned content {did}: lower the cap of the pins.",
        "partition_full": f"A quota {did} with memory left: raise it if its class should not.",
        "pool_starved": "The window group's own pool was short while the other one had room: enlarge it.",
        "evictable_not_reclaimed": f"Unused content {did} because nobody evicted it: reclaim on demand.",
    }.get(worst, f"Memory was short and {did}: enlarge the pool, or let fewer requests in at once.")


def _stuck(result: Result) -> str:
    """Why nothing can go on: the reason that holds for ever, where a failure named one."""
    who = f"Deadlock: {_requests(result.running_at_end)} with memory, {result.waiting_at_end:,} waiting, none can go on"
    if "pool_starved" in result.allocation_failures:
        return f"{who}: the window group's own pool is too small for a request; enlarge it."
    if "never_fits" in result.allocation_failures:
        return f"{who}: a request that can never fit waits before them; refuse it, or enlarge the pool."
    return f"{who}; allow preemption, admit by the full need, or enlarge the pool."


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count:,} requests"


def print_scenario(scenario: Scenario, seed: int, drawn: Mapping[str, float | int]) -> None:
    """What the run stands for."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("traffic", scenario.traffic)
    if scenario.cured:
        table.add_row("with the cure", scenario.avoids)
        table.add_row("may show", " or ".join(f"[bold]{verdict}[/bold]" for verdict in scenario.healthy))
    else:
        table.add_row("operator sees", scenario.sees)
        table.add_row("avoided by", scenario.avoids)
        table.add_row("stands for", f"[bold]{scenario.verdict}[/bold]")
    if drawn:
        values = {name: f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for name, value in drawn.items()}
        table.add_row(f"seed {seed}", "; ".join(f"{name} {value}" for name, value in values.items()))
    console = QuietPipe(highlight=False)
    console.print(scenario.name, style="bold")
    console.print(table)
    console.print()


def print_catalogue(scenarios: Mapping[str, Scenario]) -> None:
    """Every scenario in a line or two; each has a twin with the cure."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scenario", no_wrap=True)
    table.add_column("stands for", no_wrap=True)
    table.add_column("traffic")
    for scenario in scenarios.values():
        table.add_row(scenario.name, scenario.verdict, scenario.traffic, style=None)
    console = QuietPipe(highlight=False)
    console.print(table)
    console.print("\nEach has a twin with the cure, NAME-healthy. What is seen and what avoids it: --list --json")
    console.print("Run one: kvmon simulate --scenario NAME --seed N")


def print_shapes(models: Mapping[str, ModelShape]) -> None:
    """What a token weighs in each known model."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("bytes a token", justify="right")
    table.add_column("and of the last tokens")
    for name, shape in models.items():
        window = f"{shape.window_bytes_per_token:,} of the last {shape.window_tokens:,}" if shape.window_layers else ""
        table.add_row(name, f"{shape.bytes_per_token:,}", window)
    console = QuietPipe(highlight=False)
    console.print(table)
    console.print(
        "\nKeys and values of 16 bits; NAME-fp8, -int8 or -fp32 for others. A model with a window\n"
        "has no fixed bytes a token: give the pool's size in tokens, or\n"
        "LAYERS,KV_HEADS,HEAD_DIM,BYTES of the layers that it holds."
    )


def comparison(results: Mapping[str, Result]) -> list[dict[str, object]]:
    """Per cent of the memory by policy while somebody waits, and the mean batch: the rows of PagedAttention's
    figure 2."""
    rows: list[dict[str, object]] = []
    for policy, result in results.items():
        full = result.while_waiting
        row: dict[str, object] = {"policy": policy}
        if full is not None:
            row |= {
                "token": round(100 * full.written_ratio, 2),
                "reserved": round(100 * full.used_later_ratio, 2),
                "internal": round(100 * full.never_used_ratio, 2),
                "external": round(100 * full.free_ratio, 2),
                "batch": round(full.batch, 2),
            }
        rows.append(row)
    return rows


def print_comparison(results: Mapping[str, Result], published: Mapping[str, tuple[float | None, ...]]) -> None:
    """The rows of `comparison` beside the published figures."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy")
    for heading in ("token states", "reserved", "internal", "external", "batch"):
        table.add_column(heading, justify="right")
    for row in comparison(results):
        policy = str(row["policy"])
        cells = [f"{row[name]:.1f} %" for name in ("token", "reserved", "internal", "external") if name in row]
        table.add_row(policy, *cells, f"{row['batch']:.1f}" if "batch" in row else "-")
        paper = published[policy]
        table.add_row(
            "  published",
            *("" if value is None else f"{value:.1f} %" for value in paper[:4]),
            "" if paper[4] is None else f"{paper[4]:.1f}",
            style="dim",
        )
    console = QuietPipe(highlight=False)
    console.print(table)
    console.print(
        "Shares of the KV memory while requests wait. token states: keys and values; reserved: to be written; "
        "internal: reserved and never written; external: asked for by nobody; batch: requests that run."
    )

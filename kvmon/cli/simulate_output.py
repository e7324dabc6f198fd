"""What `kvmon simulate` prints: a table and a sentence for one run, a table of runs side by side, the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmon.serving.scenarios import Scenario
    from kvmon.simulate import Result

__all__ = ["comparison", "print_catalogue", "print_comparison", "print_result", "print_scenario"]


def print_result(result: Result, title: str) -> None:
    """A table of what happened, and what it means."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe
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
        (
            "refused / failed / hung up / unfinished",
            f"{result.refused} / {result.errors} / {result.aborted} / {result.unfinished}",
        ),
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
        *_rows_of_options(result),
        ("simulated / wall time", f"{seconds(result.duration_s)} / {seconds(result.wall_seconds)}"),
    ):
        table.add_row(name, value)
    console = QuietPipe(highlight=False)
    console.print(title, style="bold")
    console.print(table)
    console.print(_sentence(result))


def _rows_of_options(result: Result) -> list[tuple[str, str]]:
    """Rows about what most runs do not have."""
    from kvmon.units import format_count

    rows = []
    if result.relocations:
        rows.append(
            ("moves / tokens copied", f"{format_count(result.relocations)} / {format_count(result.copied_tokens)}")
        )
    if result.compactions:
        tokens = format_count(result.compacted_tokens)
        rows.append(("compactions / tokens copied", f"{format_count(result.compactions)} / {tokens}"))
    if result.swapped_out_tokens or result.swaps_refused:
        swapped = f"{format_count(result.swapped_out_tokens)} / {format_count(result.swapped_in_tokens)}"
        rows.append(("tokens swapped out / in / swaps refused", f"{swapped} / {result.swaps_refused}"))
    if result.draft_tokens:
        accepted = f"{format_count(result.accepted_tokens)} of {format_count(result.draft_tokens)}"
        rows.append(("draft tokens accepted", accepted))
    if result.transfers:
        rows.append(("transfers / never over", f"{format_count(result.transfers)} / {result.stranded_transfers}"))
    if result.leaked_units or result.twice_freed_units:
        rows.append(("units leaked / freed twice", f"{result.leaked_units} / {result.twice_freed_units}"))
    return rows


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
        "watermark": "A promise kept requests waiting with memory left: lower the watermark or admit by the prompt.",
        "all_pinned": "Pinned content kept requests waiting: lower the cap of the pins.",
        "partition_full": "A quota kept requests of its class waiting with memory left: raise it if they should not.",
        "pool_starved": "The window group's own pool was short while the other one had room: enlarge it.",
        "evictable_not_reclaimed": "Unused content kept requests waiting because nobody evicted it: reclaim on demand.",
    }.get(worst, "Memory was short: enlarge the pool, or let fewer requests in at once.")


def print_scenario(scenario: Scenario, seed: int, drawn: Mapping[str, float | int]) -> None:
    """What the run stands for."""
    from rich.table import Table

    from kvmon.cli.console import QuietPipe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("traffic", scenario.traffic)
    table.add_row("operator sees", scenario.sees)
    table.add_row("avoided by", scenario.avoids)
    table.add_row("verdict", f"[bold]{scenario.verdict}[/bold]")
    if drawn:
        table.add_row(f"seed {seed}", ", ".join(f"{name} {value:,}" for name, value in drawn.items()))
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
    table.add_column("verdict", no_wrap=True)
    table.add_column("traffic")
    for scenario in scenarios.values():
        table.add_row(scenario.name, scenario.verdict, scenario.traffic, style=None)
    console = QuietPipe(highlight=False)
    console.print(table)
    console.print("\nEach has a twin with the cure: NAME-healthy. Run one: kvmon simulate --scenario NAME --seed N")


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
        "Shares of the KV memory while requests wait. internal: reserved and never used; external: asked for by nobody."
    )

"""What `kvmon capacity` says: one object for machines, and the same in 80 columns for people.

Invariant: the text is drawn from the object; a number that is not known is None there and a dash here.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

from kvmon.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from kvmon.replay.capacity_run import Ran
    from kvmon.serving.capacity import Lengths, Plan
    from kvmon.serving.gpu_memory import GpuMemory
    from kvmon.serving.model_shape import ModelShape

__all__ = ["SCHEMA", "as_text", "described"]

SCHEMA = 1
_WIDTH = 80


def described(
    one: ModelShape,
    whole: ModelShape,
    shards: int,
    pages: Sequence[int],
    plans: Sequence[Plan],
    lengths: Lengths | None,
    ran: Sequence[Ran],
    memory: GpuMemory | None,
    *,
    length: int | None,
    prefix: int | None,
    max_seqs: int,
    trace: str | None,
) -> dict[str, Any]:
    """Everything that was found. `one` is what a GPU holds of the model, `whole` all of it."""
    from kvmon.serving.capacity import tail_ratio

    rows: list[dict[str, Any]] = []
    for place, page in enumerate(pages):
        row: dict[str, Any] = {"page_tokens": page, "page_bytes": page * one.bytes_per_token or None}
        row["window_page_bytes"] = page * one.window_bytes_per_token or None
        if plans:
            made = plans[place]
            row |= made.as_json()
            if length is not None:
                row["requests_at_length"] = made.requests_of(length)
            if lengths is not None:
                row["requests_at_mean"] = made.requests_of(lengths.mean)
                row["requests_at_p95"] = made.requests_of(lengths.p95)
                row["requests_of_mix"] = round(made.requests_of_mix(lengths), 3)
                row["never_fit"] = made.never_fit(lengths)
        if lengths is not None:
            row["tail_waste_ratio"] = round(tail_ratio(lengths, page), 6)
        if prefix is not None:
            row["prefix_hit_tokens"] = prefix // page * page
        if ran:
            row["run"] = ran[place].as_json()
        rows.append(row)
    return {
        "schema": SCHEMA,
        "model": whole.name,
        "layers": whole.layers,
        "window_layers": whole.window_layers,
        "window_tokens": whole.window_tokens or None,
        "element_bytes": whole.element_bytes,
        "bytes_per_token": whole.bytes_per_token,
        "window_bytes_per_token": whole.window_bytes_per_token or None,
        "tensor_parallel": shards,
        "bytes_per_token_a_gpu": one.bytes_per_token,
        "window_bytes_per_token_a_gpu": one.window_bytes_per_token or None,
        "pool_bytes_a_gpu": plans[0].capacity_bytes if plans else None,
        "gpu_memory": None if memory is None else memory.as_json(),
        "requests": None if lengths is None else {
            "count": len(lengths.total),
            "mean_tokens": lengths.mean,
            "p95_tokens": lengths.p95,
            "longest_tokens": int(lengths.total.max()),
        },
        "length": length,
        "prefix": prefix,
        "trace": trace,
        "max_sequences": max_seqs if ran else None,
        "pages": rows,
    }  # fmt: skip


def as_text(said: dict[str, Any]) -> str:
    """The same for people."""
    lines = [*_model(said), *_pool(said), *_requests(said), "", *_table(_COLUMNS, said)]
    if any("run" in row for row in said["pages"]):
        lines += ["", f"{said['trace']} as it arrived, at most {said['max_sequences']} at once:", *_table(_RUN, said)]
    elif said["trace"] is not None and said["window_layers"]:
        lines += _filled("Not run: the simulator's pages are of one size, and this model has two.")
    return "\n".join([*lines, *_notes(said)])


def _filled(text: str) -> list[str]:
    return fill(text, _WIDTH, subsequent_indent="  ").splitlines()


def _model(said: dict[str, Any]) -> list[str]:
    text = f"{said['model']}: {said['layers']} layers, {said['bytes_per_token']:,} bytes a token"
    if said["window_layers"]:
        text += (
            f" for good and {said['window_bytes_per_token']:,} more for each of the last {said['window_tokens']:,} "
            f"({said['window_layers']} layers slide)"
        )
    if said["tensor_parallel"] > 1:
        text += f"; on each of {said['tensor_parallel']} GPUs {said['bytes_per_token_a_gpu']:,}"
        if said["window_layers"]:
            text += f" and {said['window_bytes_per_token_a_gpu']:,}"
        if said["bytes_per_token_a_gpu"] == said["bytes_per_token"]:
            text += ", as it is no matter of heads"
    return _filled(text)


def _pool(said: dict[str, Any]) -> list[str]:
    memory = said["gpu_memory"]
    if memory is None:
        size = said["pool_bytes_a_gpu"]
        return [] if size is None else [f"pool: {format_bytes(size)} on each GPU"]
    parts = f"{format_bytes(memory['gpu_memory_bytes'])} x {memory['utilization']:g}"
    parts += f" - weights {format_bytes(memory['weights_bytes'])}"
    if memory["other_bytes"]:
        parts += f" - other {format_bytes(memory['other_bytes'])}"
    bound = "at most " if memory["unknown"] else ""
    return _filled(f"pool: {bound}{format_bytes(memory['pool_bytes'])} on each GPU = {parts}")


def _requests(said: dict[str, Any]) -> list[str]:
    requests = said["requests"]
    if requests is None:
        return []
    return _filled(
        f"requests: {requests['count']:,} of {requests['mean_tokens']:,} tokens in the mean, p95 "
        f"{requests['p95_tokens']:,}, longest {requests['longest_tokens']:,}"
    )


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _bytes(value: Any) -> str:
    return "-" if value is None else format_bytes(value)


def _ratio(value: Any) -> str:
    return "-" if value is None else format_ratio(value)


def _longest(row: dict[str, Any]) -> str:
    return "any" if row["longest_request_tokens"] is None else f"{row['longest_request_tokens']:,}"


# Heading, the key that a row must have, and what stands there.
_COLUMNS = (
    ("page", "page_tokens", lambda row: _number(row["page_tokens"])),
    ("bytes", "page_tokens", lambda row: _bytes((row["page_bytes"] or 0) + (row["window_page_bytes"] or 0))),
    ("pages", "pages", lambda row: _number(row["pages"])),
    ("tokens", "tokens", lambda row: _number(row["tokens"])),
    ("longest", "longest_request_tokens", _longest),
    ("of length", "requests_at_length", lambda row: _number(row["requests_at_length"])),
    ("at mean", "requests_at_mean", lambda row: _number(row["requests_at_mean"])),
    ("at p95", "requests_at_p95", lambda row: _number(row["requests_at_p95"])),
    ("tail", "tail_waste_ratio", lambda row: _ratio(row["tail_waste_ratio"])),
    ("prefix", "prefix_hit_tokens", lambda row: _number(row["prefix_hit_tokens"])),
)
_RUN = (
    ("page", "page_tokens", lambda row: _number(row["page_tokens"])),
    ("at once", "run", lambda row: _number(row["run"]["most_running"])),
    ("mean", "run", lambda row: f"{row['run']['mean_running']:,.1f}"),
    ("peak use", "run", lambda row: _ratio(_result(row)["peak_active_units"] / _result(row)["capacity_units"])),
    ("preempted", "run", lambda row: _number(_result(row)["preemptions"])),
    ("failed", "run", lambda row: _number(sum(_result(row)["allocation_failures"].values()))),
    ("lost", "run", lambda row: _number(_result(row)["refused"] + _result(row)["errors"])),
    ("hits", "run", lambda row: _hits(_result(row))),
    ("ttft p99", "run", lambda row: _seconds(_result(row)["ttft_p99_s"])),
)


def _result(row: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = row["run"]["result"]
    return result


def _hits(result: dict[str, Any]) -> str:
    lookup = result["prefix_lookup_tokens"]
    return format_ratio(result["prefix_hit_tokens"] / lookup) if lookup else "-"


def _seconds(value: float | None) -> str:
    from kvmon.units import format_duration

    return "-" if value is None else format_duration(value)


def _table(columns: Sequence[tuple[str, str, Any]], said: dict[str, Any]) -> list[str]:
    rows = said["pages"]
    shown = [(heading, draw) for heading, key, draw in columns if key in rows[0]]
    cells = [[heading for heading, _ in shown], *([draw(row) for _, draw in shown] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(shown))]
    gap = "  " if sum(widths) + 2 * len(widths) <= _WIDTH else " "
    return [gap.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]


def _notes(said: dict[str, Any]) -> list[str]:
    rows = said["pages"]
    notes = []
    never = max((row.get("never_fit", 0) for row in rows), default=0)
    if never:
        notes.append(f"{never:,} of the requests can never fit.")
    if any(row.get("pages") is None for row in rows) and said["pool_bytes_a_gpu"] is not None:
        notes.append("Both kinds of layers share the pool, so how many pages of each there are depends on the lengths.")
    if said["window_layers"] and said["pool_bytes_a_gpu"] is not None:
        notes.append("Layers that slide take what their window needs: an engine that keeps more of them holds fewer.")
    if said["pool_bytes_a_gpu"] is not None:
        notes.append("Requests share nothing here and hold their full length; an engine may keep a page for itself.")
    if said["gpu_memory"] and said["gpu_memory"]["unknown"]:
        notes.append(f"The pool is an upper bound: {said['gpu_memory']['unknown']}.")
    if any("run" in row and row["run"]["most_running"] >= said["max_sequences"] for row in rows):
        notes.append("--max-seqs, not memory, was the limit where as many ran at once.")
    return ["", *(line for note in notes for line in _filled(note))] if notes else []

"""`kvmon why`: why the last request waited or failed, in words with numbers.

Wiring only: `kvmon.replay` reads, the rule is `kvmon.diagnosis`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.capture import parse_duration
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.replay import Refusal, StreamDiagnosis

__all__ = ["command"]

_SECOND = 1_000_000_000
_WIDTH = 80
_SHOWN = 0.0005  # of the pool, less would read 0.0 %
_DID = {
    "UNKNOWN": "What became of it is not recorded",
    "WAITS": "It had to wait",
    "PREEMPTED_ANOTHER": "Another request lost its memory for it",
    "REFUSED": "It was sent away",
    "PREEMPTED_ITSELF": "It lost its own memory, and had to wait",
    "ABORTED": "It was aborted",
}


@click.command("why")
@click.argument("path", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--last", is_flag=True, help="The last refused allocation; so it is without an option.")
@click.option("--request-class", "class_id", type=int, metavar="CLASS", help="Requests of this class only.")
@click.option("--since", metavar="TIME", help="All of the last 10m, 90s or 2h, by cause.")
@click.option("--engine", help="Which engine, where PATH holds several.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def command(
    path: Path | None, last: bool, class_id: int | None, since: str | None, engine: str | None, json_: bool
) -> None:
    """Say why the last request waited or failed for want of memory.

    PATH is a recording directory, of a running engine too, or a capture (default: KVMON_DIR).
    """
    if last and since:
        raise ConfigError("--last is about one request and --since about all of a time: give one of them")
    if class_id is not None and class_id < 0:
        raise ConfigError(f"a class of {class_id} is none: classes are numbers from 0")
    seconds = None if since is None else parse_duration(since)
    from kvmon.cli.streams import missing, read_streams

    streams = read_streams(path)
    names = sorted({stream.facts.engine for stream in streams})
    if engine is not None and engine not in names:
        raise ConfigError(f"no engine '{engine}' in {path}: it has {', '.join(names) or 'none'}")
    found = [
        (stream, refusal)
        for stream in streams
        if engine in (None, stream.facts.engine)
        for refusal in stream.refusals()
        if class_id is None or refusal.class_id == class_id
    ]
    not_seen = next((said for stream in streams if (said := missing(stream))), None)
    if seconds is not None:
        found = [pair for pair in found if pair[1].time_ns >= pair[0].state.time_ns - seconds * _SECOND]
        click.echo(json.dumps(_by_cause(found), indent=2) if json_ else _told(found, str(since), not_seen))
        return
    if not found:
        if json_:
            click.echo(json.dumps({"refused": None, "not_seen": not_seen}))
        else:
            whose = "" if class_id is None else f" of class {class_id}"
            click.echo(f"No allocation{whose} was refused{_but(not_seen)}.")
        return
    stream, refusal = max(found, key=lambda pair: pair[1].time_ns)
    click.echo(json.dumps(_as_json(stream, refusal), indent=2) if json_ else _in_words(stream, refusal))


def _in_words(stream: StreamDiagnosis, refusal: Refusal) -> str:
    from kvmon.diagnosis import VERDICTS
    from kvmon.events import FAILURE_REASONS
    from kvmon.units import counted, format_count, format_duration, format_ratio

    pool = stream.state.pools.get(refusal.pool)
    tokens = refusal.need * refusal.unit_tokens
    ago = format_duration(max(stream.state.time_ns - refusal.time_ns, 0) / 1e9)
    who = (
        f"Request {refusal.request} (class {refusal.class_id})"
        if refusal.request is not None
        else "A request that is not known"
    )
    place = "while it ran" if refusal.mid_stream else "at its start"
    lines = [
        f"{who} was refused {counted(refusal.need, 'unit')} ({format_count(tokens)} tokens) of pool "
        f"{pool.name if pool else refusal.pool} {place}, {ago} before the end of the recording."
    ]
    did = _DID[refusal.outcome.name]
    if not refusal.waited or refusal.ended_ns == refusal.time_ns:
        lines.append(f"{did}.")
    elif refusal.ended_ns is None:
        lines.append(f"{did}, and still waits: {ago} so far.")
    else:
        after = format_duration((refusal.ended_ns - refusal.time_ns) / 1e9)
        lines.append(f"{did}; that was over after {after}.")
    free = f"{format_count(refusal.free)} units were free and {format_count(refusal.evictable)} evictable"
    block = f", the largest block {format_count(refusal.largest)}" if refusal.largest is not None else ""
    lines.append(
        f"Why: {refusal.cause}. {free}{block}, of {format_count(refusal.capacity)}; the engine said "
        f"{FAILURE_REASONS[refusal.reason]}."
    )
    if refusal.past_known:
        slots = max(refusal.capacity * refusal.unit_tokens, 1)
        units = max(refusal.capacity, 1)
        shares = {
            "active": refusal.active / units,
            "reserved": refusal.reserved_slots / slots,
            "unfilled tails": refusal.tail_slots / slots,
            "without an owner": (refusal.unowned or 0) / units,
            "evictable": refusal.evictable / units,
            "pinned": refusal.pinned / units,
            "deferred": refusal.deferred / units,
        }
        said = {name: f"{name} {format_ratio(share)}" for name, share in shares.items() if share >= _SHOWN}
        within = [said.pop(name) for name in ("reserved", "unfilled tails", "without an owner") if name in said]
        if within and "active" in said:
            said["active"] += f" ({', '.join(within)})"
        lines.append(f"Held then, of the pool: {', '.join(said.values()) or 'nothing'}.")
    else:
        lines.append("Who held the memory is not known: the recording does not have its whole past.")
    verdict = VERDICTS[refusal.cause]
    lines += [f"Avoided by: {verdict.avoided}.", f"Safest now: {verdict.lever}."]
    first = next(iter(stream.findings), None)
    if first is not None and first.verdict != refusal.cause:
        lines.append(f"The engine as a whole: {first.verdict}: {first.summary}; 'kvmon replay' has the rest.")
    return "\n".join(fill(line, _WIDTH) for line in lines)


def _as_json(stream: StreamDiagnosis, refusal: Refusal) -> dict[str, Any]:
    from kvmon.events import FAILURE_REASONS

    names = ("need", "free", "evictable", "largest", "capacity", "active", "pinned", "deferred", "unowned")
    return {
        "engine": stream.facts.engine,
        "rank": stream.facts.rank,
        "pool": refusal.pool,
        "time_ns": refusal.time_ns,
        "frame": refusal.frame,
        "word": refusal.word,
        "request": refusal.request,
        "class": refusal.class_id,
        "cause": refusal.cause,
        "reason": FAILURE_REASONS[refusal.reason],
        "outcome": refusal.outcome.name.lower(),
        "mid_stream": refusal.mid_stream,
        "waited_s": None if refusal.ended_ns is None else (refusal.ended_ns - refusal.time_ns) / 1e9,
        "still_waits": refusal.waited and refusal.ended_ns is None,
        **{f"{name}_units": getattr(refusal, name) for name in names},
        "reserved_slots": refusal.reserved_slots,
        "tail_slots": refusal.tail_slots,
        "past_known": refusal.past_known,
    }


def _by_cause(found: list[tuple[StreamDiagnosis, Refusal]]) -> dict[str, Any]:
    """Refused allocations by cause: how many, how many requests were lost, and how long they waited."""
    from kvmon.events import FailureOutcome

    lost = (FailureOutcome.REFUSED, FailureOutcome.ABORTED)
    zero = {"refused": 0, "lost": 0, "waited_s": 0.0, "longest_s": 0.0}
    causes: dict[str, dict[str, float]] = defaultdict(zero.copy)
    for stream, refusal in found:
        cause = causes[refusal.cause]
        cause["refused"] += 1
        cause["lost"] += int(refusal.outcome in lost)
        if refusal.waited:
            end = stream.state.time_ns if refusal.ended_ns is None else refusal.ended_ns
            waited = (end - refusal.time_ns) / 1e9
            cause["waited_s"] += waited
            cause["longest_s"] = max(cause["longest_s"], waited)
    return dict(sorted(causes.items(), key=lambda item: -item[1]["lost"] * 10 - item[1]["waited_s"]))


def _but(not_seen: str | None) -> str:
    return f", as far as was seen: {not_seen}" if not_seen else ""


def _told(found: list[tuple[StreamDiagnosis, Refusal]], since: str, not_seen: str | None) -> str:
    from kvmon.units import format_duration

    causes = _by_cause(found)
    if not causes:
        return f"No allocation was refused in the last {since}{_but(not_seen)}."
    lines = [f"{'cause':<20} {'refused':>8} {'lost':>6}  {'request-seconds':>15}  longest wait"]
    for name, cause in causes.items():
        waits = f"{cause['waited_s']:>15,.1f}  {format_duration(cause['longest_s'])}"
        lines.append(f"{name:<20} {cause['refused']:>8,} {cause['lost']:>6,}  {waits}")
    return "\n".join(lines)

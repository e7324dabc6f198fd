"""`kvmon why`: why the last request waited or failed, in words with numbers.

Wiring only: `kvmon.replay` reads, the rule is `kvmon.diagnosis`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.capture import parse_duration, progress_of_words
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.replay import Refusal, StreamDiagnosis

__all__ = ["command"]

_SECOND = 1_000_000_000
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
    if path is None:
        raise ConfigError("nothing to look at: give a recording directory or a capture, or set KVMON_DIR")
    if last and since:
        raise ConfigError("--last is about one request and --since about all of a time: give one of them")
    if class_id is not None and class_id < 0:
        raise ConfigError(f"a class of {class_id} is none: classes are numbers from 0")
    seconds = None if since is None else parse_duration(since)
    from kvmon.cli.patience import patience
    from kvmon.replay import diagnose_path

    files = [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else [path]
    with patience(), progress_of_words(files, "reading") as advance:
        streams = diagnose_path(path, advance)
    names = sorted({stream.facts.engine for stream in streams})
    if engine is not None and engine not in names:
        raise ConfigError(f"no engine '{engine}' in {path}: it has {', '.join(names) or 'none'}")
    found = [
        (stream, refusal)
        for stream in streams
        if engine in (None, stream.facts.engine)
        for refusal in stream.refusals()
        if class_id is None or refusal.row[_R().CLASS] == class_id
    ]
    if seconds is not None:
        found = [pair for pair in found if pair[1].row[_R().TIME] >= pair[0].state.time_ns - seconds * _SECOND]
        click.echo(json.dumps(_by_cause(found), indent=2) if json_ else _told(found, str(since)))
        return
    if not found:
        click.echo(json.dumps({"refused": None}) if json_ else "No allocation was refused: nothing waited for memory.")
        return
    stream, refusal = max(found, key=lambda pair: pair[1].row[_R().TIME])
    click.echo(json.dumps(_as_json(stream, refusal), indent=2) if json_ else _in_words(stream, refusal))


def _R() -> Any:
    from kvmon.state.watch import R

    return R


def _in_words(stream: StreamDiagnosis, refusal: Refusal) -> str:
    from kvmon.diagnosis import VERDICTS
    from kvmon.events import FAILURE_REASONS, FailureOutcome
    from kvmon.units import counted, format_count, format_duration, format_ratio

    at, row = _R(), refusal.row
    pool = stream.state.pools.get(row[at.POOL])
    tokens = row[at.NEED] * row[at.UNIT_TOKENS]
    ago = format_duration(max(stream.state.time_ns - row[at.TIME], 0) / 1e9)
    who = f"Request {row[at.REQUEST]} (class {row[at.CLASS]})" if row[at.REQUEST] else "A request that is not known"
    place = "while it ran" if row[at.MID_STREAM] else "at its start"
    lines = [
        f"{who} was refused {counted(row[at.NEED], 'unit')} ({format_count(tokens)} tokens) of pool "
        f"{pool.name if pool else row[at.POOL]} {place}, {ago} before the end of the recording."
    ]
    did = _DID[FailureOutcome(row[at.OUTCOME]).name]
    if not refusal.waited or refusal.ended_ns == row[at.TIME]:
        lines.append(f"{did}.")
    elif refusal.ended_ns is None:
        lines.append(f"{did}, and still waits: {ago} so far.")
    else:
        lines.append(f"{did}, for {format_duration((refusal.ended_ns - row[at.TIME]) / 1e9)}.")
    free = f"{format_count(row[at.FREE])} units were free and {format_count(row[at.EVICTABLE])} evictable"
    block = f", the largest block {format_count(row[at.LARGEST])}" if row[at.LARGEST] >= 0 else ""
    lines.append(
        f"Why: {refusal.cause}. {free}{block}, of {format_count(row[at.CAPACITY])}; the engine said "
        f"{FAILURE_REASONS[row[at.REASON]]}."
    )
    if row[at.KNOWN]:
        slots = max(row[at.CAPACITY] * row[at.UNIT_TOKENS], 1)
        units = max(row[at.CAPACITY], 1)
        held = [
            ("active", row[at.ACTIVE] / units),
            ("of that reserved", row[at.RESERVED] / slots),
            ("of that unfilled tails", row[at.TAIL] / slots),
            ("pinned", row[at.PINNED] / units),
            ("deferred", row[at.DEFERRED] / units),
            ("without an owner", max(row[at.UNOWNED], 0) / units),
        ]
        named = ", ".join(f"{name} {format_ratio(share)}" for name, share in held if share >= _SHOWN)
        lines.append(f"Held then: {named or 'nothing'}.")
    else:
        lines.append("Who held the memory is not known: the recording does not have its whole past.")
    verdict = VERDICTS[refusal.cause]
    lines += [f"Avoided by: {verdict.avoided}.", f"Safest now: {verdict.lever}."]
    return "\n".join(lines)


def _as_json(stream: StreamDiagnosis, refusal: Refusal) -> dict[str, Any]:
    from kvmon.events import FAILURE_REASONS, FailureOutcome

    at, row = _R(), refusal.row
    names = ("need", "free", "evictable", "largest", "capacity", "active", "pinned", "deferred", "unowned")
    units = {f"{name}_units": value if (value := row[getattr(at, name.upper())]) >= 0 else None for name in names}
    return {
        "engine": stream.facts.engine,
        "rank": stream.facts.rank,
        "pool": row[at.POOL],
        "time_ns": row[at.TIME],
        "frame": row[at.FRAME],
        "word": row[at.WORD],
        "request": row[at.REQUEST] or None,
        "class": row[at.CLASS] if row[at.CLASS] >= 0 else None,
        "cause": refusal.cause,
        "reason": FAILURE_REASONS[row[at.REASON]],
        "outcome": FailureOutcome(row[at.OUTCOME]).name.lower(),
        "mid_stream": bool(row[at.MID_STREAM]),
        "waited_s": None if refusal.ended_ns is None else (refusal.ended_ns - row[at.TIME]) / 1e9,
        "still_waits": refusal.waited and refusal.ended_ns is None,
        **units,
        "reserved_slots": row[at.RESERVED],
        "tail_slots": row[at.TAIL],
        "past_known": bool(row[at.KNOWN]),
    }


def _by_cause(found: list[tuple[StreamDiagnosis, Refusal]]) -> dict[str, Any]:
    """Refused allocations by cause: how many, how many requests were lost, and how long they waited."""
    from kvmon.events import FailureOutcome

    at = _R()
    lost = (FailureOutcome.REFUSED, FailureOutcome.ABORTED)
    zero = {"refused": 0.0, "lost": 0.0, "waited_s": 0.0, "longest_s": 0.0}
    causes: dict[str, dict[str, float]] = defaultdict(zero.copy)
    for stream, refusal in found:
        cause = causes[refusal.cause]
        cause["refused"] += 1
        cause["lost"] += refusal.row[at.OUTCOME] in lost
        if refusal.waited:
            end = stream.state.time_ns if refusal.ended_ns is None else refusal.ended_ns
            waited = (end - refusal.row[at.TIME]) / 1e9
            cause["waited_s"] += waited
            cause["longest_s"] = max(cause["longest_s"], waited)
    return dict(sorted(causes.items(), key=lambda item: -item[1]["lost"] * 10 - item[1]["waited_s"]))


def _told(found: list[tuple[StreamDiagnosis, Refusal]], since: str) -> str:
    from kvmon.units import format_duration

    causes = _by_cause(found)
    if not causes:
        return f"No allocation was refused in the last {since}."
    lines = [f"{'cause':<20} {'refused':>8} {'lost':>6}  waited in all, longest"]
    for name, cause in causes.items():
        waits = f"{format_duration(cause['waited_s'])}, {format_duration(cause['longest_s'])}"
        lines.append(f"{name:<20} {cause['refused']:>8,.0f} {cause['lost']:>6,.0f}  {waits}")
    return "\n".join(lines)

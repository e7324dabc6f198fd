"""`kvmon verify`: is a capture or recording whole, and did the allocator keep its own rules.

Prints what `kvmon.capture.verification` found; exit code 1 when it found something.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.cli.capture import progress_of_words
from kvmon.cli.streams import files_of
from kvmon.units import counted, format_count

if TYPE_CHECKING:
    from kvmon.capture.verification import StreamReport, Verification
    from kvmon.state import Fault

__all__ = ["as_text", "command"]

_SHOWN = 20  # faults that are printed one by one


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, every kept fault with its position.")
def command(path: Path, json_: bool) -> None:
    """Check that PATH, a capture file or a recording directory, is whole and consistent.

    Folds every event with all checks on: no unit has two owners, the states of every pool sum to its capacity, every
    held unit has a live request. Exit code 1 when a rule was broken, something is damaged, or nothing could be
    verified.
    """
    from kvmon.capture.verification import verify_path

    with progress_of_words(files_of(path), "verifying") as advance:
        found = verify_path(path, advance)
    click.echo(json.dumps(found.as_json(), indent=2) if json_ else as_text(found))
    if not found.clean:
        raise click.exceptions.Exit(1)


def as_text(found: Verification) -> str:
    """What was found, for people."""
    lines = [f"{found.path}: {'clean' if found.clean else 'not clean'}"]
    lines += [f"  damaged: {damage}" for damage in found.damage]
    if not found.streams:
        lines.append("  nothing is recorded there")
    for stream in found.streams:
        lines += [f"  {line}" for line in _stream_lines(stream)]
    return "\n".join(lines)


def _stream_lines(stream: StreamReport) -> list[str]:
    events = f"{format_count(stream.events)} events ({format_count(stream.frames)} frames"
    events += f", {format_count(stream.unit_operations)} unit-operations)"
    name = stream.facts.name
    if stream.frames == 0 and not stream.open_records:
        return [f"{name}: holds no frame"]
    if stream.verified_from is None:
        lines = [f"{name}: not verified: {events} were read, but no sweep of the audit closed, so the start is unknown"]
    elif stream.fault_count:
        lines = [f"{name}: {counted(stream.fault_count, 'fault')} in {events}"]
    else:
        lines = [f"{name}: exclusive and conserved at every one of {events}"]
    if stream.verified_from is not None and stream.verified_from > 0:
        lines.append(f"  verified from frame {stream.verified_from} on: what lies before it is not known")
    lines += [f"  hole: {hole.reason}" + _where(hole.frame, hole.frames) for hole in stream.holes]
    if stream.open_records:
        lines.append("  the last frame was never closed: its writer died in it")
    if stream.verified_from is not None and not stream.converged:
        lines.append("  the end is not verified: no sweep closed after the last hole")
    return lines + [f"  {line}" for line in _fault_lines(stream)]


def _where(frame: int | None, frames: int) -> str:
    return "" if frame is None else f" (frame {frame}, {format_count(frames)} missing)"


def _fault_lines(stream: StreamReport) -> list[str]:
    start = stream.first_time_ns or 0
    if len(stream.faults) <= _SHOWN:
        return [_line(fault, start) for fault in stream.faults]
    lines = []
    counts = Counter(fault.kind for fault in stream.faults)
    for kind, count in counts.most_common():
        first = next(fault for fault in stream.faults if fault.kind is kind)
        lines.append(f"{kind.name.lower()}, {format_count(count)} times; first: {_line(first, start)}")
    left = stream.fault_count - len(stream.faults)
    return [*lines, *([f"and {format_count(left)} more that were counted only"] if left > 0 else [])]


def _line(fault: Fault, start_ns: int) -> str:
    return f"{fault} at {max(fault.time_ns - start_ns, 0) / 1e9:+.6f} s"  # what is damaged ahead has no time

"""`kvmon replay`: what went wrong in a recording or a capture, the answer first.

Wiring only: `kvmon.replay` reads and diagnoses, `kvmon.cli.findings` says it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kvmon.diagnosis import Finding
    from kvmon.replay import StreamDiagnosis

__all__ = ["command"]

_DAMAGE_SHOWN = 5


@click.command("replay")
@click.argument("path", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, findings most important first.")
def command(path: Path, json_: bool) -> None:
    """Say what went wrong in PATH, a capture file or a recording directory.

    The first line is the answer: the verdict that explains most, or healthy. Findings follow with their evidence, the
    events that show it, what would have avoided it and what is safest to do now; `kvmon explain VERDICT` says more.
    Exit code 1 when something was found.
    """
    from kvmon.cli.streams import read_streams
    from kvmon.diagnosis import HEALTHY

    streams = read_streams(path)
    found = _ranked(streams)
    answer = found[0][1].verdict if found else HEALTHY
    if json_:
        click.echo(json.dumps(_as_json(path, answer, streams, found), indent=2))
    else:
        click.echo(_as_text(path, answer, streams, found))
    if found:
        raise click.exceptions.Exit(1)


Found = list[tuple["StreamDiagnosis", "Finding"]]


def _ranked(streams: list[StreamDiagnosis]) -> Found:
    """Findings of all streams, most important first."""
    from kvmon.diagnosis import VERDICTS

    found = [(stream, finding) for stream in streams for finding in stream.findings]
    return sorted(found, key=lambda pair: (VERDICTS[pair[1].verdict].rank, -pair[1].paid))


def _as_text(path: Path, answer: str, streams: list[StreamDiagnosis], found: Found) -> str:
    from kvmon.cli.findings import finding_lines
    from kvmon.units import counted, format_duration

    rest = ", as far as it can be read" if any(stream.damage for stream in streams) else ""
    refused = sum(len(stream.refusals()) for stream in streams)
    if refused:
        rest += f"; {counted(refused, 'refused allocation')} cost too little to matter, 'kvmon why' has the last one"
    lines = [f"{answer}: {found[0][1].summary}" if found else f"{answer}: nothing was found in {path}{rest}"]
    for stream in streams:
        mine = stream.findings
        begin = stream.first_ns or 0
        seconds = max(stream.state.time_ns - begin, 0) / 1e9
        count = counted(len(mine), "finding") if mine else "no finding"
        steps = counted(stream.state.steps, "step")
        lines += ["", f"{stream.facts.name}: {format_duration(seconds)}, {steps}, {count}"]
        lines += [f"   damaged: {damage}" for damage in stream.damage[:_DAMAGE_SHOWN]]
        if not stream.state.pools:
            lines.append("   no pool was seen: the recording has lost its begin, or the engine none")
        if stream.diagnosis.dropped:
            lines.append(f"   {stream.diagnosis.dropped:,} more findings were counted only")
        lines += finding_lines(mine, begin)
    return "\n".join(lines)


def _as_json(path: Path, answer: str, streams: list[StreamDiagnosis], found: Found) -> dict[str, Any]:
    return {
        "path": str(path),
        "verdict": answer,
        "findings": [
            {"engine": stream.facts.engine, "rank": stream.facts.rank, **finding.to_json()} for stream, finding in found
        ],
        "streams": [
            {
                "engine": stream.facts.engine,
                "rank": stream.facts.rank,
                "verdict": stream.verdict,
                "first_time_ns": stream.first_ns,
                "last_time_ns": stream.state.time_ns,
                "steps": stream.state.steps,
                "gaps": stream.state.gaps,
                "lost_records": stream.state.lost_records,
                "converged": stream.state.converged,
                "damage": stream.damage,
            }
            for stream in streams
        ],
    }

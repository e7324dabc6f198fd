"""`kvmon replay`: what went wrong in a recording or a capture, the answer first.

Wiring only: `kvmon.replay` reads and diagnoses, `kvmon.report.findings` says it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.output_file import output_option
from kvmon.cli.whatif import answers, asked_of, parsed, read_asked, what_if_options
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.diagnosis import Finding
    from kvmon.replay import StreamDiagnosis
    from kvmon.replay.asked import Answered

__all__ = ["SCHEMA", "command"]

SCHEMA = 1
"""Of what --json prints; fields may be added without a new one."""
_DAMAGE_SHOWN = 5


@click.command("replay")
@click.argument("path", type=click.Path(path_type=Path, readable=False))
@click.option("--at", metavar="TIME", help="Show the state at this moment: see below.")
@click.option("--stream", metavar="NAME", help="With --at: this stream only, ENGINE-RANK or ENGINE-RANK#LIFE.")
@output_option("--html", help="Write the report as one HTML file: curves, map, every refused allocation.")
@click.option("--force", is_flag=True, help="With --html: replace a file that is there.")
@what_if_options
@click.option("--json", "json_", is_flag=True, help="Print one JSON object, findings most important first.")
def command(
    path: Path, at: str | None, stream: str | None, html: Path | None, force: bool, json_: bool, **options: Any
) -> None:
    """Say what went wrong in PATH, a capture file or a recording directory.

    The first line is the answer: the verdict that explains most, or healthy. Findings follow with their evidence, the
    events that show it, what would have avoided it and what is safest to do now; `kvmon explain VERDICT` says more.
    Exit code 1 when something was found.

    With --at, the exact state at a moment instead: memory, holders, queue, and the verdict that held then. TIME is
    +90s or 12m30s from the begin, -30s from the end, 2026-11-23T08:45:04Z, ns of the engine's clock, failure:3 (just
    before the third refused allocation, failure:-1 the last one), or worst.

    What would have avoided a finding is checked: the recorded requests are replayed through the simulator with a change
    (docs/what-if.md). --what-if takes yours: keys are the options of `kvmon simulate` without dashes, and pool=+20%.
    """
    asked = asked_of(options)
    if at is not None:
        if not asked.of_itself:
            raise ConfigError("--at shows a moment and replays nothing: leave out --what-if, --no-what-if and --sweep")
        if html is not None:
            raise ConfigError("--at shows a moment in the terminal: leave out --html")
        from kvmon.cli.replay_at import show

        show(path, at, stream, json_)
        return
    if stream is not None:
        raise ConfigError("--stream chooses what --at shows: give --at too")
    if html is not None:
        if json_:
            raise ConfigError("--html writes a report and --json prints one: give one of them at a time")
        from kvmon.cli.replay_html import write_report

        if write_report(path, html, asked, force=force):
            raise click.exceptions.Exit(1)
        return
    if force:
        raise ConfigError("--force is about the file of --html: give --html too")
    from kvmon.cli.streams import read_streams
    from kvmon.cli.whatif_output import print_answers
    from kvmon.diagnosis import HEALTHY

    parsed(asked)
    read = [] if asked.nothing else read_asked(path, asked)
    streams = read_streams(path) if asked.nothing else [recording.stream for recording, _ in read]
    answered = None if asked.nothing else answers(read, asked)
    found = _ranked(streams)
    answer = found[0][1].verdict if found else HEALTHY
    if json_:
        click.echo(json.dumps(_as_json(path, answer, streams, found, answered), indent=2))
    else:
        click.echo(_as_text(path, answer, streams, found))
        print_answers(answered or ())
    if found:
        raise click.exceptions.Exit(1)


Found = list[tuple["StreamDiagnosis", "Finding"]]


def _ranked(streams: list[StreamDiagnosis]) -> Found:
    """Findings of all streams, most important first."""
    from kvmon.diagnosis import VERDICTS

    found = [(stream, finding) for stream in streams for finding in stream.findings]
    return sorted(found, key=lambda pair: (VERDICTS[pair[1].verdict].rank, -pair[1].paid))


def _as_text(path: Path, answer: str, streams: list[StreamDiagnosis], found: Found) -> str:
    from kvmon.report.findings import finding_lines
    from kvmon.units import counted, format_duration

    partly = any(stream.damage or not stream.state.pools for stream in streams)
    rest = ", as far as it can be read" if partly else ""
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


def _as_json(
    path: Path, answer: str, streams: list[StreamDiagnosis], found: Found, answered: list[Answered] | None
) -> dict[str, Any]:
    """The object that docs/replay.md describes."""
    return {
        "schema": SCHEMA,
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
        "what_if": None if answered is None else [one.to_json() for one in answered],
    }

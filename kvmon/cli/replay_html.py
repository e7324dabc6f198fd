"""`kvmon replay --html`: the report of an incident as one file.

Wiring only: `kvmon.replay` reads and replays, `kvmon.report.incident_collect` words it, `kvmon.report.html` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.cli.whatif import Asked, answers, parsed, read_asked

if TYPE_CHECKING:
    from kvmon.replay.asked import Answered
    from kvmon.replay.timeline_model import Timeline

__all__ = ["write_report"]


def write_report(path: Path, output: Path, asked: Asked, *, force: bool) -> bool:
    """Write the report of `path` to `output` and say the answer; whether something was found.

    Raises ConfigError where the file to write is there already or is what is read, and for an impossible what-if,
    InputError where nothing can be read, SystemRefused where it cannot be written; nothing is left half written.
    """
    from kvmon import __version__
    from kvmon.cli.output_file import not_the_input
    from kvmon.cli.streams import reading
    from kvmon.files import NewFile
    from kvmon.replay.timeline import read_timelines
    from kvmon.report.html import render_html
    from kvmon.report.incident_collect import incident_report

    not_the_input(output, path)
    parsed(asked)
    file = NewFile(output, "the report", force=force)  # before the reading, which takes a while
    try:
        with reading([path]) as advance:
            timelines = read_timelines(path, progress=advance)
        report = incident_report(path.name, timelines, __version__, _answered(path, timelines, asked))
        file.write(render_html(report).encode())
        file.close()
    finally:
        file.abort()
    click.echo(f"{report.verdict}: {report.sentence}")
    click.echo(f"written to {output}")
    return any(stream.findings for stream in report.streams)


def _answered(path: Path, timelines: Sequence[Timeline], asked: Asked) -> Sequence[Answered]:
    """What was asked, replayed. The requests are read only where something will be replayed."""
    from kvmon.cli.streams import say_damage
    from kvmon.replay.asked import Answered, too_long

    found = [] if asked.nothing else [timeline for timeline in timelines if timeline.findings]
    if asked.nothing or (asked.of_itself and all(too_long(timeline.steps) for timeline in found)):
        say_damage(path, [damage for timeline in timelines for damage in timeline.damage[:1]])
        return [Answered(timeline.facts, missing=too_long(timeline.steps)) for timeline in found]
    return answers(read_asked(path, asked), asked)

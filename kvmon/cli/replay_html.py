"""`kvmon replay --html`: the report of an incident as one file.

Wiring only: `kvmon.replay.timeline` reads, `kvmon.report.incident_collect` words it, `kvmon.report.html` draws.
"""

from __future__ import annotations

from pathlib import Path

import click

from kvmon.cli.capture import progress_of_words
from kvmon.errors import InputError

__all__ = ["write_report"]


def write_report(path: Path, output: Path, *, force: bool) -> bool:
    """Write the report of `path` to `output` and say the answer; whether something was found.

    Raises ConfigError where the file to write is there already or is what is read, InputError where nothing can be
    read, SystemRefused where it cannot be written; nothing is left half written.
    """
    from kvmon import __version__
    from kvmon.cli.output_file import not_the_input
    from kvmon.cli.patience import patience
    from kvmon.files import write_whole
    from kvmon.replay.timeline import read_timelines
    from kvmon.report.html import render_html
    from kvmon.report.incident_collect import incident_report

    not_the_input(output, path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is neither a capture nor a directory: give one of them")
    files = [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else [path]
    with patience(), progress_of_words(files, "reading") as advance:
        timelines = read_timelines(path, progress=advance)
    report = incident_report(path.name, timelines, __version__)
    write_whole(output, [render_html(report)], "the report", force=force)
    click.echo(f"{report.verdict}: {report.sentence}")
    click.echo(f"written to {output}")
    return any(stream.findings for stream in report.streams)

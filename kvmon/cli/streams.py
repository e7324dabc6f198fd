"""Streams of a recording or capture, for the verbs that diagnose; what could not be read is said on standard error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmon.cli.capture import progress_of_words
from kvmon.errors import ConfigError, InputError

if TYPE_CHECKING:
    from kvmon.replay import StreamDiagnosis

__all__ = ["missing", "read_streams"]


def read_streams(path: Path | None) -> list[StreamDiagnosis]:
    """Diagnose `path` with a bar where it takes a while. Raises ConfigError without a
    path, InputError where it is neither file nor directory."""
    if path is None:
        raise ConfigError("nothing to look at: give a recording directory or a capture, or set KVMON_DIR")
    from kvmon.cli.patience import patience
    from kvmon.replay import diagnose_path

    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path} is neither a capture nor a directory: give one of them")
    files = [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else [path]
    with patience(), progress_of_words(files, "reading") as advance:
        streams = diagnose_path(path, advance)
    for stream in streams:
        for damage in stream.damage[:1]:
            click.echo(f"kvmon: {path}: {damage}; what is said is about the part that can be read", err=True)
    return streams


def missing(stream: StreamDiagnosis) -> str | None:
    """What of a stream was not seen, in words; None where it is whole."""
    if stream.damage:
        return "part of it cannot be read"
    if stream.state.gaps or stream.state.lost_records:
        return "events are missing"
    return None if stream.state.converged else "its past is not known"

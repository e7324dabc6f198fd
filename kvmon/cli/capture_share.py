"""`kvmon capture --share`: the bundle that one would attach to a public bug report, and the list of what is in it.

Wiring only: `kvmon.capture.sharing` says what goes. Invariant: the list is made from the words that were written, and
stands on the terminal before the file has its name. A dry run leaves no file, and writes nothing beside the output.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.capture import as_json, hole_lines, progress_of_words, size_text
from kvmon.cli.output_file import not_the_input
from kvmon.errors import ConfigError, InputError
from kvmon.units import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kvmon.capture import CaptureWriter
    from kvmon.capture.copying import Copied
    from kvmon.capture.sharing import Shared, Sharer

__all__ = ["contents_text", "write_shared"]

_WIDTH = 80
_LONGEST_NAME = 64
_ALWAYS = (
    "of requests: a number each in order of arrival, its class (a small integer), the lengths of prompt and answer, "
    "and when it came, ran and ended",
    "of memory: which units were handed out and given back when; bytes of the device",
    "of time: a clock that counts from the boot of the machine, so it shows how long that was up",
)
_NEVER = "Never recorded at all: prompts, answers, tokens, cache salts, ids that clients gave, the environment."


def write_shared(
    source: Path,
    output: Path | None,
    streams: tuple[str, ...],
    last_ns: int | None,
    *,
    keep_names: bool,
    keep_time: bool,
    dry_run: bool,
    force: bool,
    json_: bool,
) -> None:
    """Write the bundle from a recording directory or a capture, and print what it contains."""
    from kvmon.capture import CaptureWriter
    from kvmon.capture.copying import began_ns
    from kvmon.capture.sharing import Sharer

    if not source.exists():
        raise InputError(f"no {source}: give the directory that the engine has in KVMON_DIR, or a capture")
    if source.is_file() and (streams or last_ns is not None):
        raise ConfigError("--stream and --last choose from a recording: leave them out, a capture is shared whole")
    not_the_input(output, source)
    sharer = Sharer(began_ns(source, streams), keep_names=keep_names, keep_time=keep_time)
    with TemporaryDirectory(prefix="kvmon-") as aside:
        path = Path(aside) / "bundle" if dry_run or output is None else output
        writer = CaptureWriter(path, force=force, wall=lambda: 0)
        try:
            copied = _copied(source, streams, last_ns, writer, sharer)
            if not json_:
                click.echo(contents_text(sharer.shared, copied))
            writer.close()
        finally:
            writer.abort()
        size = path.stat().st_size
    if json_:
        click.echo(as_json(output, copied, sharer.shared, size))
    elif dry_run or output is None:
        click.echo(f"Nothing was written; without --dry-run it would be {format_bytes(size)}.")
    else:
        click.echo(f"{output}: {format_bytes(size)}, {counted(len(copied), 'stream')}")
        click.echo(f"check it: kvmon replay {output}")


def _copied(
    source: Path, streams: tuple[str, ...], last_ns: int | None, writer: CaptureWriter, sharer: Sharer
) -> list[Copied]:
    from kvmon.capture.copying import copy_capture, copy_recording, select_streams

    chosen = [source] if source.is_file() else select_streams(source, streams)
    with progress_of_words(chosen, "sharing") as advance:
        if source.is_file():
            return copy_capture(source, writer, share=sharer, progress=advance)
        return copy_recording(chosen, writer, last_ns=last_ns, share=sharer, progress=advance)


def contents_text(shared: Shared, copied: list[Copied]) -> str:
    """What is in the bundle and what is not, for people; nothing of it is wider than a terminal."""
    lines = ["The bundle contains:"]
    for stream, said in zip(copied, shared.streams, strict=True):
        here = "" if said.was == said.name else f" (here: {_plain(said.was)})"
        lines += _wrapped(f"{_plain(said.name)}{here}: {size_text(stream)}", "  ")
        lines += hole_lines(stream)
        for one in said.said:
            lines += _wrapped(f"the engine says: {json.dumps(one)}")
        for number, pools in sorted(said.pools.items()):
            for one in pools:
                lines += _wrapped(f"pool {number}: {json.dumps(one)}")
    records = ", ".join(f"{count:,} {kind}" for kind, count in sorted(shared.records.items()))
    dated = any(stream.facts.wall_ns for stream in copied)
    for text in (f"records: {records or 'none'}", *_ALWAYS, *(["the wall clock, as you asked"] if dated else [])):
        lines += _wrapped(text, "  ")
    lines.append("Taken out or replaced:")
    removed = [f"{what} ({count:,})" for what, count in sorted(shared.removed.items()) if count]
    removed += _of("what the engine says of itself", shared.engine_keys)
    removed += _of("what a pool says of itself", shared.pool_keys)
    for text in removed or ["nothing: there was nothing of that kind"]:
        lines += _wrapped(text, "  ")
    lines += _wrapped(_NEVER, "")
    if any(said.was != said.name for said in shared.streams):
        lines += _wrapped("This list has your own names in it: it is for you, and no part of the bundle.", "")
    return "\n".join(lines)


def _of(what: str, keys: Mapping[str, Any]) -> Iterable[str]:
    return [f"{what}: {', '.join(map(_plain, sorted(keys)))}"] if keys else []


def _plain(name: str) -> str:
    """A name that somebody else chose, so that it cannot move the cursor or fill the screen."""
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 3]}..."


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    ).splitlines()

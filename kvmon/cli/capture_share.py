"""`kvmon capture --share`: the bundle that one would attach to a public bug report, and the list of what is in it.

Wiring only: `kvmon.capture.sharing` says what goes. Invariant: the list is made from the words that were written, and
stands on the terminal before the file has its name.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import click

from kvmon.cli.capture import as_json, as_text, progress_of_words
from kvmon.cli.output_file import not_the_input
from kvmon.errors import ConfigError

if TYPE_CHECKING:
    from kvmon.capture.copying import Copied
    from kvmon.capture.sharing import Shared

__all__ = ["contents_text", "write_shared"]

_WIDTH = 80
_ALWAYS = (
    "Besides: which units were handed out and given back when, requests by their numbers in order of arrival with "
    "their class, lengths and times, on a clock that counts from the boot of the machine; sizes of the device's memory."
)


def write_shared(
    source: Path,
    output: Path,
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
    from kvmon.capture.copying import began_ns, copy_capture, copy_recording, select_streams
    from kvmon.capture.sharing import Sharer

    of_file = source.is_file()
    if of_file and (streams or last_ns is not None):
        raise ConfigError("--stream and --last choose from a recording: leave them out, a capture is shared whole")
    not_the_input(output, source)
    chosen = [source] if of_file else select_streams(source, streams)
    sharer = Sharer(began_ns(source, streams), keep_names=keep_names, keep_time=keep_time)
    writer = CaptureWriter(output, force=force, wall=lambda: 0)
    try:
        with progress_of_words(chosen, "sharing") as advance:
            if of_file:
                copied = copy_capture(source, writer, share=sharer, progress=advance)
            else:
                copied = copy_recording(chosen, writer, last_ns=last_ns, share=sharer, progress=advance)
        if not json_:
            click.echo(contents_text(sharer.shared, copied))
        if not dry_run:
            writer.close()
    finally:
        writer.abort()
    if json_:
        click.echo(as_json(output, copied, sharer.shared))
    elif dry_run:
        click.echo(f"nothing was written: leave out --dry-run to write {output}")
    else:
        click.echo(as_text(output, copied))
        click.echo(f"check it: kvmon replay {output}")


def contents_text(shared: Shared, copied: list[Copied]) -> str:
    """What is in the bundle and what is not, for people."""
    lines = ["It contains:"]
    for stream in copied:
        name = stream.facts.name
        old = shared.engines.get(stream.facts.engine)
        lines.append(f"  {name}" + (f" (which was {old}-{stream.facts.rank})" if old else ""))
        lines += _wrapped(f"engine: {json.dumps(shared.configs.get(name, {}))}")
        for number, info in sorted(shared.pools.get(name, {}).items()):
            lines += _wrapped(f"pool {number}: {json.dumps(info)}")
    records = ", ".join(f"{count:,} {kind}" for kind, count in sorted(shared.records.items()))
    lines += [*_wrapped(f"records: {records or 'none'}", "  "), *_wrapped(_ALWAYS, "  ")]
    lines.append("Taken out or replaced:")
    lines += [f"  {what} ({count:,})" for what, count in sorted(shared.removed.items())] or ["  nothing"]
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    ).splitlines()

"""`kvmon capture`: keep what a recording directory holds as one file, of a living engine or of a dead one.

The engine is not disturbed: its files are read, nothing is locked or changed, and the key of the page hashes stays
where it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.output_file import output_option
from kvmon.errors import ConfigError
from kvmon.units import counted, format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from kvmon.capture.copying import Copied
    from kvmon.capture.sharing import Shared

__all__ = ["as_json", "as_text", "command", "hole_lines", "parse_duration", "progress_of_words", "size_text"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$", re.IGNORECASE)


@click.command("capture")
@click.argument("directory", metavar="SOURCE", type=click.Path(path_type=Path, readable=False))
@output_option("-o", "--output", help="The file to write, X.kvmon.")
@click.option(
    "--stream", "streams", multiple=True, help="Only this stream, by the name of its directory; may be repeated."
)
@click.option(
    "--last", metavar="TIME", help="Only the last TIME before the end of each stream, such as 90s, 10m or 2h."
)
@click.option("--share", is_flag=True, help="Make it fit for a public bug report: see above.")
@click.option("--keep-names", is_flag=True, help="With --share: names of engines stay.")
@click.option("--keep-time", is_flag=True, help="With --share: the wall clock stays.")
@click.option("--dry-run", is_flag=True, help="With --share: list what it would contain, write nothing.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option("--json", "json_", is_flag=True, help="Print the summary as one JSON object.")
def command(
    directory: Path,
    output: Path | None,
    streams: tuple[str, ...],
    last: str | None,
    share: bool,
    keep_names: bool,
    keep_time: bool,
    dry_run: bool,
    force: bool,
    json_: bool,
) -> None:
    """Keep what the recording in the directory SOURCE holds as one compressed, checksummed file.

    Works while the engine runs and after it died. Each life of an engine becomes a stream of its own. With --last, a
    stream begins with the segment in which that time lies; the state before it is kept, so that nothing is unknown.

    With --share, the file fits into a public bug report: everything that could name a person, a machine or a text is
    taken out (names of engines and models, process numbers, boot ids, the wall clock, UUIDs of GPUs, names of pages,
    and whatever an engine says of itself that kvmon does not know), and a diagnosis finds the same. What is in it and
    what went is listed before the file has its name; --dry-run lists and writes nothing. SOURCE may be a capture then.
    """
    last_ns = None if last is None else round(parse_duration(last) * 1e9)
    if output is None and not (share and dry_run):
        raise ConfigError("give the file to write: --output X.kvmon")
    if share:
        from kvmon.cli.capture_share import write_shared

        write_shared(
            directory, output, streams, last_ns,
            keep_names=keep_names, keep_time=keep_time, dry_run=dry_run, force=force, json_=json_,
        )  # fmt: skip
        return
    for given, flag in ((keep_names, "--keep-names"), (keep_time, "--keep-time"), (dry_run, "--dry-run")):
        if given:
            raise ConfigError(f"{flag} belongs to --share: give that too, or leave it out")
    assert output is not None
    from kvmon.capture import CaptureWriter
    from kvmon.capture.copying import copy_recording, select_streams

    chosen = select_streams(directory, streams)
    with CaptureWriter(output, force=force) as writer, progress_of_words(chosen, "capturing") as advance:
        copied = copy_recording(chosen, writer, last_ns=last_ns, progress=advance)
    click.echo(as_json(output, copied) if json_ else as_text(output, copied))


def parse_duration(text: str) -> float:
    """Seconds from `90s`, `10m`, `2h` or `1.5d`. Raises ConfigError when `text` is no duration."""
    match = _DURATION.match(text)
    if match is None or float(match.group(1)) == 0:
        raise ConfigError(f"'{text}' is no time: write a number with s, m, h or d, such as 90s or 10m")
    return float(match.group(1)) * _SECONDS[match.group(2).lower()]


@contextmanager
def progress_of_words(paths: Sequence[Path], label: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while words of these streams or files are read; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda words: None
        return
    files = [file for path in paths for file in (path.glob("*.seg") if path.is_dir() else [path])]
    total = sum(file.stat().st_size // 4 for file in files if file.exists())
    with click.progressbar(length=max(total, 1), label=label, file=sys.stderr) as bar:
        yield bar.update


def as_text(output: Path, copied: Sequence[Copied]) -> str:
    """The summary for people: a line for the file, one for each stream, one for each hole."""
    size = output.stat().st_size
    operations = sum(stream.sink.unit_operations for stream in copied)
    each = f", {size / operations:.2f} bytes a unit-operation" if operations else ""
    lines = [f"{output}: {format_bytes(size)}, {counted(len(copied), 'stream')}{each}"]
    for stream in copied:
        lines.append(f"  {stream.facts.name} ({_life(stream)}): {size_text(stream)}")
        lines += hole_lines(stream)
    return "\n".join(lines)


def size_text(stream: Copied) -> str:
    """How much there is of a stream."""
    sink = stream.sink
    seconds = ((sink.last_time_ns or 0) - (sink.first_time_ns or 0)) / 1e9
    return (
        f"{counted(sink.frames, 'frame')}, {counted(sink.unit_operations, 'unit-operation')}, "
        f"{format_duration(seconds)}"
    )


def hole_lines(stream: Copied) -> list[str]:
    """A line for each hole of a stream."""
    return [f"    {_hole(hole.reason, hole.frame, hole.frames)}" for hole in stream.holes]


def as_json(
    output: Path | None, copied: Sequence[Copied], shared: Shared | None = None, size: int | None = None
) -> str:
    """The summary for machines; `size` in bytes, where the file has not the name `output`."""
    size = output.stat().st_size if size is None and output is not None else size or 0
    operations = sum(stream.sink.unit_operations for stream in copied)
    value: dict[str, Any] = {
        "path": None if output is None else str(output),
        "bytes": size,
        "unit_operations": operations,
        "bytes_per_unit_operation": size / operations if operations else None,
        "streams": [
            {
                "engine": stream.facts.engine,
                "rank": stream.facts.rank,
                "source": stream.source,
                "alive": stream.alive,
                "frames": stream.sink.frames,
                "unit_operations": stream.sink.unit_operations,
                "first_time_ns": stream.sink.first_time_ns,
                "last_time_ns": stream.sink.last_time_ns,
                "wall_ns": stream.facts.wall_ns,
                "mono_ns": stream.facts.mono_ns,
                "holes": [
                    {"reason": hole.reason, "frame": hole.frame, "frames": hole.frames, "damaged": hole.damaged}
                    for hole in stream.holes
                ],
            }
            for stream in copied
        ],
    }
    if shared is not None:
        value["shared"] = shared.as_json()
    return json.dumps(value, indent=2)


def _life(stream: Copied) -> str:
    return {True: "alive", False: "ended", None: "not seen whether alive"}[stream.alive]


def _hole(reason: str, frame: int | None, frames: int) -> str:
    if frame is None:
        return f"hole: {reason}"
    return f"hole: {reason}: {format_count(frames)} frames from frame {frame} on"

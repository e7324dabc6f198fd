"""`kvmon export`: captures and recordings for other tools: Parquet for DuckDB and its like, a trace for Perfetto.

Wiring only: `kvmon.replay.export` reads and writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.cli.capture import parse_duration
from kvmon.cli.output_file import not_the_input, output_option
from kvmon.errors import ConfigError, InputError
from kvmon.units import counted, format_bytes

if TYPE_CHECKING:
    from kvmon.replay.export.parquet import Exported
    from kvmon.replay.export.perfetto import Traced
    from kvmon.replay.export.window import Window

__all__ = ["command"]

_FORMATS = ("parquet", "perfetto")
_FRAME = "frame"
_TRACE_ENDINGS = (".json", ".json.gz")
_SECOND_NS = 1_000_000_000
_MISSING_SHOWN = 5


@click.command("export")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(path_type=Path, readable=False))
@output_option("-o", "--output", required=True, help="Parquet: the directory to write. Perfetto: X.json or X.json.gz.")
@click.option(
    "--to", "format_", type=click.Choice(_FORMATS), help="What to write; without it, the name of the output decides."
)
@click.option(
    "--every",
    metavar="TIME",
    help="How often states are told: 1s, 100ms, or frame for each step.  [default: parquet 1s; perfetto frame, of more "
    "than 100,000 steps 20,000 times]",
)
@click.option("--from", "begin", metavar="TIME", help="Only what happened behind this moment: see below.")
@click.option("--until", "end", metavar="TIME", help="Only what happened up to this moment.")
@click.option("--table", "tables", multiple=True, help="Parquet: only this table; may be repeated.")
@click.option("--force", is_flag=True, help="Replace an export, or a trace, that is there.")
@click.option("--json", "json_", is_flag=True, help="Print the summary as one JSON object.")
def command(
    paths: tuple[Path, ...],
    output: Path,
    format_: str | None,
    every: str | None,
    begin: str | None,
    end: str | None,
    tables: tuple[str, ...],
    force: bool,
    json_: bool,
) -> None:
    """Write PATH, capture files or recording directories, in a form that other tools read.

    Parquet is a directory of tables: events, states over time, requests, failures, who held the memory at each of
    them, and the streams themselves. Of several PATHs each gets a folder, so that DuckDB reads a whole fleet with one
    glob; docs/export.md has the columns and the questions. Needs pyarrow: pip install 'kvmon[export]'.

    Perfetto is a trace that ui.perfetto.dev and chrome://tracing open: counters of each pool, a track for each
    request with its phases, and a mark for each refused allocation, preemption and loss.

    TIME is +90s or 12m30s from the begin, -30s from the end, 2026-11-23T08:45:04Z, or ns of the engine's clock. What
    of a damaged file can be read is exported; what is missing is said, and stands in the table streams.
    """
    chosen = format_ or ("perfetto" if output.name.endswith(_TRACE_ENDINGS) else "parquet")
    every_ns = None if every is None else _every(every)
    from kvmon.cli.streams import reading
    from kvmon.replay.export.window import parse_window

    window = parse_window(begin, end)
    for path in paths:
        if not path.is_file() and not path.is_dir():
            what = "is neither a capture nor a directory" if path.exists() else "is not there"
            raise InputError(f"{path} {what}: give a capture file or a recording directory")
        not_the_input(output, path)
    with reading(paths, "exporting") as advance:
        if chosen == "parquet":
            states_ns = _SECOND_NS if every_ns is None else every_ns
            _parquet(paths, output, states_ns, window, tables, json_, force=force, progress=advance)
        else:
            _perfetto(paths, output, every_ns, window, tables, json_, force=force, progress=advance)


def _every(text: str) -> int:
    """The interval in ns, 0 = each frame."""
    if text.strip().lower() == _FRAME:
        return 0
    if text.strip().lower().endswith("ms"):
        return round(parse_duration(text.strip()[:-2] + "s") * 1e6)
    return round(parse_duration(text) * 1e9)


def _parquet(
    paths: tuple[Path, ...],
    output: Path,
    every_ns: int,
    window: Window | None,
    tables: tuple[str, ...],
    json_: bool,
    **more: Any,
) -> None:
    from kvmon.replay.export.parquet import export_parquet
    from kvmon.replay.export.schema import SCHEMA_VERSION, TABLES

    done = export_parquet(paths, output, every_ns=every_ns, window=window, tables=tables or tuple(TABLES), **more)
    for exported in done:
        _say_missing(exported.source, exported.missing)
    if json_:
        said = {
            "output": str(output),
            "format": "parquet",
            "schema": SCHEMA_VERSION,
            "bytes": sum(exported.bytes for exported in done),
            "captures": [
                {
                    "source": str(exported.source),
                    "capture": exported.name,
                    "lives": exported.lives,
                    "rows": exported.rows,
                    "bytes": exported.bytes,
                    "missing": exported.missing,
                }
                for exported in done
            ],
        }
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(_parquet_text(output, done))


def _parquet_text(output: Path, done: list[Exported]) -> str:
    size = format_bytes(sum(exported.bytes for exported in done))
    lines = [f"{output}: {size}, {counted(len(done), 'capture')}"]
    for exported in done:
        rows = ", ".join(f"{count:,} {table}" for table, count in exported.rows.items() if count)
        lines.append(f"  {exported.name}: {rows or 'nothing in this time'}")
    glob = output / ("*/" if len(done) > 1 else "") / "failures.parquet"
    question = f"SELECT engine, reason, count(*) FROM '{glob}' GROUP BY ALL"
    return "\n".join([*lines, f'ask it: duckdb -c "{question}"'])


def _perfetto(
    paths: tuple[Path, ...],
    output: Path,
    every_ns: int | None,
    window: Window | None,
    tables: tuple[str, ...],
    json_: bool,
    **more: Any,
) -> None:
    from kvmon.replay.export.perfetto import LARGE_BYTES, MOST_FRAMES, export_perfetto

    if len(paths) > 1:
        raise ConfigError("a trace is of one capture: give one PATH, or --to parquet for many")
    if tables:
        raise ConfigError("--table chooses what Parquet holds: leave it out, or give --to parquet")
    done = export_perfetto(paths[0], output, every_ns=every_ns, window=window, **more)
    _say_missing(paths[0], done.missing)
    if done.every_ns and every_ns is None:
        click.echo(
            f"kvmon: more than {MOST_FRAMES:,} steps: counters and steps are told every {done.every_ns / 1e6:g} ms, "
            "with their extremes; --every frame tells each, --from and --until a part",
            err=True,
        )
    if done.json_bytes > LARGE_BYTES:
        click.echo(
            f"kvmon: the trace is large, {format_bytes(done.json_bytes)} of JSON: where the browser cannot open it, "
            "give --from and --until",
            err=True,
        )
    if json_:
        said = {
            "output": str(output),
            "format": "perfetto",
            "events": done.events,
            "lives": done.lives,
            "every_ns": done.every_ns,
            "bytes": output.stat().st_size,
            "json_bytes": done.json_bytes,
            "missing": done.missing,
        }
        click.echo(json.dumps(said, indent=2))
    else:
        click.echo(_perfetto_text(output, done))


def _perfetto_text(output: Path, done: Traced) -> str:
    size = format_bytes(output.stat().st_size)
    return f"{output}: {size}, {counted(done.events, 'event')}; open it in https://ui.perfetto.dev"


def _say_missing(source: Path, missing: list[str]) -> None:
    for text in missing[:_MISSING_SHOWN]:
        click.echo(f"kvmon: {source}: {text}; what can be read was exported", err=True)
    if len(missing) > _MISSING_SHOWN:
        click.echo(f"kvmon: {source}: and {len(missing) - _MISSING_SHOWN:,} more that are missing", err=True)

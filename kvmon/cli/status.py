"""`kvmon status`: one line a pool for a person on call or a script.

Wiring only: recordings are followed as the exporter follows them. Nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError, RecordingError

if TYPE_CHECKING:
    from kvmon.exporter.follow import StreamFollower
    from kvmon.state import PoolState

__all__ = ["command"]


@click.command("status")
@click.argument("directory", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def command(directory: Path | None, json_: bool) -> None:
    """Say how the engines are that record into DIRECTORY (default: KVMON_DIR), a line a pool.

    The verdict is that of the last minute of the engine's time. Exit code 0 when every engine lives and nothing was
    found, 1 otherwise.
    """
    if directory is None:
        raise ConfigError("no directory to look at: give the one the engine records into, or set KVMON_DIR")
    from kvmon.cli.patience import patience
    from kvmon.exporter.follow import DirectoryFollower
    from kvmon.exporter.warmup import warm_up
    from kvmon.recording import find_streams

    follower = DirectoryFollower([directory], fold_dead=True)
    try:
        if directory.is_file():
            raise RecordingError(f"{directory} is a file: 'kvmon replay {directory}' says what is in a capture")
        find_streams(directory)  # says what is wrong with the path, of the right kind
        follower.look()
        if follower.problems:
            raise RecordingError(next(iter(follower.problems.values())))
        with patience():
            warm_up()
            follower.catch_up()
        rows = [row for stream in follower.streams if stream.header for row in _rows(stream)]
        problems = [stream.problem for stream in follower.streams if stream.problem]
    finally:
        follower.close()
    if not rows:
        _why_not(directory)
        raise RecordingError(f"no engine has recorded in {directory}: start one with KVMON_DIR={directory}")
    for problem in problems:
        click.echo(f"kvmon: {directory}: {problem}; the other engines are told", err=True)
    if json_:
        click.echo(json.dumps({"pools": rows}, indent=2))
    else:
        width = max(len(f"{row['engine']}-{row['rank']} {row['pool']}") for row in rows)
        click.echo("\n".join(_line(row, width) for row in rows))
    if problems or any(row["verdicts"] != ["healthy"] or row["life"] in ("dead", "stalled") for row in rows):
        raise click.exceptions.Exit(1)


def _why_not(directory: Path) -> None:
    """Raise what stands against reading a stream, where something does: a newer format, no permission."""
    from kvmon.recording import find_streams, headers

    for stream in find_streams(directory):
        for _ in headers(stream):
            pass


def _rows(stream: StreamFollower) -> list[dict[str, Any]]:
    """What is known of each pool of an engine; one row without a pool where none was seen."""
    from kvmon.cli.streams import sees_the_cache_alone
    from kvmon.diagnosis import HEALTHY

    now = stream.diagnose()
    who = {"engine": stream.engine, "rank": stream.rank, "life": stream.life.value}
    step = stream.state.last_step
    who |= {"running": step.running if step else None, "waiting": step.waiting if step else None}
    if not stream.state.pools:
        return [{**who, "pool": "-", "verdicts": [HEALTHY], "known": False, "summary": "no pool was seen yet"}]
    rows = []
    for number, pool in sorted(stream.state.pools.items()):
        holds = now.holding.get(number, {})
        known = stream.state.converged and not sees_the_cache_alone(stream.state)
        rows.append(
            {
                **who,
                "pool": pool.name,
                "verdicts": list(holds) or [HEALTHY],
                "summary": next(iter(holds.values())).summary if holds else None,
                "known": known,
                "cache_only": sees_the_cache_alone(stream.state),
                **(_memory(pool) if known else {}),
                "head_need_units": stream.head_need(number),
            }
        )
    return rows


def _memory(pool: PoolState) -> dict[str, Any]:
    return {
        "capacity_units": pool.capacity_units,
        "used_ratio": pool.used / pool.capacity_units,
        "evictable_ratio": pool.evictable / pool.capacity_units,
        "free_units": pool.free,
        "largest_free_units": pool.largest_free,
    }


def _line(row: dict[str, Any], width: int) -> str:
    from kvmon.units import format_ratio

    parts = []
    if row["life"] != "alive":
        parts.append(row["life"])
    if "used_ratio" in row:
        parts.append(f"{format_ratio(row['used_ratio'])} used, {format_ratio(row['evictable_ratio'])} cached")
        parts.append(f"{row['free_units']:,} units free, largest block {row['largest_free_units']:,}")
    else:
        unknown = "its past is not known" + ("" if row["life"] == "dead" else " yet")
        if row.get("cache_only"):
            unknown = "its adapter sees the prefix cache alone"
        parts.append(unknown if row["pool"] != "-" else str(row["summary"]))
    if row["waiting"]:
        need = f" (the first one for {row['head_need_units']:,} units)" if row.get("head_need_units") else ""
        parts.append(f"{row['waiting']:,} waiting{need}")
    name = f"{row['engine']}-{row['rank']} {row['pool']}"
    return f"{name:<{width}}  {'+'.join(row['verdicts']):<16} {'; '.join(parts)}"

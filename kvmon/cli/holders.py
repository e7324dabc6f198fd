"""`kvmon holders`: who holds the memory now, by class, by state and by age.

Wiring only: `kvmon.replay` reads a recording or capture to its end, `kvmon.report.holders` groups and says it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvmon.errors import ConfigError, RecordingError

__all__ = ["command"]


@click.command("holders")
@click.argument("path", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--by", default="class,state", show_default=True, metavar="KEYS", help="Of class, state and age.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def command(path: Path | None, by: str, json_: bool) -> None:
    """Say who holds the KV memory at the end of PATH, a recording directory or a capture (default: KVMON_DIR).

    Ages count from the arrival of a request. What no live request holds is listed by its state.
    """
    from kvmon.cli.streams import read_streams, sees_the_cache_alone
    from kvmon.report.holders import KEYS, holders_of, holders_table

    keys = [key.strip() for key in by.split(",")]
    if len(set(keys)) < len(keys) or any(key not in KEYS for key in keys):
        raise ConfigError(f"'{by}' names no groups: give {', '.join(KEYS)}, or some of them with commas")
    streams = [stream for stream in read_streams(path) if stream.state.pools]
    if not streams:
        raise RecordingError(f"{path} holds no pool: nothing is known of its memory")
    known = [stream for stream in streams if not sees_the_cache_alone(stream.state)]
    if not known:
        raise RecordingError(f"who holds the memory of {path} is not known: its adapter sees the prefix cache alone")
    pools = [
        holders_of(stream.facts.engine, stream.facts.rank, stream.state, pool, keys)
        for stream in known
        for _, pool in sorted(stream.state.pools.items())
    ]
    if json_:
        click.echo(json.dumps({"pools": pools}, indent=2))
    else:
        click.echo("\n\n".join("\n".join(holders_table(pool, keys)) for pool in pools))

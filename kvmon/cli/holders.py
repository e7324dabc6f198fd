"""`kvmon holders`: who holds the memory now, by class, by state and by age.

Wiring only: `kvmon.replay` reads a recording or capture to its end. A page that several requests share counts for each.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmon.errors import ConfigError, RecordingError

if TYPE_CHECKING:
    from kvmon.replay import StreamDiagnosis

__all__ = ["command"]

_KEYS = ("class", "state", "age")
_AGES = ((1, "under 1 s"), (10, "1 to 10 s"), (60, "10 to 60 s"), (600, "1 to 10 min"), (float("inf"), "over 10 min"))


@click.command("holders")
@click.argument("path", required=False, envvar="KVMON_DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--by", default="class,state", show_default=True, metavar="KEYS", help="Of class, state and age.")
@click.option("--json", "json_", is_flag=True, help="Print one JSON object.")
def command(path: Path | None, by: str, json_: bool) -> None:
    """Say who holds the KV memory at the end of PATH, a recording directory or a capture (default: KVMON_DIR).

    Ages count from the arrival of a request. What no live request holds is listed by its state.
    """
    keys = [key.strip() for key in by.split(",")]
    if not keys or len(set(keys)) < len(keys) or any(key not in _KEYS for key in keys):
        raise ConfigError(f"'{by}' names no groups: give {', '.join(_KEYS)}, or some of them with commas")
    from kvmon.cli.streams import read_streams

    streams = read_streams(path)
    pools = [pool for stream in streams if stream.state.pools for pool in _pools(stream, keys)]
    if not pools:
        raise RecordingError(f"{path} holds no pool: nothing is known of its memory")
    if json_:
        click.echo(json.dumps({"pools": pools}, indent=2))
    else:
        click.echo("\n\n".join(_table(pool, keys) for pool in pools))


def _pools(stream: StreamDiagnosis, keys: list[str]) -> list[dict[str, Any]]:
    from kvmon.events import RequestState

    state = stream.state
    requests = state.requests
    rows = [int(row) for row in requests.id.nonzero()[0]]
    pools = []
    for number, pool in sorted(state.pools.items()):
        held: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for row in rows:
            units = int(requests.units[row, number])
            if not units:
                continue
            age = max(state.time_ns - int(requests.arrived[row]), 0) / 1e9
            said = {
                "class": f"class {int(requests.class_id[row])}",
                "state": RequestState(int(requests.state[row])).name.lower(),
                "age": next(name for most, name in _AGES if age < most),
            }
            group = held[tuple(said[key] for key in keys)]
            group[0] += 1
            group[1] += units
        others = {name: units for name, units in pool.units.items() if name not in ("active", "free") and units}
        if pool.unowned:
            others["without an owner"] = pool.unowned
        pools.append(
            {
                "engine": stream.facts.engine,
                "rank": stream.facts.rank,
                "pool": pool.name,
                "known": state.converged,
                "capacity_units": pool.capacity_units,
                "free_units": pool.free,
                "unit_bytes": pool.unit_bytes,
                "holders": [
                    {**dict(zip(keys, key, strict=True)), "requests": count, "units": units}
                    for key, (count, units) in sorted(held.items(), key=lambda item: -item[1][1])
                ],
                "others": [{"state": name, "units": units} for name, units in others.items()],
            }
        )
    return pools


def _table(pool: dict[str, Any], keys: list[str]) -> str:
    from kvmon.units import format_bytes, format_ratio

    capacity = max(pool["capacity_units"], 1)

    def amount(units: int) -> str:
        size = f"  {format_bytes(units * pool['unit_bytes'])}" if pool["unit_bytes"] else ""
        return f"{units:>10,} {format_ratio(units / capacity):>8}{size}"

    head = f"{pool['engine']}-{pool['rank']} {pool['pool']}"
    head += f": {pool['capacity_units']:,} units, {pool['free_units']:,} free"
    lines = [head if pool["known"] else f"{head} (the past is not known: read with care)"]
    lines.append(f"  {'held by':<34} {'requests':>8} {'units':>10} {'of pool':>8}")
    for holder in pool["holders"]:
        name = ", ".join(holder[key] for key in keys)
        lines.append(f"  {name:<34} {holder['requests']:>8,} {amount(holder['units'])}")
    for other in pool["others"]:
        lines.append(f"  {other['state']:<34} {'':>8} {amount(other['units'])}")
    if not pool["holders"] and not pool["others"]:
        lines.append("  nobody")
    held = sum(holder["units"] for holder in pool["holders"]) + sum(other["units"] for other in pool["others"])
    if held + pool["free_units"] > pool["capacity_units"]:
        lines.append("  units that several requests share count for each of them")
    return "\n".join(lines)

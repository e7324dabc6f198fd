"""Who holds the memory of a pool, in groups: for `kvmon holders` and for a moment of a recording.

Invariant: every number is of the folded state. A unit that several requests share counts for each of them, and the
table says so where it matters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kvmon.events import RequestState
from kvmon.state import PoolState, StreamState
from kvmon.units import format_bytes, format_ratio

__all__ = ["KEYS", "holders_of", "holders_table"]

KEYS = ("class", "state", "age")
"""What requests can be grouped by; ages count from their arrival."""
_AGES = ((1, "under 1 s"), (10, "1 to 10 s"), (60, "10 to 60 s"), (600, "1 to 10 min"), (float("inf"), "over 10 min"))


def holders_of(engine: str, rank: int, state: StreamState, pool: PoolState, keys: Sequence[str]) -> dict[str, Any]:
    """Requests in groups by `keys` (of KEYS) with their units, the largest first; then what no live request holds.

    Plain data. Needs a state with detail.
    """
    requests, number = state.requests, pool.number
    held: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
    for row in requests.id.nonzero()[0].tolist():
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
    return {
        "engine": engine,
        "rank": rank,
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


def holders_table(pool: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """What `holders_of` gave, in lines."""
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
    return lines

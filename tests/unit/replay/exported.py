"""What an export has to say, from events that are decoded one by one: it shares no code with the exporter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from kvmon.events import Event, Kind, decode
from kvmon.state import FrameTable

OF_A_POOL = {
    *(kind for kind in Kind if kind <= 9),
    *(Kind.POOL_RESET, Kind.ASSIGN, Kind.ASSIGN_RUN, Kind.TRUNCATE, Kind.ALLOC_FAILED, Kind.OFFLOADED),
    *(Kind.ONBOARDED, Kind.MIGRATED, Kind.COMPACTED, Kind.CLAIMS, Kind.AUDIT_SLICE, Kind.AUDIT_RUN),
}


def rows_of(directory: Path, table: str, columns: str = "*", order: str = "") -> list[dict[str, Any]]:
    """Rows of one table of an export."""
    with duckdb.connect() as connection:
        relation = connection.sql(f"SELECT {columns} FROM '{directory}/{table}.parquet' {order}")
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def naive_events(words: npt.NDArray[np.uint32], table: FrameTable) -> Iterator[dict[str, Any]]:
    """Row for row what `events` has to hold: place, kind, pool, request, run of units, and what the record says."""
    said, begin = words.tolist(), 0
    for end, number, time_ns in zip(table.ends.tolist(), table.numbers.tolist(), table.times.tolist(), strict=True):
        for event in decode(said, begin, end):
            place = {"time_ns": time_ns, "frame": number, "word": event.position - begin}
            for unit, units in runs_of(event):
                yield {**place, "kind": event.kind.name.lower(), "pool": pool_of(event), "unit": unit, "units": units,
                       "request": event.fields.get("request"), "fields": event.fields}  # fmt: skip
        begin = end


def pool_of(event: Event) -> int | None:
    """The pool that an event is about."""
    if event.kind in (Kind.POOL_ATTACHED, Kind.POOL_CHANGED):
        return int(event.fields["pool"])
    return event.pool if event.kind in OF_A_POOL else None


def runs_of(event: Event) -> list[tuple[int | None, int | None]]:
    """(first unit, how many) of each stretch of neighbours that an event names, in its order."""
    fields = event.fields
    if event.kind is Kind.AUDIT_SLICE:
        return [(fields["start"], len(fields["status"]))]
    if event.kind is Kind.AUDIT_RUN:
        return [(fields["start"], fields["units"])]
    if event.kind is Kind.MIGRATED:
        return [(fields["new_start"], fields["new_units"])]
    if event.kind is Kind.COMPACTED:
        return [(None, fields["moved_units"])]
    runs: list[list[int]] = []
    for unit in event.units:
        if runs and unit == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([unit, 1])
    return [(unit, units) for unit, units in runs] or [(None, None)]

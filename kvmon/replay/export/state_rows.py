"""Rows of the table `states` from a stretch of curves: one a pool and interval.

Invariant: numbers are those of `kvmon.replay.timeline_model`, absent where they are NaN there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.replay.export.columns import constant, floats, integers, times
from kvmon.replay.timeline_model import Curve, Timeline

__all__ = ["state_columns"]

Floats = npt.NDArray[np.float64]

_OF_POOL = ("allocated", "released", "evicted")
_REAL = ("memory_wait_s",)


def state_columns(pa: Any, curves: Timeline, wall_offset_ns: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(rows, columns) for each pool, but for whose they are; one without a pool where there is none."""
    begins, ends = curves.edges_ns[:-1], curves.edges_ns[1:]
    shared = {
        "begin_ns": pa.array(begins),
        "time_ns": pa.array(ends),
        "time": times(pa, ends + (wall_offset_ns or 0), wall_offset_ns is not None),
    }
    for curve in curves.curves.values():
        shared |= _curve(pa, curve)
    for name, values in curves.counts.items():
        shared[name] = floats(pa, values) if name in _REAL else _whole(pa, values)
    if not curves.pools:
        yield curves.buckets, {**shared, "known": floats(pa, curves.known)}
    for pool in curves.pools:
        columns = {
            **shared,
            "known": floats(pa, pool.known),
            "pool": pa.array(np.full(curves.buckets, pool.number, np.int32)),
            "pool_name": constant(pa, curves.buckets, pool.name),
            "tier": constant(pa, curves.buckets, pool.tier),
            "layout": constant(pa, curves.buckets, pool.layout),
            "unit_bytes": integers(pa, np.full(curves.buckets, pool.unit_bytes or -1, np.int64)),
            "unit_tokens": pa.array(np.full(curves.buckets, pool.unit_tokens, np.int64)),
        }
        for curve in pool.curves.values():
            columns |= _curve(pa, curve)
        columns |= {name: _whole(pa, pool.counts[name]) for name in _OF_POOL}
        refused = np.zeros(curves.buckets)
        for counts in pool.failures.values():
            refused = refused + counts
        columns["refused"] = _whole(pa, refused)
        yield curves.buckets, columns


def _curve(pa: Any, curve: Curve) -> dict[str, Any]:
    whole = curve.unit not in ("ratio", "s")
    parts = {"": curve.last, "_least": curve.least, "_most": curve.most}
    columns = {
        f"{curve.name}{suffix}": _whole(pa, values) if whole else floats(pa, values) for suffix, values in parts.items()
    }
    if curve.mean is not None:
        columns[f"{curve.name}_mean"] = floats(pa, curve.mean)
    return columns


def _whole(pa: Any, values: Floats) -> Any:
    """Whole numbers that stand in floats; a drift or a residual may be below zero."""
    unknown = np.isnan(values)
    return pa.array(np.where(unknown, 0, values).astype(np.int64), pa.int64(), mask=unknown)

"""The memory of a pool as a map: one code and one fill a unit, gathered into as many cells as a drawing has room for.

    code   free, active, reserved (active, nothing written in it), cached, pinned, deferred
    fill   0 .. 255, the written share of an active unit; 255 for whatever else holds content

Invariant: the units of all cells sum to the capacity, and so do the shares of a cell to its units. The order is that
of the addresses, so that holes show where they are. Nothing is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvmon.events.wire import CACHED, DEFERRED, PINNED, REFS
from kvmon.state import PoolState, StreamState

__all__ = ["MAP_STATES", "Cell", "MemoryMap", "memory_map"]

MAP_STATES = ("free", "active", "reserved", "cached", "pinned", "deferred")
_FREE, _ACTIVE, _RESERVED, _CACHED, _PINNED, _DEFERRED = range(6)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cell:
    """Adjacent units drawn as one. `state` holds the most of the units that are not free; `fill` is the used share, 0
    to 1."""

    state: str
    fill: float


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """Codes (an index into MAP_STATES) and fills of all units, in order of address."""

    codes: bytes
    fills: bytes

    def units_per_cell(self, cells: int) -> int:
        """How many units a cell stands for where there is room for `cells`."""
        return max(1, -(-len(self.codes) // max(1, cells)))

    def cells(self, most: int) -> list[Cell]:
        """At most `most` cells, all of the same number of units but the last one."""
        counts, filled = self._gather(self.units_per_cell(most))
        width = counts.sum(axis=1)
        states = np.where(counts[:, 1:].any(axis=1), 1 + counts[:, 1:].argmax(axis=1), _FREE)
        shares = filled / np.maximum(width, 1)
        return [Cell(MAP_STATES[state], share) for state, share in zip(states.tolist(), shares.tolist(), strict=True)]

    def as_json(self, most: int) -> dict[str, Any]:
        """Units by state of at most `most` cells, and the used share of each."""
        per_cell = self.units_per_cell(most)
        counts, filled = self._gather(per_cell)
        width = np.maximum(counts.sum(axis=1), 1)
        return {
            "states": list(MAP_STATES),
            "units_per_cell": per_cell,
            "cells": counts.tolist(),
            "fill": [round(share, 3) for share in (filled / width).tolist()],
        }

    def _gather(self, per_cell: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Units of each state in each cell (cells, states), and the filled units of each (cells)."""
        codes = np.frombuffer(self.codes, np.uint8).astype(np.int64)
        cell = np.arange(len(codes)) // per_cell
        cells = -(-len(codes) // per_cell)
        counts = np.bincount(cell * len(MAP_STATES) + codes, minlength=cells * len(MAP_STATES))
        filled = np.bincount(cell, weights=np.frombuffer(self.fills, np.uint8) / 255, minlength=cells)
        return counts.reshape(cells, len(MAP_STATES)).astype(np.int64), filled.astype(np.float64)


def memory_map(state: StreamState, pool: PoolState) -> MemoryMap:
    """The map of a pool as its stream was folded. Needs a state with detail."""
    status = pool.status
    codes = np.zeros(len(status), np.uint8)
    codes[(status & np.uint32(CACHED)) > 0] = _CACHED
    codes[(status & np.uint32(PINNED)) > 0] = _PINNED
    codes[(status & np.uint32(DEFERRED)) > 0] = _DEFERRED
    codes[(status & np.uint32(REFS)) > 0] = _ACTIVE
    fills = np.where(codes == _FREE, 0, 255).astype(np.uint8)
    for row in np.flatnonzero(state.requests.units[:, pool.number]).tolist():
        for table in state.tables(row, pool.number):
            if table.tail or table.reserved:
                reserved_units = table.reserved // pool.unit_tokens
                _unwritten(table.units, table.tail, reserved_units, pool.unit_tokens, codes, fills)
    return MemoryMap(codes.tobytes(), fills.tobytes())


def _unwritten(
    table: npt.NDArray[np.int64], tail: int, reserved_units: int, unit_tokens: int, codes: Bytes, fills: Bytes
) -> None:
    """Mark the units at the end of a block table: reserved ones hold nothing, the one before them a part."""
    written = len(table) - reserved_units
    beyond = table[max(written, 0) :] - 1
    codes[beyond], fills[beyond] = _RESERVED, 0
    if tail and written > 0:
        fills[table[written - 1] - 1] = round(255 * (unit_tokens - tail) / unit_tokens)

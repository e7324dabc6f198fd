"""More room for the arrays of a fold, between two calls of its kernels. What is in them keeps its place."""

from __future__ import annotations

import numpy as np

from kvmon.state.arrays import Array, Ints, Misc, Nodes, Requests
from kvmon.state.requests import place

__all__ = ["extended", "grown_nodes", "grown_requests", "grown_rows"]


def grown_requests(old: Requests, misc: Ints) -> Requests:
    """Twice the rows, when every row of `old` is taken."""
    rows = len(old.id)
    grown = Requests.make(rows * 2)
    for name in Requests._fields:
        if name not in ("keys", "slots", "next_free", "waits"):
            getattr(grown, name)[:rows] = getattr(old, name)
    grown.waits[:] = old.waits
    for row, request in enumerate(old.id.tolist()):
        at = place(grown, request)
        grown.keys[at], grown.slots[at] = request, row
    misc[Misc.SLOT_FREE] = misc[Misc.SLOTS_LEFT] = rows
    return grown


def grown_nodes(old: Nodes, misc: Ints, least: int) -> Nodes:
    """Twice the nodes, `least` more at the least; the new ones lead the list of free nodes."""
    size = len(old.unit)
    more = max(size, least)
    grown = Nodes(*(np.concatenate(pair) for pair in zip(old, Nodes.make(more), strict=True)))
    grown.next[size:] = np.arange(size + 1, size + more + 1)
    grown.next[-1] = misc[Misc.NODES_FREE]
    misc[Misc.NODES_FREE] = size
    misc[Misc.NODES_LEFT] += more
    return grown


def grown_rows(old: Ints) -> Ints:
    """What is kept beside each row of the requests, for twice the rows."""
    return np.concatenate([old, np.zeros_like(old)])


def extended(array: Array, more: int) -> Array:
    """The array with `more` zeros behind it, which take no memory before something is written there."""
    longer = np.zeros(len(array) + more, array.dtype)
    longer[: len(array)] = array
    return longer

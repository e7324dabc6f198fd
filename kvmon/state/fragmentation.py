"""The only definitions of fragmentation, over free runs.

F = free units in all, L = the longest free run, N = the number of free runs, s = the units a request needs. A value
that is not defined is None, never zero.

In a buddy pool (Knuth TAOCP 1, 2.5) a block has 2**k units and lies at an offset (unit - 1) that is a multiple of 2**k,
so a run holds fewer blocks than its length says. What could be granted follows from which units are free, because free
buddies always merge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "buddy_placements",
    "buddy_size",
    "external_fragmentation",
    "fragmentation_index",
    "free_run_lengths",
    "free_runs",
    "largest_buddy",
    "lost_ratio",
    "lost_ratio_of_buddies",
    "lost_share",
    "runs_by_order",
    "runs_in_table",
    "unusable_index",
]

Lengths = npt.NDArray[np.int64]


def free_runs(free: npt.NDArray[np.bool_]) -> tuple[Lengths, Lengths]:
    """Offsets and lengths of the maximal stretches of True; `free` has one entry a unit, in order of address."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], free, [False])).view(np.int8))).astype(np.int64)
    return edges[::2], edges[1::2] - edges[::2]


def free_run_lengths(free: npt.NDArray[np.bool_]) -> Lengths:
    """Lengths of the maximal stretches of True, in order of address; `free` has one entry a unit, in address order."""
    return free_runs(free)[1]


def external_fragmentation(longest: int, free: int) -> float | None:
    """`1 - L/F`; None when nothing is free. A trend, no alarm: it is blind to what requests need."""
    return None if free <= 0 else 1.0 - longest / free


def lost_ratio(runs: Lengths, size: int) -> float | None:
    """The share of placements of `size` units that fragmentation took: `1 - sum(floor(run_i / s)) / floor(F / s)`.

    0 for a single run, 1 when enough is free and nothing fits; None where not even F holds one (F < s) or `size` < 1.
    """
    return None if size < 1 else lost_share(int((runs // size).sum()), int(runs.sum()), size)


def lost_share(placements: int, free: int, size: int) -> float | None:
    """`lost(s)` where it is known how many blocks of `size` fit: `1 - placements / floor(F / s)`; None when F < s."""
    return None if size < 1 or free < size else 1.0 - placements / (free // size)


def buddy_size(size: int) -> int:
    """What a buddy pool grants for `size` units: the next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def buddy_placements(offsets: Lengths, lengths: Lengths, size: int) -> int:
    """How many blocks of `size`, a power of two, lie at multiples of it inside the free runs."""
    blocks = (offsets + lengths) // size - (offsets + size - 1) // size
    return int(np.maximum(blocks, 0).sum())


def largest_buddy(offsets: Lengths, lengths: Lengths) -> int:
    """G of a buddy pool: the largest power of two that a free run holds at a multiple of itself; 0 without runs."""
    if len(lengths) == 0:
        return 0
    size = 1 << int(lengths.max()).bit_length() - 1
    return size if buddy_placements(offsets, lengths, size) else max(1, size >> 1)


def lost_ratio_of_buddies(offsets: Lengths, lengths: Lengths, size: int) -> float | None:
    """`lost(s)` of a buddy pool: blocks of the granted size r that fit, of those that F would hold:
    `1 - placements(r) / floor(F / r)`; None when F < r or `size` < 1.
    """
    if size < 1:
        return None
    granted = buddy_size(size)
    return lost_share(buddy_placements(offsets, lengths, granted), int(lengths.sum()), granted)


def unusable_index(runs: Lengths, size: int) -> float | None:
    """Linux's unusable free space index `U(s) = 1 - sum(floor(run_i / s) * s) / F` (mm/vmstat.c); None when F = 0.

    It mixes the remainder into the loss: one run of 100 with s = 60 gives 0.4. For comparison only.
    """
    free = int(runs.sum())
    if free == 0 or size < 1:
        return None
    return 1.0 - int((runs // size).sum()) * size / free


def fragmentation_index(runs: Lengths, size: int) -> float | None:
    """Linux's `__fragmentation_index` `X(s) = 1 - (1 + F/s) / N`, clipped to 0..1; None without runs or where a
    run fits.

    Assumes a buddy allocator: reported for buddy pools, decides nothing (4 runs of 8 with s = 16 are pure fragmentation
    and give 0.25, 100 crumbs of 1 with s = 1000 pure shortage and 0.99).
    """
    if len(runs) == 0 or size < 1 or int(runs.max()) >= size:
        return None
    return min(1.0, max(0.0, 1.0 - (1.0 + int(runs.sum()) / size) / len(runs)))


def runs_by_order(runs: Lengths, orders: int) -> Lengths:
    """How many runs have a length in [2**k, 2**(k+1)) for k = 0 .. orders - 1; longer ones count in the last."""
    if len(runs) == 0:
        return np.zeros(orders, np.int64)
    order = np.minimum(np.floor(np.log2(runs)).astype(np.int64), orders - 1)
    return np.bincount(order, minlength=orders).astype(np.int64)


def runs_in_table(units: npt.NDArray[np.int64]) -> int:
    """Into how many stretches of ascending neighbours a block table falls: what a transfer pays for scattered units."""
    return 0 if len(units) == 0 else 1 + int((np.diff(units) != 1).sum())

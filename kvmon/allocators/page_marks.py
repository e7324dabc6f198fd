"""Kernels that mark pages of a pool: pinned, so that their content stays, or held, while a transfer still reads them.

Invariant: a pinned page has content; a held one waits in no queue when its last reference goes, until `end_hold`. What
the marks mean to references and the free queue is in `page_pool.py`. They write no journal.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvmon.allocators.page_pool import (
    DEFERRED,
    HELD,
    IDLE_PINNED,
    MARK,
    NEXT,
    PIN_AFTER,
    PIN_CAP,
    PINNED,
    PINNED_PAGES,
    REF,
    USES,
    PagePool,
    queue_page,
)
from kvmon.jit import kernel

__all__ = ["end_hold", "hold_pages", "pin_hot"]


@kernel
def hold_pages(pool: PagePool, row: npt.NDArray[np.int32], n: int, entry: npt.NDArray[np.int64]) -> None:
    """A transfer begins to read those of `row[:n]` that have one reference and no hold: when that goes they are
    deferred until `end_hold`.

    They are chained in NEXT (a held page is in no queue); `entry[0]` becomes the first one and `entry[1]` their number.
    """
    first = np.int32(0)
    count = 0
    for i in range(n):
        page = row[i]
        if pool.node[page, REF] == 1 and pool.more[page, MARK] & HELD == 0:
            pool.more[page, MARK] |= HELD
            pool.node[page, NEXT] = first
            first = page
            count += 1
    entry[0] = first
    entry[1] = count


@kernel
def end_hold(pool: PagePool, page: int, before: int) -> bool:
    """The transfer has read the page; True when nobody refers to it, so that it is allocatable (or idle) from now.

    Without content it goes behind page `before`, the last one of the group at the front of the queue; 0: there is none.
    """
    pool.more[page, MARK] &= ~HELD
    if pool.node[page, REF] != 0:
        return False
    pool.tally[DEFERRED] -= 1
    if pool.more[page, MARK] & PINNED:
        pool.tally[IDLE_PINNED] += 1
    else:
        queue_page(pool, page, before)
    return True


@kernel
def pin_hot(pool: PagePool, row: npt.NDArray[np.int32], n: int, pinned: npt.NDArray[np.int32]) -> int:
    """Pin those of the referenced pages `row[:n]` that were hit often enough, in order, while the cap allows; they are
    written to `pinned`, returns how many."""
    tally = pool.tally
    count = 0
    for i in range(n):
        page = row[i]
        if tally[PINNED_PAGES] >= tally[PIN_CAP]:
            break
        if pool.more[page, USES] >= tally[PIN_AFTER] and pool.more[page, MARK] & PINNED == 0:
            pool.more[page, MARK] |= PINNED
            tally[PINNED_PAGES] += 1
            pinned[count] = page
            count += 1
    return count

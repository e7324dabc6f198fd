"""Plain caches of N blocks over the prefix identities of a workload: LRU, FIFO, LFU.

Every identity of every request is looked up in order and inserted when it is missing; there are no requests that run,
no references, no pages that are computed again. That is the cache of the literature, and its hit ratio is what
libCacheSim counts (a test holds them equal). What an engine's prefix cache reaches is `simulate` with the same blocks.

    LRU    the block that was looked up longest ago goes
    FIFO   the block that was inserted longest ago goes
    LFU    the block with the fewest lookups since its insertion goes; among those, the one that has had as many longest

Invariant: N blocks hold N identities, whatever they are. Nothing is returned but counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvmon.errors import ConfigError
from kvmon.jit import inner, kernel
from kvmon.serving.workload import Workload

__all__ = ["BlockCache", "fifo_hits", "lfu_hits", "lru_hits"]

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class BlockCache:
    """Blocks looked up and found."""

    lookups: int
    hits: int

    @property
    def ratio(self) -> float | None:
        """Blocks found / blocks looked up; None without a lookup."""
        return self.hits / self.lookups if self.lookups else None


def lru_hits(workload: Workload, blocks: int) -> BlockCache:
    """Hits of a cache of `blocks` blocks that forgets the least recently used one. Raises ConfigError below 1 block."""
    return _count(workload, blocks, _lru)


def fifo_hits(workload: Workload, blocks: int) -> BlockCache:
    """Hits of a cache of `blocks` blocks that forgets the oldest one. Raises ConfigError below 1 block."""
    return _count(workload, blocks, _fifo)


def lfu_hits(workload: Workload, blocks: int) -> BlockCache:
    """Hits of a cache of `blocks` blocks that forgets the least often used one. Raises ConfigError below 1 block."""
    return _count(workload, blocks, _lfu)


def _count(workload: Workload, blocks: int, policy: Callable[[Ints, int, Ints, Ints, Ints], int]) -> BlockCache:
    """Run a policy over the identities, numbered from 1.

    It gets two links for each number, 0 and, behind the identities, one ring for each count of uses, and a count each.
    """
    if blocks < 1:
        raise ConfigError(f"a cache of {blocks} blocks holds nothing: choose at least 1")
    distinct, inverse, uses = np.unique(workload.hashes, return_inverse=True, return_counts=True)
    ids = inverse.astype(np.int32) + np.int32(1)
    size = len(distinct) + int(uses.max(initial=0)) + 1
    older, newer, count = np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(len(distinct) + 1, np.int32)
    return BlockCache(len(ids), int(policy(ids, min(blocks, len(distinct) + 1), older, newer, count)))


@inner
def _unlink(item: int, older: Ints, newer: Ints) -> None:
    newer[older[item]] = newer[item]
    older[newer[item]] = older[item]


@inner
def _append(head: int, item: int, older: Ints, newer: Ints) -> None:
    """Put an item at the new end of the ring that `head` closes: newer[head] is the oldest, older[head] the newest."""
    last = older[head]
    older[item] = last
    newer[item] = head
    newer[last] = item
    older[head] = item


@kernel
def _lru(ids: Ints, blocks: int, older: Ints, newer: Ints, uses: Ints) -> int:
    hits = 0
    held = 0
    for item in ids:
        if uses[item]:
            hits += 1
            _unlink(item, older, newer)
        else:
            if held == blocks:
                victim = newer[0]
                _unlink(victim, older, newer)
                uses[victim] = 0
            else:
                held += 1
            uses[item] = 1
        _append(0, item, older, newer)
    return hits


@kernel
def _fifo(ids: Ints, blocks: int, older: Ints, newer: Ints, uses: Ints) -> int:
    hits = 0
    held = 0
    for item in ids:
        if uses[item]:
            hits += 1
            continue
        if held == blocks:
            victim = newer[0]
            _unlink(victim, older, newer)
            uses[victim] = 0
        else:
            held += 1
        uses[item] = 1
        _append(0, item, older, newer)
    return hits


@kernel
def _lfu(ids: Ints, blocks: int, older: Ints, newer: Ints, uses: Ints) -> int:
    """One ring for each number of uses; its head has the number of the last identity + that many."""
    rings = uses.size - 1
    for head in range(rings + 1, newer.size):
        older[head] = newer[head] = head
    hits = 0
    held = 0
    least = 1
    for item in ids:
        if uses[item]:
            hits += 1
            _unlink(item, older, newer)
            if uses[item] == least and newer[rings + least] == rings + least:
                least += 1
        else:
            if held == blocks:
                victim = newer[rings + least]
                _unlink(victim, older, newer)
                uses[victim] = 0
            else:
                held += 1
            least = 1
        uses[item] += 1
        _append(rings + uses[item], item, older, newer)
    return hits

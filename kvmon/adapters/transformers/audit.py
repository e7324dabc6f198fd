"""The engine's own state, as an audit ships it: its pool, its ledgers and its block tables, read as they are.

Nothing here depends on what the hooks told, but for two things that the engine does not keep itself: which group a
sector belongs to once all its blocks are in use, and the numbers of the requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kvmon.adapters.transformers.host import HostHooks
from kvmon.adapters.transformers.layout import Group, Layout
from kvmon.adapters.transformers.live import Live, Requests
from kvmon.events.kinds import RequestState
from kvmon.events.wire import CACHED, STATUS
from kvmon.probe import RequestPicture

__all__ = ["EngineAudit"]

_DEVICE = 1


class EngineAudit:
    """Reads one cache; see `AuditSource`."""

    def __init__(
        self,
        cache: Any,
        layout: Layout,
        requests: Requests,
        host: HostHooks,
        host_pool: Any,
        group_of_sector: Mapping[int, Group],
        computed: Callable[[Live], int],
    ) -> None:
        self._cache, self._layout, self._requests = cache, layout, requests
        self._host, self._host_pool = host, host_pool
        self._group_of_sector, self._computed = group_of_sector, computed

    def status(self, pool: int, first: int, count: int) -> Sequence[int]:
        """Status words of the units from `first` on."""
        size = self._layout.sector_units
        if pool == _DEVICE:
            engine_pool, begin = self._cache.pool, self._layout.base + first
        else:
            engine_pool, begin = self._host_pool, first - 1
        sectors = range(begin // size, (begin + count - 1) // size + 1)
        free = set(sectors).intersection(engine_pool.free_sectors)
        words: list[int] = []
        for sector in sectors:
            words += [STATUS] * size if sector in free else self._sector(pool, engine_pool, sector)
        skip = begin - sectors[0] * size
        return words[skip : skip + count]

    def _sector(self, pool: int, engine_pool: Any, sector: int) -> list[int]:
        """Words of a sector that belongs to a group."""
        groups, trees = self._layout.groups, engine_pool._free_blocks
        partly = next((one for one in groups if sector in trees[one.index].trees), None)
        group = partly or self._holder(pool, sector) or groups[0]
        spare = trees[group.index].trees.get(sector, ())
        ledger = group.allocator.ledger
        words: list[int] = []
        for block in range(sector * group.blocks_per_sector, (sector + 1) * group.blocks_per_sector):
            if block in spare:
                word = STATUS
            elif pool != _DEVICE:
                word = STATUS | 1
            else:
                word = STATUS if block in ledger.cached_blocks else STATUS | ledger.shared_ref_counts.get(block, 1)
                if block in ledger.block_to_hash:
                    word |= CACHED
            words += [word] * group.slices
        return words

    def _holder(self, pool: int, sector: int) -> Group | None:
        """Which group has all blocks of a sector; on the host every one of them is held, whoever has it."""
        return self._group_of_sector.get(sector) if pool == _DEVICE else None

    def live_requests(self) -> Sequence[int]:
        """Requests that wait or run."""
        return list(self._requests.by_number)

    def picture(self, number: int) -> RequestPicture | None:
        """The request as it is now; None when it has ended."""
        one = self._requests.by_number.get(number)
        if one is None:
            return None
        tables = list(self._tables(one))
        state = RequestState.WAITING
        computed = 0
        if one.running:
            state, computed = RequestState.RUNNING, self._computed(one)
        elif one.preempted:
            state = RequestState.PREEMPTED
            computed = int(one.state.current_len()) if tables else 0
        return RequestPicture(
            state=int(state),
            class_id=one.class_id,
            arrived_ns=one.arrived_ns,
            prompt=one.prompt,
            limit=one.limit,
            computed=computed,
            decoding=one.name in self._requests.counting,
            tables=tables,
        )

    def _tables(self, one: Live) -> Iterator[tuple[int, int, list[int]]]:
        for group in self._layout.groups:
            blocks = group.allocator.block_table.get(one.name)
            for table, units in group.tables(blocks, self._layout.base) if blocks else ():
                yield _DEVICE, table, units
        yield from self._host.tables_of(one.name)

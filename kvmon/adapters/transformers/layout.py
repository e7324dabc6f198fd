"""Which unit of a recording each block is: one pool over the bytes, in slices that every group of layers shares.

The engine cuts its memory into sectors. A sector belongs to one group of layers at a time (full attention, sliding
window), which cuts it into blocks of its own size; when all of them are free it can go to another group. One pool a
group would count the same bytes once for each group, and a pool of sectors knows nothing of blocks. So a unit is the
largest slice that divides the blocks of every group: one or more whole pages, a page holding `page_size` tokens of one
layer. A block of a group is a run of `slices` units, each holding the same tokens for other layers of the group. Every
byte is one unit, whoever has it, so states sum to the capacity, and a sector that two groups hold shows as a unit that
is allocated twice. With one group, which is most models, a unit is a block.

A unit has slots for `page_size` tokens, and the k-th slices of a request's blocks are a block table of their own
(`group` in events): so written, unfilled and reserved slots come out in bytes, for every group. The ring buffer of a
sliding window reuses its pages: for those the last page's unfilled slots are counted as if the window had a beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from kvmon.probe import PoolInfo

__all__ = ["Group", "Layout", "layout_of"]


@dataclass(frozen=True)
class Group:
    """One allocator. `slices` units a block, `first_slice` the number of its first block table of slices."""

    name: str
    index: int
    allocator: Any
    blocks_per_sector: int
    slices: int
    first_slice: int
    window: int | None

    def units(self, blocks: Iterable[int], base: int) -> list[int]:
        """Units of these blocks, block by block; `base` is the engine's unit before the pool's first one."""
        if self.slices == 1:
            return [block - base for block in blocks]
        n = self.slices
        return [unit for block in blocks for unit in range(block * n - base, block * n - base + n)]

    def tables(self, blocks: Sequence[int], base: int) -> list[tuple[int, list[int]]]:
        """(number of the table, its units) of each slice of these blocks."""
        n = self.slices
        return [(self.first_slice + k, [block * n + k - base for block in blocks]) for k in range(n)]


@dataclass(frozen=True)
class Layout:
    """The slices of one cache; `base` turns the engine's slice numbers (from 0, with the reserved sectors) into units
    from 1."""

    groups: tuple[Group, ...]
    unit_bytes: int
    unit_tokens: int
    sector_units: int
    sectors: int
    base: int

    @property
    def capacity_units(self) -> int:
        """Units of the pool, without the sectors that are never handed out."""
        return self.sectors * self.sector_units

    @property
    def tables(self) -> int:
        """Block tables of a request."""
        return sum(group.slices for group in self.groups)

    @property
    def by_index(self) -> dict[int, Group]:
        """The groups, by the numbers that the engine's pools know them by."""
        return {group.index: group for group in self.groups}

    def free_units(self, pool: Any) -> int:
        """Units that a pool of the engine can hand out: whole sectors, and blocks of sectors that a group has."""
        loose = sum(int(pool.count_free_blocks(group.index)) * group.slices for group in self.groups)
        return len(pool.free_sectors) * self.sector_units + loose

    def idle_units(self) -> int:
        """Units that nobody refers to and that keep their content; none where no ledger shows them."""
        ledgers = [(getattr(group.allocator, "ledger", None), group.slices) for group in self.groups]
        return sum(len(getattr(ledger, "cached_blocks", ())) * slices for ledger, slices in ledgers)

    def pool_info(self, shards: int, attributes: Mapping[str, Any] | None = None) -> PoolInfo:
        """The pool of the device."""
        attributes = {"shards": shards, **(attributes or {})}
        return self._info("kv", "gpu", self.capacity_units, self.base + 1, attributes)

    def host_info(self, sectors: int) -> PoolInfo:
        """The CPU swap pool: the same sectors, none of them reserved."""
        return self._info("kv-host", "cpu", sectors * self.sector_units, 0, {})

    def _info(self, name: str, tier: str, units: int, first: int, given: Mapping[str, Any]) -> PoolInfo:
        attributes = {**given, "sector_units": self.sector_units}
        if self.tables > 1:
            attributes["groups"] = self.tables
            attributes["group_kinds"] = [group.name for group in self.groups][:8]
            attributes["group_slices"] = [group.slices for group in self.groups][:8]
        window = next((group.window for group in self.groups if group.window), None)
        if window:
            attributes["window_tokens"] = window
        return PoolInfo(
            name=name,
            capacity_units=units,
            unit_bytes=self.unit_bytes,
            unit_tokens=self.unit_tokens,
            tier=tier,
            first_engine_unit=first,
            attributes=attributes,
        )


def layout_of(cache: Any) -> Layout:
    """The slices of a `PagedAttentionCache`. Raises ValueError where its blocks have none in common."""
    allocators = cache.cache_allocators
    unit = gcd(*(int(allocator.bytes_per_block) for allocator in allocators.values()))
    tokens = {int(allocator.tokens_per_page) for allocator in allocators.values()}
    sector = int(cache.bytes_per_sector)
    if len(tokens) > 1 or any(unit % int(allocator.bytes_per_page) for allocator in allocators.values()):
        raise ValueError("groups of layers whose pages differ in size")
    groups, tables = [], 0
    for name, allocator in allocators.items():
        slices = int(allocator.bytes_per_block) // unit
        if int(allocator.blocks_per_sector) * slices * unit != sector:
            raise ValueError("sectors that are not whole blocks")
        window = getattr(allocator, "sliding_window", None)
        blocks = int(allocator.blocks_per_sector)
        groups.append(Group(str(name), int(allocator.index), allocator, blocks, slices, tables, window))
        tables += slices
    reserved = int(cache.pool.num_reserved_sectors) * (sector // unit)
    return Layout(tuple(groups), unit, tokens.pop(), sector // unit, int(cache.num_sectors), reserved - 1)

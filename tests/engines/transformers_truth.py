"""The engine's own books, read without the adapter's help, against what a recording folds to."""

from __future__ import annotations

from collections import Counter, defaultdict
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.events import Event, RequestState, decode
from kvmon.events.wire import CACHED
from kvmon.recording import StreamReader, find_streams
from kvmon.state import FaultKind, StreamState
from kvmon.state.requests import computed_tokens

__all__ = ["Follower", "events_of", "words_of"]


def words_of(directory: Path) -> np.ndarray[Any, Any]:
    """Every word of the only stream of a directory."""
    reader = StreamReader(find_streams(directory)[0])
    pieces = [np.frombuffer(piece.data, np.uint32) for piece in iter(reader.poll, None)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)


def events_of(directory: Path) -> list[Event]:
    """Every event of it."""
    return list(decode(words_of(directory).tolist()))


class Follower:
    """Folds a recording while it is written, and compares it with the engine after every step."""

    def __init__(self, directory: Path, driven: Any, recording: Any) -> None:
        self.driven, self._recording = driven, recording
        self.state = StreamState(verify=True)
        self._directory = directory
        self._reader: StreamReader | None = None
        self.compared = self.shared = self.cached = self.preempted = self.hosted = self.lost_on_the_host = 0

    def fold(self) -> None:
        """Everything that was written since."""
        if self._reader is None:
            self._reader = StreamReader(find_streams(self._directory)[0])
        for piece in iter(self._reader.poll, None):
            self.state.apply(np.frombuffer(piece.data, np.uint32))

    def compare(self) -> None:
        """References, content, owners, tokens, states of requests: all of them equal."""
        self.fold()
        if not self.state.converged:
            return
        cache = self.driven.processor.cache
        numbers = {one.name: one.number for one in self._recording._recorders[0]._requests.by_name.values()}
        size = gcd(*(allocator.bytes_per_block for allocator in cache.cache_allocators.values()))
        first = 2 * cache.bytes_per_sector // size  # the trash sectors
        references: Counter[int] = Counter()
        content: set[int] = set()
        tables: dict[str, list[list[int]]] = defaultdict(list)
        holder: dict[int, str] = {}
        for group, allocator in cache.cache_allocators.items():
            slices = allocator.bytes_per_block // size
            of_block = {
                block: [block * slices + k - first + 1 for k in range(slices)]
                for blocks in [*allocator.block_table.values(), allocator.ledger.block_to_hash]
                for block in blocks
            }
            for name in numbers:
                blocks = allocator.block_table.get(name, [])
                tables[name] += [[of_block[block][k] for block in blocks] for k in range(slices)]
            for blocks in allocator.block_table.values():
                references.update(unit for block in blocks for unit in of_block[block])
            content.update(unit for block in allocator.ledger.block_to_hash for unit in of_block[block])
            for units in of_block.values():
                for unit in units:
                    assert holder.setdefault(unit, group) == group, "two groups hold one unit"
        pool = self.state.pools[1]
        units = range(1, pool.capacity_units + 1)
        assert pool.capacity_units * pool.unit_bytes == cache.num_sectors * cache.bytes_per_sector
        assert sum(pool.units.values()) == pool.capacity_units
        assert (pool.status & 0xFFFFFF).tolist() == [references[unit] for unit in units]
        assert (np.flatnonzero(pool.status & np.uint32(CACHED)) + 1).tolist() == sorted(content)
        assert pool.free * pool.unit_bytes == cache.compute_free_capacity(relative=False)
        assert (pool.unowned or 0) == 0
        self._compare_requests(numbers, tables)
        self._compare_host(numbers, size)
        # an engine that dies while it offloads forgets blocks of its swap pool, and the recording says so
        leaks = [fault for fault in self.state.faults() if fault.kind is FaultKind.UNOWNED and fault.pool == 2]
        assert self.state.faults() == (leaks if self.driven.died is not None and self.lost_on_the_host else [])
        self.compared += 1
        self.shared += sum(count > 1 for count in references.values())
        self.cached += len(content - set(references))

    def _compare_requests(self, numbers: dict[str, int], tables: dict[str, list[list[int]]]) -> None:
        scheduler, requests = self.driven.processor.scheduler, self.state.requests
        rows = {int(request): row for row, request in enumerate(requests.id.tolist()) if request}
        states = {**scheduler.active_requests, **scheduler.waiting_requests}
        assert set(states) == set(numbers)
        assert set(rows) == set(numbers.values())
        flying = [future for batch in self._flying() for future in batch]
        for name, number in numbers.items():
            row, state = rows[number], states[name]
            folded = [table.units.tolist() for table in self.state.tables(row, 1)]
            assert folded == tables[name], name
            running = name in scheduler.active_requests
            assert (int(requests.state[row]) == RequestState.RUNNING) == running
            self.preempted += int(requests.state[row]) == RequestState.PREEMPTED
            written = state.current_len() - sum(one.query_length for one in flying if one.state is state)
            if not running and not state.is_cpu_offloaded:
                written = 0
            assert int(computed_tokens(requests, row, self.state.steps)) == written, name

    def _flying(self) -> list[list[Any]]:
        return list(self.driven.processor.inputs_and_outputs._batches) if self.driven.flying else []

    def _compare_host(self, numbers: dict[str, int], size: int) -> None:
        manager = self.driven.processor.offloading_manager
        if manager._cpu_pool is None:
            assert 2 not in self.state.pools
            return
        pool, requests, named = self.state.pools[2], self.state.requests, 0
        rows = {int(request): row for row, request in enumerate(requests.id.tolist()) if request}
        allocators = self.driven.processor.cache.cache_allocators
        for name, number in numbers.items():
            mine: list[list[int]] = []
            for group, allocator in allocators.items():
                slices = allocator.bytes_per_block // size
                blocks = manager._request_id_to_cpu_blocks.get(name, {}).get(group, [])
                mine += [[block * slices + k + 1 for block in blocks] for k in range(slices)]
            assert [table.units.tolist() for table in self.state.tables(rows[number], 2)] == mine
            named += sum(map(len, mine))
        sector = self.driven.processor.cache.bytes_per_sector // size
        free = {
            unit for one in manager._cpu_pool.free_sectors for unit in range(one * sector + 1, (one + 1) * sector + 1)
        }
        for allocator in allocators.values():
            slices = allocator.bytes_per_block // size
            for leaves in manager._cpu_pool._free_blocks[allocator.index].trees.values():
                free.update(block * slices + k + 1 for block in leaves for k in range(slices))
        held = sorted(set(range(1, pool.capacity_units + 1)) - free)
        assert (np.flatnonzero(pool.status & np.uint32(0xFFFFFF)) + 1).tolist() == held
        self.lost_on_the_host = len(held) - named
        assert pool.active + pool.free == pool.capacity_units
        self.hosted += bool(held)

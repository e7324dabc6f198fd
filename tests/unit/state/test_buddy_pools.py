"""What could be granted in a buddy pool: against counting every block, and against the allocator itself."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.allocators import ContiguousAllocator, ContiguousConfig
from kvmon.allocators.journal import ALLOC_RUN, FREE_RUN, iterate
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import StreamState
from kvmon.state.checkpoint import dump, load
from kvmon.state.fragmentation import (
    buddy_placements,
    buddy_size,
    external_fragmentation,
    free_runs,
    largest_buddy,
    lost_ratio_of_buddies,
    lost_share,
)
from kvmon.state.free_runs import buddy_order
from kvmon.state.pool import PoolState
from tests.naive.watched_engine import OFTEN, RUN_ACTS, UNIT_ACTS, Engine

ACTS = (*UNIT_ACTS, *OFTEN, *RUN_ACTS, *RUN_ACTS)


def buddy_pool(capacity: int) -> PoolInfo:
    """A pool whose blocks are powers of two at multiples of their size."""
    return PoolInfo("slots", capacity, 512, 1, layout="contiguous", contiguity="required", placement="buddy")


def blocks(free: set[int], size: int) -> int:
    """How many blocks of `size` at multiples of it consist of free units; `free` counts units from 0."""
    return sum(all(unit in free for unit in range(at, at + size)) for at in range(0, max(free, default=0) + 1, size))


def largest(free: set[int]) -> int:
    """The largest power of two of which there is a block; 0 where nothing is free."""
    return max((size for size in (1 << k for k in range(12)) if blocks(free, size)), default=0)


def longest(free: set[int]) -> int:
    """The longest stretch of free units."""
    most = length = 0
    for unit in range(max(free, default=0) + 1):
        length = length + 1 if unit in free else 0
        most = max(most, length)
    return most


def lost(free: set[int], units: int) -> float | None:
    """The share of the granted blocks that the free units would hold and that do not fit."""
    granted = next(1 << k for k in range(12) if 1 << k >= units)
    return None if len(free) < granted else 1 - blocks(free, granted) / (len(free) // granted)


class Followed:
    """A stream in a directory, and two states that follow it frame by frame: with detail, and units alone."""

    def __init__(self, directory: Path) -> None:
        self.now = 0
        self.probe = StreamProbe(directory, "toy", clock=lambda: self.now)
        self.reader = StreamReader(find_streams(directory)[0])
        self.state, self.plain = StreamState(), StreamState(detail=False)

    def fold(self) -> PoolState:
        """Fold what was published; the only pool."""
        while piece := self.reader.poll():
            words = np.frombuffer(piece.data, np.uint32)
            self.state.apply(words)
            self.plain.apply(words)
        assert self.state.converged
        return self.state.pools[1]


@settings(max_examples=60, deadline=None)
@given(
    capacity=st.integers(1, 70),
    steps=st.lists(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 1 << 32)), max_size=8), max_size=15),
    units=st.integers(1, 40),
)
def test_what_could_be_granted_is_counted(capacity: int, steps: list[list[tuple[str, int]]], units: int) -> None:
    """After every step of any engine G, lost(s), both after eviction and the low mark are those of counting blocks."""
    with TemporaryDirectory() as directory:
        followed, low = Followed(Path(directory)), capacity
        engine = Engine(followed.probe, [buddy_pool(capacity)])
        for step in steps:
            for name, seed in step:
                engine.act(name, seed)
            followed.now += 1_000_000
            engine.step()
            pool = followed.fold()
            states = {number - 1: unit.state for number, unit in engine.pools[1].items()}
            free = {unit for unit, state in states.items() if state == "free"}
            evicted = {unit for unit, state in states.items() if state in ("free", "cached")}
            low = min(low, largest(free))
            seen = pool.survey((units,))
            assert pool.largest_free == followed.plain.pools[1].largest_free == largest(free)
            assert pool.largest_after_eviction == seen.largest_after_eviction == largest(evicted)
            assert pool.lost(units) == lost(free, units)
            assert seen.placements == (blocks(free, pool.granted(units)),)
            assert lost_share(seen.placements[0], seen.free, pool.granted(units)) == pool.lost(units)
            assert seen.longest_free_run == longest(free)
            assert pool.external_fragmentation() == external_fragmentation(longest(free), len(free))
            assert pool.marks().least_largest_free == low
        followed.probe.close()


@pytest.mark.parametrize("capacity", [1, 12, 64, 1000])
def test_the_fold_knows_what_the_allocator_would_grant(tmp_path: Path, capacity: int) -> None:
    """Through a random life of a buddy allocator the fold's G is the allocator's own, after every step."""
    random, live = Random(capacity), []
    allocator = ContiguousAllocator(ContiguousConfig(capacity, placement="buddy"), journal=True)
    followed = Followed(tmp_path)
    probe = followed.probe.attach_pool(buddy_pool(capacity))
    for request in range(1, 800):
        if allocator.allocate(request, random.randint(1, max(1, capacity // 8))) is None:
            live.append(request)
        if live and random.random() < 0.3:
            allocator.extend(random.choice(live), random.randint(1, 4))
        while live and (random.random() < 0.45 or len(live) > 60):
            allocator.release(live.pop(random.randrange(len(live))))
        for code, fields in iterate(allocator.drain()):
            if code == ALLOC_RUN:
                probe.alloc_run(*fields[1:])
            elif code == FREE_RUN:
                probe.free_run(*fields[1:])
        followed.probe.tick()
        pool = followed.fold()
        assert pool.largest_free == allocator.largest_free_units
        assert pool.free == allocator.free_units
    followed.probe.close()
    assert not followed.state.faults()


def test_adjacent_blocks_that_are_no_buddies(tmp_path: Path) -> None:
    """Two free blocks of 8 in one run of 16: L = 16, G = 8, lost(9) = 1 and no external fragmentation."""
    followed = Followed(tmp_path)
    probe = followed.probe.attach_pool(buddy_pool(32))
    probe.alloc_run(1, 8)
    probe.alloc_run(25, 8)
    followed.probe.tick()
    pool = followed.fold()
    assert (pool.free, pool.largest_free, pool.granted(9)) == (16, 8, 16)
    assert (pool.external_fragmentation(), pool.lost(9), pool.lost(8), pool.lost(17)) == (0.0, 1.0, 0.0, None)
    restored = load(dump(followed.state)).pools[1]
    assert (restored.buddy, restored.largest_free, restored.marks()) == (True, 8, pool.marks())


def test_a_resized_pool_is_still_one_of_buddies(tmp_path: Path) -> None:
    """Another capacity keeps the placement: G follows the units that are left."""
    followed = Followed(tmp_path)
    probe = followed.probe.attach_pool(buddy_pool(32))
    probe.alloc_run(1, 4)
    followed.probe.pool_changed(probe, 12)
    followed.probe.tick()
    while piece := followed.reader.poll():
        followed.state.apply(np.frombuffer(piece.data, np.uint32))
    assert (followed.state.pools[1].free, followed.state.pools[1].largest_free) == (8, 4)


@given(free=st.sets(st.integers(0, 60)), units=st.integers(1, 70))
def test_definitions_over_runs(free: set[int], units: int) -> None:
    """Blocks, the largest one and lost(s) over runs equal counting; a run's order is that of its largest block."""
    offsets, lengths = free_runs(np.array([unit in free for unit in range(61)]))
    granted = buddy_size(units)
    assert granted / 2 < units <= granted
    assert buddy_placements(offsets, lengths, granted) == blocks(free, granted)
    assert largest_buddy(offsets, lengths) == largest(free)
    assert lost_ratio_of_buddies(offsets, lengths, units) == lost(free, units)
    assert lost_ratio_of_buddies(offsets, lengths, 0) is None
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        assert 1 << buddy_order(offset, length) == largest(set(range(offset, offset + length)))


def test_placement_is_written_only_where_it_is_said() -> None:
    """A pool without placement has the text that it always had."""
    assert json.loads(buddy_pool(8).text(True))["placement"] == "buddy"
    assert "placement" not in json.loads(PoolInfo("gpu", 8, 4096, 16).text(True))

"""Buddies: what is granted, how blocks split and merge, and what the walk of a broken pool names."""

from __future__ import annotations

import pytest

from kvmon.allocators import ContiguousAllocator, ContiguousConfig, Reason, run_pool
from kvmon.allocators.journal import ALLOC_RUN, ASSIGN_RUN, FREE_RUN, RELOCATE, RESERVE, iterate
from kvmon.errors import InvariantError


def buddies(capacity: int, unit_tokens: int = 1, journal: bool = False) -> ContiguousAllocator:
    """An empty buddy pool."""
    return ContiguousAllocator(ContiguousConfig(capacity, unit_tokens, placement="buddy"), journal=journal)


def test_a_capacity_is_the_sum_of_its_binary_digits() -> None:
    """15,700 units are 8192 + 4096 + 2048 + 1024 + 256 + 64 + 16 + 4, the largest at the lowest address."""
    pool = buddies(15_700)
    assert pool.free_runs()[:, 1].tolist() == [8192, 4096, 2048, 1024, 256, 64, 16, 4]
    assert pool.largest_free_units == 8192
    pool.check()


def test_a_request_gets_the_next_power_of_two() -> None:
    """5 units hold a block of 8, cut from the lowest end; the other halves stay free, each of its own size."""
    pool = buddies(64, 2, journal=True)
    assert pool.allocate(1, 5) is None
    assert pool.block_of(1) == (1, 8)
    assert pool.free_runs().tolist() == [[9, 8], [17, 16], [33, 32]]
    assert iterate(pool.drain()) == [(ALLOC_RUN, [1, 1, 8]), (ASSIGN_RUN, [1, 1, 8]), (RESERVE, [1, 16])]


def test_the_smallest_block_that_holds_it_is_cut() -> None:
    """A free block of the right size goes before a larger one at a lower address."""
    pool = buddies(32)
    for request, units in ((1, 8), (2, 4), (3, 4), (4, 16)):
        pool.allocate(request, units)
    pool.release(1)
    pool.release(3)
    pool.allocate(5, 3)
    assert pool.block_of(5) == (13, 4)


def test_neighbours_that_are_no_buddies_do_not_merge() -> None:
    """Two free blocks of 8 beside each other are not one of 16: G = 8 while 16 adjacent units are free."""
    pool = buddies(32)
    for request in range(1, 5):
        pool.allocate(request, 8)
    pool.release(2)
    pool.release(3)
    assert pool.free_runs().tolist() == [[9, 8], [17, 8]]
    refusal = pool.allocate(5, 9)
    assert refusal is not None
    assert refusal.reason is Reason.NO_CONTIGUOUS_RUN
    assert (refusal.need_units, refusal.free_units, refusal.largest_units) == (16, 16, 8)
    pool.release(1)
    assert pool.largest_free_units == 16


def test_the_rounded_size_decides_whether_it_ever_fits() -> None:
    """9 of 12 units would need a block of 16: never, though 12 are free; with too little free it is exhaustion."""
    pool = buddies(12)
    refusal = pool.allocate(1, 9)
    assert refusal is not None
    assert (refusal.reason, refusal.need_units, refusal.free_units) == (Reason.NEVER_FITS, 16, 12)
    pool.allocate(2, 8)
    refusal = pool.allocate(3, 5)
    assert refusal is not None
    assert (refusal.reason, refusal.need_units, refusal.free_units) == (Reason.EXHAUSTED, 8, 4)


def test_growth_fills_the_block_and_then_moves() -> None:
    """Up to the granted size nothing happens; beyond it a block twice as large is found beside the old one."""
    pool = buddies(32, journal=True)
    pool.allocate(1, 5)
    pool.drain()
    assert pool.extend(1, 3) is None
    assert pool.block_of(1) == (1, 8) and len(pool.drain()) == 0
    assert pool.extend(1, 1, used_tokens=8) is None
    assert pool.block_of(1) == (17, 16)
    assert iterate(pool.drain()) == [
        (ALLOC_RUN, [1, 17, 16]),
        (RELOCATE, [1, 1, 8, 17, 16, 8]),
        (FREE_RUN, [1, 1, 8]),
        (ASSIGN_RUN, [1, 17, 16]),
        (RESERVE, [1, 16]),
    ]
    assert pool.free_runs().tolist() == [[1, 16]]
    pool.check()


def test_check_names_what_is_wrong_with_buddies() -> None:
    """Two buddies apart and a block that lies where none can be are each found."""
    pool = buddies(16)
    state = pool.pool
    state.starts[:2], state.lengths[:2], state.tally[run_pool.RUNS] = (1, 9), (8, 8), 2
    with pytest.raises(InvariantError, match=r"1\+8 and 9\+8 have not merged"):
        pool.check()
    state.starts[:2], state.lengths[:2] = (1, 5), (4, 12)
    with pytest.raises(InvariantError, match=r"5\+12 is no power of two"):
        pool.check()

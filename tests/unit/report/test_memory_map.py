"""The memory map: every unit is in exactly one cell, and a cell tells what most of its units are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmon.report import MemoryMap, memory_map
from kvmon.report.memory_map import MAP_STATES

FREE, ACTIVE, RESERVED, CACHED, PINNED, DEFERRED = range(6)
units = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 255)), min_size=1, max_size=300)


@given(units, st.integers(1, 120))
def test_cells_divide_the_units(pairs: list[tuple[int, int]], most: int) -> None:
    """Cells are at most as many as asked for, and each holds the units of its addresses: a naive count agrees."""
    map_ = MemoryMap(bytes(code for code, _ in pairs), bytes(fill for _, fill in pairs))
    per_cell = map_.units_per_cell(most)
    data = map_.as_json(most)
    cells = map_.cells(most)
    assert len(cells) == len(data["cells"]) == -(-len(pairs) // per_cell) <= most
    for index, (cell, counts) in enumerate(zip(cells, data["cells"], strict=True)):
        part = pairs[index * per_cell : (index + 1) * per_cell]
        assert counts == [sum(code == state for code, _ in part) for state in range(6)]
        assert abs(cell.fill - sum(fill for _, fill in part) / 255 / len(part)) < 1e-9
        used = counts[1:]
        assert cell.state == (MAP_STATES[1 + used.index(max(used))] if any(used) else "free")


def test_states_of_units_are_mapped_in_order_of_address(paged) -> None:  # type: ignore[no-untyped-def]
    """Cached, pinned, deferred, active and free units stand where they are."""
    paged.hold(1, [1, 2, 3, 4, 5], 20)
    paged.pool.cache([1, 2])
    paged.probe.finished(1, 1, 3)
    paged.pool.unshare([5, 4, 2, 1])
    paged.pool.pin([2])
    paged.pool.defer([3])
    paged.hold(2, [7, 8], 8)
    state = paged.step()
    codes = list(memory_map(state, state.pools[1]).codes)
    assert codes[:8] == [CACHED, PINNED, DEFERRED, FREE, FREE, FREE, ACTIVE, ACTIVE]
    assert set(codes[8:]) == {FREE}


def test_a_partly_written_page_is_graded(paged) -> None:  # type: ignore[no-untyped-def]
    """The tail of a last page lowers its fill, and a running decode fills it up step by step."""
    paged.hold(1, [3, 9], 5, decoding=True)
    fills = []
    for _ in range(3):
        state = paged.step()
        map_ = memory_map(state, state.pools[1])
        fills.append((map_.fills[2], map_.fills[8]))
    assert fills == [(255, 64), (255, 128), (255, 191)]


def test_reserved_slots_are_no_written_ones(contiguous) -> None:  # type: ignore[no-untyped-def]
    """What a contiguous block holds beyond the written tokens is reserved: fill 0, in order of address."""
    contiguous.probe.arrived(1, 5, 6)
    contiguous.probe.admitted(1)
    contiguous.pool.alloc_run(5, 10)
    contiguous.pool.assign_run(1, 5, 10)
    contiguous.pool.reserve(1, 10)
    contiguous.probe.progress(1, 6, False)
    state = contiguous.step()
    map_ = memory_map(state, state.pools[1])
    assert list(map_.codes) == [FREE] * 4 + [ACTIVE] * 6 + [RESERVED] * 4 + [FREE] * 6
    assert list(map_.fills) == [0] * 4 + [255] * 6 + [0] * 4 + [0] * 6
    slots = state.pools[1].slots()
    assert (slots.written, slots.reserved) == (6, 4), "the map and the counted slots agree"

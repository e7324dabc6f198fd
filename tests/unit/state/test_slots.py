"""Written, tail and reserved slots where a request has more than one table: groups of layers, two pools, drafts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvmon.probe import PoolInfo, PoolProbe, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.report import memory_map
from kvmon.state import Slots, StreamState
from kvmon.state.checkpoint import dump, load

WINDOW = {"window_tokens": 4}


class Toy:
    """An engine whose requests are written out by hand."""

    def __init__(self, directory: Path, *infos: PoolInfo) -> None:
        self.probe = StreamProbe(directory, "toy")
        self.pools: dict[int, PoolProbe] = {
            number: self.probe.attach_pool(info) for number, info in enumerate(infos, 1)
        }
        self.reader, self.state = StreamReader(find_streams(directory)[0]), StreamState(verify=True)
        self.now = 0

    def admit(self, request: int, computed: int, *, decoding: bool = False) -> None:
        """A request that runs and has so many tokens."""
        self.probe.arrived(request, 1, 10)
        self.probe.admitted(request)
        self.probe.progress(request, computed, decoding)

    def hold(self, request: int, pool: int, units: list[int], group: int = 0) -> None:
        """Take units and name their owner."""
        self.pools[pool].alloc(units)
        self.pools[pool].assign(request, units, group)

    def step(self) -> StreamState:
        """Close the step and fold it."""
        self.now += 1_000_000
        self.probe.step(self.now, 1000, 0, 1, 0, 1, 0)
        while piece := self.reader.poll():
            self.state.apply(np.frombuffer(piece.data, np.uint32))
        return self.state


def pool(units: int = 30, **attributes: object) -> PoolInfo:
    """A paged pool of pages of four tokens."""
    return PoolInfo("gpu", units, 4096, 4, attributes=attributes)


def parts(state: StreamState, number: int = 1) -> list[tuple[list[int], int, int, int]]:
    """Units, written, tail and reserved slots of the only request, group by group."""
    row = int(np.flatnonzero(state.requests.id)[0])
    return [(t.units.tolist(), t.written, t.tail, t.reserved) for t in state.tables(row, number)]


def test_two_groups_in_one_pool(tmp_path: Path) -> None:
    """Each group has a last page that is partly filled; the window group lacks the oldest tokens."""
    toy = Toy(tmp_path, pool(groups=2, **WINDOW))
    toy.admit(1, 10)
    toy.hold(1, 1, [1, 2, 3])
    toy.hold(1, 1, [11, 12], 1)  # places 1 and 2 of the sequence
    state = toy.step()
    assert parts(state) == [([1, 2, 3], 10, 2, 0), ([11, 12], 6, 2, 0)]
    assert state.pools[1].slots() == Slots(16, 4, 0)
    assert state.pools[1].runs_per_sequence() == 2
    map_ = memory_map(state, state.pools[1])
    assert [map_.fills[unit - 1] for unit in (1, 2, 3, 11, 12)] == [255, 255, 128, 255, 128]


def test_pages_for_drafts_are_reserved_in_both_groups(tmp_path: Path) -> None:
    """Both groups have slots for the same tokens; those behind the computed ones are set aside, page by page."""
    toy = Toy(tmp_path, pool(groups=2, **WINDOW))
    toy.admit(1, 10, decoding=True)
    toy.hold(1, 1, [1, 2, 3, 4])
    toy.hold(1, 1, [11, 12, 13], 1)
    assert parts(toy.step()) == [([1, 2, 3, 4], 10, 2, 4), ([11, 12, 13], 6, 2, 4)]
    assert parts(toy.step()) == [([1, 2, 3, 4], 11, 1, 4), ([11, 12, 13], 7, 1, 4)]
    toy.pools[1].unshare([11])
    toy.hold(1, 1, [5])
    toy.hold(1, 1, [20], 1)
    state = toy.step()
    assert parts(state) == [([1, 2, 3, 4, 5], 12, 0, 8), ([12, 13, 20], 4, 0, 8)]
    codes = memory_map(state, state.pools[1]).codes
    assert [unit for unit in range(1, 31) if codes[unit - 1] == 2] == [4, 5, 13, 20]
    assert state.pools[1].slots() == Slots(16, 0, 16)


def test_the_window_group_in_a_pool_of_its_own(tmp_path: Path) -> None:
    """Where its table ends is known from the pool that keeps every token."""
    toy = Toy(tmp_path, pool(), pool(20, **WINDOW))
    toy.admit(1, 10)
    toy.hold(1, 1, [1, 2, 3, 4, 5])
    toy.hold(1, 2, [7, 8, 9, 10], 1)
    state = toy.step()
    assert parts(state) == [([1, 2, 3, 4, 5], 10, 2, 8)]
    assert parts(state, 2) == [([7, 8, 9, 10], 6, 2, 8)]
    assert (state.pools[1].slots(), state.pools[2].slots()) == (Slots(10, 2, 8), Slots(6, 2, 8))


def test_every_layer_slides(tmp_path: Path) -> None:
    """Without a table that keeps every token the last unit is taken to hold the last token."""
    toy = Toy(tmp_path, pool(**WINDOW))
    toy.admit(1, 101)
    toy.hold(1, 1, [4, 5])
    assert parts(toy.step()) == [([4, 5], 5, 3, 0)]


def test_groups_that_keep_every_token(tmp_path: Path) -> None:
    """Without a window each group is measured by its own pages; a group that is not known counts as the last one."""
    toy = Toy(tmp_path, pool(groups=2))
    toy.admit(1, 5)
    toy.hold(1, 1, [1, 2, 3])
    toy.hold(1, 1, [11, 12], 7)
    state = toy.step()
    assert parts(state) == [([1, 2, 3], 5, 3, 4), ([11, 12], 5, 3, 0)]
    assert state.pools[1].units_by_owner_state()["running"] == 5
    assert not state.faults()
    toy.probe.progress(1, 13, False)
    assert [fault.kind.name for fault in toy.step().faults()] == ["TOKENS_BEYOND_UNITS"]


@pytest.mark.parametrize("placement", ["", "buddy"])
def test_what_a_block_was_rounded_to_is_reserved(tmp_path: Path, placement: str) -> None:
    """A block of 8 units of 4 for 10 tokens: 2 slots of its third unit are tail, five units are reserved."""
    toy = Toy(tmp_path, PoolInfo("a", 32, 64, 4, "contiguous", "required", placement=placement))
    toy.admit(1, 10)
    toy.pools[1].alloc_run(9, 8)
    toy.pools[1].assign_run(1, 9, 8)
    toy.pools[1].reserve(1, 32)
    state = toy.step()
    assert parts(state) == [(list(range(9, 17)), 10, 2, 20)]
    assert state.pools[1].slots() == Slots(10, 2, 20)


def test_groups_survive_a_checkpoint(tmp_path: Path) -> None:
    """A restored state knows which group each page belongs to, and the drift of the claims."""
    toy = Toy(tmp_path, pool(groups=2, **WINDOW))
    toy.admit(1, 10)
    toy.hold(1, 1, [1, 2, 3])
    toy.hold(1, 1, [11, 12], 1)
    toy.pools[1].claims(24, 0, 6, 0, 0.2)
    state = toy.step()
    restored = load(dump(state))
    assert parts(restored) == parts(state)
    assert restored.drift == state.drift == {1: -1}


def test_a_relocation_leaves_other_pools_alone(tmp_path: Path) -> None:
    """What a request holds elsewhere is still its own when its block in one pool moves."""
    host = PoolInfo("host", 20, 64, 4, "contiguous", "required", "cpu")
    toy = Toy(tmp_path, pool(), host)
    toy.admit(1, 8)
    toy.hold(1, 1, [1, 2])
    toy.pools[2].alloc_run(1, 2)
    toy.pools[2].assign_run(1, 1, 2)
    assert toy.step().pools[2].unowned == 0
    toy.pools[2].alloc_run(5, 3)
    toy.pools[2].migrated(1, 1, 2, 5, 3, 8)
    toy.pools[2].free_run(1, 2)
    toy.pools[2].assign_run(1, 5, 3)
    state = toy.step()
    assert (parts(state), parts(state, 2)) == ([([1, 2], 8, 0, 0)], [([5, 6, 7], 8, 0, 4)])
    assert (state.pools[1].unowned, state.pools[2].unowned) == (0, 0)
    assert not state.faults()


def test_a_request_ends_while_the_host_keeps_its_tokens(tmp_path: Path) -> None:
    """Preempted with a copy: its slots are those of the host block, until it ends and the block goes back."""
    host = PoolInfo("host", 20, 64, 4, "contiguous", "required", "cpu")
    toy = Toy(tmp_path, pool(), host)
    toy.admit(1, 6)
    toy.hold(1, 1, [1, 2])
    toy.pools[1].offloaded(1, 2, [1, 2])
    toy.probe.preempted(1, 0)
    toy.pools[1].commit(1, 6)
    toy.pools[2].alloc_run(3, 2)
    toy.pools[2].assign_run(1, 3, 2)
    toy.pools[1].unshare([2, 1])
    state = toy.step()
    assert (state.pools[1].active, state.pools[2].slots()) == (0, Slots(6, 2, 0))
    assert state.pools[2].units_by_owner_state()["preempted"] == 2
    toy.probe.finished(1, 3, 0)
    toy.pools[2].free_run(3, 2)
    state = toy.step()
    assert state.pools[2].free == 20 and not state.faults()


def test_deferred_and_pinned_units(tmp_path: Path) -> None:
    """A hit revives a page that a transfer reads; a pin of a page in use counts when nobody uses it any more."""
    toy = Toy(tmp_path, pool())
    toy.admit(1, 8)
    toy.hold(1, 1, [1, 2])
    toy.pools[1].cache([1, 2])
    toy.pools[1].pin([1])
    assert toy.step().pools[1].units["pinned"] == 0
    toy.probe.finished(1, 1, 2)
    toy.pools[1].defer([2, 1])
    state = toy.step()
    assert (state.pools[1].units["deferred"], state.pools[1].slots()) == (2, Slots(0, 0, 0))
    toy.admit(2, 8)
    toy.pools[1].share([1, 2])
    toy.pools[1].assign(2, [1, 2])
    state = toy.step()
    assert (state.pools[1].active, state.pools[1].units["deferred"]) == (2, 0)
    toy.probe.finished(2, 1, 2)
    toy.pools[1].defer([2])
    toy.pools[1].unshare([1])
    assert (toy.step().pools[1].units["pinned"], toy.state.pools[1].units["deferred"]) == (1, 1)
    toy.pools[1].free([2])
    assert toy.step().pools[1].units == {"active": 0, "cached": 1, "pinned": 1, "deferred": 0, "free": 28}
    toy.pools[1].evict([1])
    assert toy.step().pools[1].units["free"] == 29
    assert not toy.state.faults()

"""The fold against a toy engine that counts everything anew."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.probe import PoolInfo, StreamProbe
from kvmon.recording import StreamReader, find_streams
from kvmon.state import StreamState
from tests.naive.watched_engine import OFTEN, REQUEST_ACTS, RUN_ACTS, UNIT_ACTS, Engine, check

PAGED = PoolInfo("gpu", 40, 4096, 16)
WIDE = PoolInfo("cpu", 150, 1024, 4, tier="cpu")
RUNS = PoolInfo("slots", 48, 512, 1, layout="contiguous", contiguity="required")
ACTS = (*UNIT_ACTS, *REQUEST_ACTS, *OFTEN)


class Followed:
    """An engine, its recording, and a state that follows it frame by frame."""

    def __init__(self, directory: Path, *pools: PoolInfo, budget: int = 1 << 20, detail: bool = True) -> None:
        self.now = 0
        self.probe = StreamProbe(directory, "toy", budget=budget, clock=lambda: self.now)
        self.engine = Engine(self.probe, pools)
        self.reader = StreamReader(find_streams(directory)[0])
        self.state = StreamState(detail=detail, verify=True)
        self.words = 0

    def step(self) -> None:
        """Close the step and fold what was published."""
        self.now += 1_000_000
        self.engine.step()
        while piece := self.reader.poll():
            words = np.frombuffer(piece.data, np.uint32)
            assert words.all(), "no word on the wire is ever zero"
            assert piece.follows or piece.header.index == 1
            self.state.apply(words)
            self.words += len(words)

    def check(self) -> None:
        """The state is the engine's, and nothing was lost or found wrong."""
        assert self.probe.lost == 0
        assert self.state.converged
        check(self.state, self.engine)
        unexpected = [
            fault for fault in self.state.faults() if fault.kind.name not in ("UNOWNED", "TOKENS_BEYOND_UNITS")
        ]
        assert not unexpected


def acts(*names: str) -> st.SearchStrategy[list[list[tuple[str, int]]]]:
    """Steps, each some things to do."""
    one = st.tuples(st.sampled_from(names), st.integers(0, 1 << 32))
    return st.lists(st.lists(one, max_size=12), min_size=1, max_size=20)


def follow(steps: list[list[tuple[str, int]]], *pools: PoolInfo) -> None:
    """Do the steps and compare after each."""
    with TemporaryDirectory() as directory:
        followed = Followed(Path(directory), *pools)
        for step in steps:
            for name, seed in step:
                followed.engine.act(name, seed)
            followed.step()
            followed.check()
        followed.probe.close()
        assert followed.reader.ended()


@settings(max_examples=60)
@given(acts(*ACTS))
def test_paged_pool_is_the_engines(steps: list[list[tuple[str, int]]]) -> None:
    """After every step units, counts, owners, tables and tokens of a paged pool are the engine's own."""
    follow(steps, PAGED)


@settings(max_examples=60)
@given(acts(*ACTS, *RUN_ACTS))
def test_runs_of_free_units_are_the_engines(steps: list[list[tuple[str, int]]]) -> None:
    """Where requests need contiguity, the longest and the number of free runs are exact after every step."""
    follow(steps, RUNS)


@settings(max_examples=40)
@given(acts(*ACTS, *RUN_ACTS))
def test_pools_do_not_mix(steps: list[list[tuple[str, int]]]) -> None:
    """Three pools in one stream keep apart, whatever the order of their events in a frame."""
    follow(steps, PAGED, RUNS, WIDE)


def busy(followed: Followed, rng: Random, steps: int, per_step: int) -> None:
    """Random steps, most of them about units and their owners."""
    for _ in range(steps):
        for _ in range(per_step):
            followed.engine.act(rng.choice((*OFTEN, *OFTEN, *ACTS)), rng.getrandbits(32))
        while len(followed.engine.requests) > 30:
            followed.engine.act("finish", rng.getrandbits(32))
            followed.engine.act("admit", rng.getrandbits(32))
        followed.step()


@pytest.mark.parametrize("seed", range(3))
def test_long_random_life(tmp_path: Path, seed: int) -> None:
    """Thousands of events over many segments, with sweeps of the audit, leave the fold equal to the engine."""
    followed = Followed(tmp_path, WIDE, RUNS)
    for _ in range(20):
        busy(followed, Random(seed), 20, 25)
        followed.check()
    assert followed.reader.position.segment > 1


def test_states_without_detail_agree(tmp_path: Path) -> None:
    """A fold without detail counts the same units in the same states."""
    followed = Followed(tmp_path, WIDE, RUNS)
    plain = StreamState(detail=False)
    busy(followed, Random(7), 300, 25)
    followed.check()
    reader = StreamReader(find_streams(tmp_path)[0])
    while piece := reader.poll():
        plain.apply(np.frombuffer(piece.data, np.uint32))
    for number, pool in followed.state.pools.items():
        assert plain.pools[number].units == pool.units
        assert (plain.pools[number].status == pool.status).all()
        assert (plain.pools[number].shared, plain.pools[number].evicted) == (pool.shared, pool.evicted)


# slow: a million events, each through the toy engine's dictionaries
@pytest.mark.slow
def test_a_million_events(tmp_path: Path) -> None:
    """Over a million events the fold stays equal to the engine, looked at every few thousand."""
    followed = Followed(tmp_path, WIDE, RUNS, budget=8 << 20)
    rng, done = Random(1), 0
    while done < 1_000_000:
        busy(followed, rng, 50, 40)
        done += 50 * 40
        if done % 40_000 == 0:
            followed.check()
    followed.check()

"""What goes wrong around a probe never reaches the engine: it goes on with the same results, and the loss is
counted and visible.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.probe import Loss, PoolInfo, StreamProbe
from kvmon.recording import Live, StreamReader, find_streams
from kvmon.recording.layout import SEALED_OPEN
from kvmon.state import FaultKind, StreamState
from tests.naive.watched_engine import OFTEN, REQUEST_ACTS, UNIT_ACTS, Engine, check

POOL = PoolInfo("gpu", 200, 4096, 16)
ACTS = (*UNIT_ACTS, *REQUEST_ACTS, *OFTEN, *OFTEN)
SEGMENT = 64 << 10


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 10_000_000_000

    def __call__(self) -> int:
        return self.now


def live(engine: Engine, rng: Random, steps: int) -> list[dict[str, int]]:
    """Random steps; what the engine's own state was after each."""
    results = []
    for _ in range(steps):
        for _ in range(12):
            engine.act(rng.choice(ACTS), rng.getrandbits(32))
        while len(engine.requests) > 8:
            engine.act("finish", rng.getrandbits(32))
        engine.step()
        states = [unit.state for unit in engine.pools[1].values()]
        results.append({state: states.count(state) for state in states})
    return results


def undisturbed(seed: int, steps: int) -> list[dict[str, int]]:
    """The results of an engine whose probe is never in trouble."""
    with TemporaryDirectory() as directory:
        return live(Engine(StreamProbe(Path(directory), "toy"), [POOL]), Random(seed), steps)


def follow(directory: Path, state: StreamState | None = None) -> tuple[StreamState, Live | None]:
    """Fold everything that is there; the live header of the last segment."""
    state = state or StreamState(verify=True)
    reader = StreamReader(find_streams(directory)[0])
    while piece := reader.poll():
        state.apply(np.frombuffer(piece.data, np.uint32))
    return state, reader.live()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with half a megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no mount here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_then_room_again(small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On a full disk the engine goes on and losses are counted; with room again a GAP is told, and a sweep later
    all is known.
    """
    clock = Clock()
    probe = StreamProbe(small_disk, "toy", clock=clock, budget=64 * SEGMENT)
    engine = Engine(probe, [POOL])
    rng, seed = Random(1), 1
    results = live(engine, rng, 20)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    results += live(engine, rng, 200)
    assert not probe.writing
    assert probe.lost > 0
    assert probe.loss_reasons == ["disk"]
    _, header = follow(small_disk)
    assert header is not None
    assert header.state == SEALED_OPEN
    assert header.lost == probe.lost, "a reader sees the loss although nothing can be written"
    filler.unlink()
    lost = probe.lost
    results += live(engine, rng, 1)
    assert not probe.writing, "it asks again only once a second"
    clock.now += 1_100_000_000
    results += live(engine, rng, 80)
    assert probe.writing
    state, _ = follow(small_disk)
    assert state.lost_records >= lost
    assert {fault.kind for fault in state.faults()} & {FaultKind.RECORDS_LOST}
    assert not {fault.kind for fault in state.faults()} & {FaultKind.DOUBLE_FREE, FaultKind.ALLOC_IN_USE}
    assert state.converged
    check(state, engine)
    assert results == undisturbed(seed, len(results))
    assert capfd.readouterr() == ("", "")


def test_disk_smaller_than_the_budget_keeps_a_ring(small_disk: Path) -> None:
    """Where the disk holds less than the budget the oldest segment makes room, and nothing is lost."""
    probe = StreamProbe(small_disk, "toy", budget=64 * SEGMENT)
    engine = Engine(probe, [POOL])
    live(engine, Random(2), 1200)
    assert probe.writing
    assert probe.lost == 0
    segments = [int(path.stem) for path in find_streams(small_disk)[0].glob("*.seg")]
    assert min(segments) > 1
    state, _ = follow(small_disk)
    check(state, engine)


def test_directory_removed_and_made_again(tmp_path: Path) -> None:
    """A stream that is removed under the probe goes on in a new one after a second, and a follower finds it."""
    clock = Clock()
    probe = StreamProbe(tmp_path, "toy", clock=clock, budget=4 * SEGMENT)
    engine, rng = Engine(probe, [POOL]), Random(3)
    live(engine, rng, 5)
    reader = StreamReader(find_streams(tmp_path)[0])
    state = StreamState(verify=True)
    while piece := reader.poll():
        state.apply(np.frombuffer(piece.data, np.uint32))
    shutil.rmtree(find_streams(tmp_path)[0])
    live(engine, rng, 300)
    assert probe.loss_reasons == ["disk"]
    clock.now += 1_100_000_000
    live(engine, rng, 80)
    assert probe.writing
    while piece := reader.poll():
        state.apply(np.frombuffer(piece.data, np.uint32))
    assert state.gaps
    assert state.converged
    check(state, engine)


def test_directory_that_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A probe for a missing directory costs the engine nothing but a count."""
    probe = StreamProbe(tmp_path / "missing", "toy")
    results = live(Engine(probe, [POOL]), Random(4), 20)
    assert not probe.writing
    assert probe.lost > 0
    assert probe.loss_reasons == ["disk"]
    assert results == undisturbed(4, 20)
    assert capfd.readouterr() == ("", "")


def in_child(body: Callable[[], None]) -> int:
    """The exit status of a forked child that runs `body`; 0 when it raised nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException as error:
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_read_only_directory(tmp_path: Path) -> None:
    """A user that may not write gets a probe that counts; nothing of it appears on the disk."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    directory = tmp_path / "ro"
    directory.mkdir()
    directory.chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and parent.owner() == "root":
            parent.chmod(parent.stat().st_mode | 0o055)

    def body() -> None:
        os.setuid(65534)
        probe = StreamProbe(directory, "toy")
        live(Engine(probe, [POOL]), Random(5), 10)
        assert probe.lost > 0, "lost"
        assert probe.loss_reasons == ["disk"], probe.loss_reasons

    assert in_child(body) == 0
    assert list(directory.iterdir()) == []


def test_second_writer_in_this_process(tmp_path: Path) -> None:
    """The second probe of a stream is turned away and counted once, and takes over when the first has gone."""
    clock = Clock()
    first = StreamProbe(tmp_path, "toy", clock=clock)
    second = StreamProbe(tmp_path, "toy", clock=clock)
    engine = Engine(second, [POOL])
    live(engine, Random(6), 10)
    clock.now += 1_100_000_000
    live(engine, Random(7), 10)
    assert first.writing
    assert not second.writing
    assert second.loss_reasons == ["second_writer"]
    refused = find_streams(tmp_path)[0] / "refused"
    assert refused.stat().st_size == 1, "asking again is no further writer"
    first.close()
    clock.now += 1_100_000_000
    live(engine, Random(8), 60)
    assert second.writing
    second.close()


def test_second_writer_in_another_process(tmp_path: Path) -> None:
    """Another process cannot write the stream either, and the first writer's recording stays whole."""
    probe = StreamProbe(tmp_path, "toy")
    engine = Engine(probe, [POOL])
    code = (
        "import sys; from pathlib import Path; from kvmon.probe import StreamProbe\n"
        "probe = StreamProbe(Path(sys.argv[1]), 'toy'); probe.tick(); print(probe.loss_reasons, probe.writing)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['second_writer'] False"
    live(engine, Random(9), 30)
    state, _ = follow(tmp_path)
    assert state.converged
    check(state, engine)
    assert probe.lost == 0


def test_fork(tmp_path: Path) -> None:
    """A forked child that goes on calling the probe changes nothing of the parent's recording, nor its lock."""
    probe = StreamProbe(tmp_path, "toy")
    engine, rng = Engine(probe, [POOL]), Random(10)
    live(engine, rng, 10)

    def body() -> None:
        live(engine, Random(11), 40)
        assert probe.lost > 40, "lost"
        assert probe.loss_reasons == ["fork"], probe.loss_reasons
        assert not probe.writing, "writing"
        own = StreamProbe(tmp_path, "toy", rank=1)
        assert own.writing, "a recording of its own is allowed"
        own.close()

    assert in_child(body) == 0
    assert StreamReader(tmp_path / "toy-0").alive()
    live(engine, rng, 30)
    state, _ = follow(tmp_path)
    assert probe.lost == 0
    assert state.converged
    check(state, engine)


def test_second_thread(tmp_path: Path) -> None:
    """Records from a second thread are counted, never written; a GAP says so, and a sweep later the reader knows
    all again.
    """
    probe = StreamProbe(tmp_path, "toy")
    engine, rng = Engine(probe, [POOL]), Random(12)
    live(engine, rng, 10)
    thread = threading.Thread(target=lambda: live(engine, Random(13), 5))
    thread.start()
    thread.join()
    assert probe.lost > 5
    assert probe.loss_reasons == ["thread"]
    live(engine, rng, 60)
    state, header = follow(tmp_path)
    assert header is not None
    assert header.lost == probe.lost == state.lost_records
    assert header.lost_why == Loss.THREAD
    assert state.converged
    check(state, engine)


def test_engine_that_runs_in_another_thread(tmp_path: Path) -> None:
    """An engine built in one thread and run in another adopts its thread and loses nothing."""
    probe = StreamProbe(tmp_path, "toy")
    engine = Engine(probe, [POOL])

    def run() -> None:
        probe.adopt_thread()
        live(engine, Random(14), 20)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert probe.lost == 0
    check(follow(tmp_path)[0], engine)


def test_clock_set_back(tmp_path: Path) -> None:
    """Clocks that jump backwards neither stop the probe nor make time run backwards in the recording."""
    clock, wall = Clock(), Clock()
    probe = StreamProbe(tmp_path, "toy", clock=clock, wall=wall, budget=4 * SEGMENT)
    engine, rng = Engine(probe, [POOL]), Random(15)
    for jump in (1_000_000, -9_000_000_000, 5_000_000, -1_000_000):
        clock.now += jump
        wall.now += jump * 1000
        live(engine, rng, 60)
    state, _ = follow(tmp_path)
    assert probe.lost == 0
    assert not [fault for fault in state.faults() if fault.kind is FaultKind.TIME_BACKWARDS]
    check(state, engine)


ODD = st.one_of(
    st.integers(-(1 << 40), 1 << 70),
    st.none(),
    st.text(max_size=3),
    st.floats(),
    st.lists(st.integers(-2, 1 << 40), max_size=4),
)
UNIT_CALLS = "alloc free share unshare cache evict"
CALLS = {
    "pool": " ".join([UNIT_CALLS, "pin unpin defer", *(f"{name}_one" for name in UNIT_CALLS.split())]),
    "pool2": "alloc_run free_run reserve assign",
    "pool3": "assign_run",
    "pool5": "claims",
    "pool6": "migrated",
    "pool8": "failed",
    "probe1": "admitted first_token",
    "probe2": "preempted",
    "probe3": "arrived progress cache_hit finished",
    "probe4": "engine_error",
    "probe8": "step",
}


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(CALLS)), st.integers(0, 20), st.lists(ODD, min_size=8, max_size=8)), max_size=8
    )
)
def test_values_that_make_no_sense(calls: list[tuple[str, int, list[object]]]) -> None:
    """Whatever a hook passes, nothing is raised, every frame stays sound, and what was not recorded is counted."""
    with TemporaryDirectory() as directory:
        probe = StreamProbe(Path(directory), "toy")
        engine = Engine(probe, [POOL])
        for where, which, values in calls:
            names = CALLS[where].split()
            name, count = names[which % len(names)], int(where[-1]) if where[-1].isdigit() else 1
            target = probe if where.startswith("probe") else engine.probes[1]
            getattr(target, name)(*values[:count])
        probe.tick()
        lost = probe.lost
        live(engine, Random(16), 12)
        assert probe.lost == lost, "sensible values are recorded again"
        state = StreamState(verify=True)
        reader = StreamReader(find_streams(Path(directory))[0])
        while piece := reader.poll():
            words = np.frombuffer(piece.data, np.uint32)
            assert state.apply(words).consumed == len(words), "every frame is sound"
        assert state.lost_records == lost
        assert state.fault_count < 1000


def test_audit_that_fails(tmp_path: Path) -> None:
    """An audit source that raises is asked a few times and then no more; the records themselves are not touched by
    it.
    """
    probe = StreamProbe(tmp_path, "toy")
    engine = Engine(probe, [POOL])
    asked = []

    class Broken:
        def status(self, pool: int, first: int, count: int) -> list[int]:
            asked.append(pool)
            raise RuntimeError("the engine changed under us")

        def live_requests(self) -> list[int]:
            return []

        def picture(self, request: int) -> None:
            return None

    probe.audit_from(Broken())
    live(engine, Random(17), 30)
    assert 1 <= len(asked) <= 5
    assert probe.loss_reasons == ["hook"]
    state, _ = follow(tmp_path)
    assert state.lost_records == 0
    assert state.converged
    check(state, engine)


def test_pool_that_cannot_be_recorded(tmp_path: Path) -> None:
    """A pool too many leaves the others alone, and is counted."""
    probe = StreamProbe(tmp_path, "toy")
    engine = Engine(probe, [POOL])
    for index in range(15):
        engine.attach(PoolInfo(f"more-{index}", 8, 1, 1))
    beyond = [probe.attach_pool(PoolInfo("seventeenth", 8, 1, 1)), probe.attach_pool(PoolInfo("none", 0, 1, 1))]
    for pool in beyond:
        pool.alloc([1, 2])
        pool.alloc_one(3)
    live(engine, Random(18), 20)
    assert probe.lost == 6
    assert probe.loss_reasons == ["value"]
    state, _ = follow(tmp_path)
    assert len(state.pools) == 16
    assert state.converged
    check(state, engine)

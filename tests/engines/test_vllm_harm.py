"""Whatever fails around a real scheduler of the installed vLLM, or in kvmon itself: the engine does not notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvmon
from kvmon.adapters.vllm.recording import Recording
from kvmon.exporter.follow.stream import Progress, StreamFollower
from kvmon.recording.reader import find_streams
from tests.engines.vllm_alone import Driver, make_scheduler
from tests.engines.vllm_truth import Followed, differences


def tokens_without_kvmon(models: Path, steps: int, **options: Any) -> dict[str, list[int]]:
    """What the same traffic gives when nobody watches."""
    driver = Driver(make_scheduler(models, **{"blocks": 40, **options}), 1)
    driver.run(steps)
    return driver.tokens


@pytest.mark.parametrize("what", ["missing", "read-only", "deleted", "moved", "full", "a file"])
def test_the_engine_does_not_notice_a_directory_that_fails(
    what: str, build: Callable[..., Any], tmp_path: Path
) -> None:
    """Whatever happens to the directory, the tokens are those of an engine that nobody watches."""
    expected = tokens_without_kvmon(tmp_path / "models", 120)
    directory = tmp_path / "kv"
    if what == "missing":
        directory = tmp_path / "no" / "such" / "kv"
    elif what == "a file":
        directory.write_text("")
    else:
        directory.mkdir()
    if what == "read-only":
        directory = Path("/proc/kv")
    if what == "full":
        directory = Path("/dev/full")
    scheduler = build()
    recording = kvmon.attach(scheduler, directory=directory)
    driver = Driver(scheduler, 1)
    driver.run(60)
    if what == "deleted":
        shutil.rmtree(directory)
    if what == "moved":
        (path,) = find_streams(directory)
        for segment in path.glob("*.seg"):
            os.rename(segment, segment.with_suffix(".gone"))
    driver.run(60)
    assert driver.tokens == expected
    assert isinstance(recording, Recording)
    if what in ("missing", "a file", "read-only", "full"):
        assert recording.probe.lost > 0 and not recording.probe.writing


def test_ten_thousand_failures_of_the_probe(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that a hook calls raises, at random: the tokens are the same, and nothing is raised."""
    expected = tokens_without_kvmon(tmp_path / "models", 120)
    raised = 0

    def failing(name: str) -> Callable[..., Any]:
        def fail(*args: Any, **kwargs: Any) -> Any:
            nonlocal raised
            raised += 1
            raise RuntimeError(f"injected into {name}")

        return fail

    from kvmon.adapters.vllm.blocks import BlockHooks
    from kvmon.adapters.vllm.requests import Requests
    from kvmon.adapters.vllm.steps import Steps
    from kvmon.adapters.vllm.waits import Waits
    from kvmon.probe import PoolProbe, StreamProbe

    owners: list[tuple[type, list[str]]] = [
        (
            PoolProbe,
            ["alloc", "alloc_one", "unshare", "share", "cache", "evict", "assign", "failed", "claims", "reset"],
        ),
        (StreamProbe, ["arrived", "admitted", "progress", "finished", "preempted", "step", "cache_hit", "hashes"]),
        (Requests, ["arrive", "end", "step"]),
        (Waits, ["before_step", "after_step", "preempted", "_refused", "arrived"]),
        (Steps, ["before_schedule", "after_schedule", "after_update", "gone"]),
        (BlockHooks, ["_after_reset"]),
    ]
    names = [(owner, name) for owner, listed in owners for name in listed]
    runs = 0
    while raised < 10_000 or runs < len(names):
        owner, name = names[runs % len(names)]
        runs += 1
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, failing(name))
            scheduler = build()
            kvmon.attach(scheduler, directory=tmp_path / f"kv{runs}")
            driver = Driver(scheduler, 1)
            driver.run(120 if runs <= len(names) else 20)
            kvmon.detach()
            if runs <= len(names):
                assert driver.tokens == expected, name
        if runs > len(names):  # the rest straight at the guard: a body that fails is asked once, and never again
            raised += _storm(tmp_path, 10_000 - raised)
    assert raised >= 10_000


def _storm(tmp_path: Path, times: int) -> int:
    """So many failing hook bodies around one method, all of which the caller never sees."""
    from kvmon.probe import Patches

    class Engine:
        def work(self) -> int:
            return 7

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("injected")

    patches = Patches()
    engine = Engine()
    for done in range(times):
        patches.hook(engine, "work", before=fail)
        assert engine.work() == 7
        if done % 50 == 49:
            patches.undo()
    return times


def test_a_failed_hook_reduces_the_recording(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure: counts alone from then on, said in the recording, and the numbers that remain are right."""
    from kvmon.probe import PoolProbe

    def fail(pool: PoolProbe, units: list[int]) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(PoolProbe, "share", fail)
    scheduler = build()
    recording = kvmon.attach(scheduler, directory=tmp_path / "kv")
    assert isinstance(recording, Recording)
    driver = Driver(scheduler, 1)
    driver.run(100)
    assert recording.grade == "reduced" and "BlockPool.touch" in recording.why and "injected" in recording.why
    followed = Followed.of(tmp_path / "kv")
    state = followed.read()
    assert state.config["fidelity"] == "counts" and "BlockPool.touch" in state.config["reduced"]
    pool = scheduler.kv_cache_manager.block_pool
    assert state.pools[1].active == pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    assert state.converged


def test_clocks_that_jump(build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours ahead, hours back: no step takes less than no time, and units and tokens stay right."""
    from kvmon.adapters.vllm import steps

    class Jumping:
        def __init__(self) -> None:
            self.calls = 0

        def monotonic_ns(self) -> int:
            self.calls += 1
            return time.monotonic_ns() + (self.calls % 7 - 3) * 3_600_000_000_000

    monkeypatch.setattr(steps, "time", Jumping())
    scheduler = build()
    driver = Driver(scheduler, 1)
    with kvmon.attach(scheduler, directory=tmp_path / "kv") as recording:
        followed = Followed.of(tmp_path / "kv")

        def check() -> None:
            state = followed.read()
            assert differences(state, scheduler, recording) == []
            assert state.last_step is not None and state.last_step.duration_ns >= 0

        driver.run(80, check)
        assert recording.grade == "exact" and recording.probe.lost == 0


def test_a_recording_left_by_a_dead_process_of_the_same_pid(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is alive is a matter of locks, not of numbers: the new engine records, the old one is forgotten."""
    code = (
        "import os, sys; from pathlib import Path; from kvmon.probe import PoolInfo, StreamProbe\n"
        "probe = StreamProbe(Path(sys.argv[1]), 'vllm'); pool = probe.attach_pool(PoolInfo('kv', 39, 64, 16))\n"
        "probe.arrived(99, 1, 16); pool.alloc([1, 2, 3]); probe.tick(); print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    directory = tmp_path / "kv"
    directory.mkdir()
    dead = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True)
    monkeypatch.setattr(os, "getpid", lambda: int(dead.stdout))
    scheduler = build()
    driver = Driver(scheduler, 1)
    with kvmon.attach(scheduler, directory=directory) as recording:
        driver.run(40)
        assert isinstance(recording, Recording) and recording.probe.writing
        follower = StreamFollower(directory / "vllm-0")
        while follower.poll() is not Progress.NOTHING:
            pass
        assert differences(follower.state, scheduler, recording) == []
        follower.close()

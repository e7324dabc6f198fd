"""One real scheduler of the installed vLLM: any traffic, any failure of kvmon's own, any odd use of it."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmon
from kvmon.adapters.vllm import ADAPTER
from kvmon.adapters.vllm.recording import Recording
from kvmon.errors import ConfigError, InputError
from kvmon.events import FAILURE_REASONS
from kvmon.events.totals import PoolTotal
from kvmon.exporter.follow.stream import Progress, StreamFollower
from kvmon.recording.reader import find_streams
from kvmon.state import StreamState
from tests.engines.vllm_alone import Driver, make_scheduler
from tests.engines.vllm_truth import Followed, differences

SECRET = "xyzzy-marked-word"


@pytest.fixture(autouse=True)
def _detached() -> Iterator[None]:
    yield
    kvmon.detach()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Any]:
    """Makes schedulers; see `vllm_alone.make_scheduler`."""
    return lambda **options: make_scheduler(tmp_path / "models", **{"blocks": 40, **options})


def traffic(driver: Driver, steps: int, check: Callable[[], None] | None = None) -> None:
    """Requests that need more than there is, for so many steps."""
    draw = driver.random
    for _ in range(steps):
        if draw.random() < 0.5 and len(driver.scheduler.requests) < 16:
            driver.add(draw.randint(1, 150), draw.randint(1, 60), family=draw.randint(0, 2))
        driver.step()
        if check is not None:
            check()


def tokens_without_kvmon(models: Path, steps: int, **options: Any) -> dict[str, list[int]]:
    """What the same traffic gives when nobody watches."""
    driver = Driver(make_scheduler(models, **{"blocks": 40, **options}), 1)
    traffic(driver, steps)
    return driver.tokens


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 200), st.integers(1, 50), st.integers(0, 3)),
        st.tuples(st.just("step"), st.integers(1, 12)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("reset"), st.booleans()),
        st.tuples(st.just("evict"), st.lists(st.integers(1, 19), max_size=6, unique=True)),
    ),
    min_size=5,
    max_size=60,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    actions=actions,
    blocks=st.integers(20, 60),
    kind=st.sampled_from(
        [{}, {"window": 40}, {"hybrid": True}, {"caching": False}, {"policy": "priority"}, {"asynchronous": True},
         {"hybrid": True, "asynchronous": True}, {"full_need": True, "watermark": 0.1}]
    ),
)  # fmt: skip
def test_any_traffic_folds_to_the_engines_state(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Any], blocks: int, kind: dict[str, Any]
) -> None:
    """Whatever comes in whatever order: after every step units, tables, requests and tokens are vLLM's own."""
    from vllm.v1.request import RequestStatus

    folder = tmp_path_factory.mktemp("run")
    scheduler = make_scheduler(folder / "models", blocks=blocks, **kind)
    driver = Driver(scheduler, 0, in_flight=2 if kind.get("asynchronous") else 1)
    with kvmon.attach(scheduler, directory=folder / "kv") as recording:
        followed = Followed.of(folder / "kv")
        stepped = 0
        for action in actions:
            if action[0] == "add":
                driver.add(action[1], action[2], family=action[3], priority=action[3])
            elif action[0] == "abort" and scheduler.requests:
                ids = sorted(scheduler.requests)
                scheduler.finish_requests(ids[action[1] % len(ids)], RequestStatus.FINISHED_ABORTED)
            elif action[0] == "reset":
                scheduler.reset_prefix_cache(reset_running_requests=action[1] and "asynchronous" not in kind)
            elif action[0] == "evict":
                scheduler.kv_cache_manager.evict_blocks(set(action[1]))
            elif action[0] == "step":
                for _ in range(action[1]):
                    driver.step()
                    stepped += 1
                    if stepped >= (2 if kind.get("asynchronous") else 1):
                        assert differences(followed.read(), scheduler, recording, driver.in_flight()) == []
        assert recording.grade == "exact" and recording.probe.lost == 0
        assert followed.read().faults() == []


def test_names_why_a_request_waits(build: Callable[..., Any], tmp_path: Path) -> None:
    """A refusal is told once a wait, with its need, and says so where the request can never fit."""
    scheduler = build(blocks=11)
    driver = Driver(scheduler)
    with kvmon.attach(scheduler, directory=tmp_path / "kv") as recording:
        assert isinstance(recording, Recording)
        followed = Followed.of(tmp_path / "kv")
        driver.add(100, 60)
        driver.step()
        driver.add(112, 4, family=1)
        for _ in range(20):
            driver.step()
        failure = followed.read().pools[1].last_failure
        assert failure is not None
        assert (failure.reason, failure.need, failure.request) == ("exhausted", 7, 2)
        assert (failure.free, failure.evictable) == (3, 0)
        assert _failures(recording) == {"exhausted": 1}
        step = followed.state.last_step
        assert step is not None and (step.waiting, step.head_need) == (1, 7)
        scheduler.finish_requests("request-1", _aborted())
        driver.add(150, 100)  # ten blocks of 16 for 160 tokens: the 161st never fits
        for _ in range(150):
            driver.step()
        last = followed.read().pools[1].last_failure
        assert last is not None and (last.reason, last.need) == ("never_fits", 11)


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def _failures(recording: Recording) -> dict[str, int]:
    totals = next(recording.probe.pools())[0].totals
    return {
        reason: totals[PoolTotal.FAILED_FIRST + number]
        for number, reason in enumerate(FAILURE_REASONS)
        if totals[PoolTotal.FAILED_FIRST + number]
    }


def test_a_spinning_engine_does_not_fill_the_recording(build: Callable[..., Any], tmp_path: Path) -> None:
    """A request that never fits makes vLLM step without end; the recording says so now and then."""
    scheduler = build(blocks=11)
    driver = Driver(scheduler)
    with kvmon.attach(scheduler, directory=tmp_path / "kv") as recording:
        driver.add(400, 4)
        for _ in range(2000):
            driver.step()
        assert recording.probe.emitter.frame < 300


def test_detach_leaves_no_trace(build: Callable[..., Any], tmp_path: Path) -> None:
    """Every object has the attributes that it had; detaching twice is nothing."""
    scheduler = build(hybrid=True, blocks=60)
    objects = [
        scheduler,
        scheduler.kv_cache_manager,
        scheduler.kv_cache_manager.coordinator,
        scheduler.kv_cache_manager.block_pool,
        *scheduler.kv_cache_manager.coordinator.single_type_managers,
    ]
    before = [dict(vars(one)) for one in objects]
    recording = kvmon.attach(scheduler, directory=tmp_path / "kv")
    traffic(Driver(scheduler, 1), 30)
    assert kvmon.detach(recording) == []
    assert recording.detach() == []
    for one, names in zip(objects, before, strict=True):
        assert set(vars(one)) == set(names)
    assert recording.grade == "off"


def test_attached_twice(build: Callable[..., Any], tmp_path: Path) -> None:
    """The second attach is refused in a sentence; after a detach it works."""
    scheduler = build()
    first = kvmon.attach(scheduler, directory=tmp_path / "kv")
    with pytest.raises(ConfigError, match="recorded already"):
        kvmon.attach(scheduler, directory=tmp_path / "other")
    kvmon.detach(first)
    assert kvmon.attach(scheduler, directory=tmp_path / "kv").grade == "exact"


def test_two_engines_in_one_directory(
    build: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second of one name is turned away and told so once, the first goes on; with a name of its own it records."""
    first, second, third = build(), build(), build()
    kvmon.attach(first, directory=tmp_path / "kv")
    with caplog.at_level(logging.WARNING, "vllm.kvmon"):
        _propagate("vllm.kvmon")
        refused = kvmon.attach(second, directory=tmp_path / "kv")
    assert isinstance(refused, Recording) and "second_writer" in refused.probe.loss_reasons
    assert [record.message for record in caplog.records].count(
        f"kvmon: another engine records as vllm (rank 0) in {tmp_path / 'kv'}: set KVMON_ENGINE for this one"
    ) <= 1
    traffic(Driver(second, 1), 20)
    kvmon.attach(third, directory=tmp_path / "kv", name="third")
    followed = Driver(first, 2)
    traffic(followed, 20)
    assert sorted(path.name for path in find_streams(tmp_path / "kv")) == ["third-0", "vllm-0"]
    assert followed.tokens


def _propagate(name: str) -> None:
    """vLLM's loggers keep their records to themselves; a test wants to see them."""
    logging.getLogger(name.split(".")[0]).propagate = True


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
    traffic(driver, 60)
    if what == "deleted":
        shutil.rmtree(directory)
    if what == "moved":
        (path,) = find_streams(directory)
        for segment in path.glob("*.seg"):
            os.rename(segment, segment.with_suffix(".gone"))
    traffic(driver, 60)
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
            traffic(driver, 120 if runs <= len(names) else 20)
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
    traffic(driver, 100)
    assert recording.grade == "reduced" and "BlockPool.touch" in recording.why and "injected" in recording.why
    followed = Followed.of(tmp_path / "kv")
    state = followed.read()
    assert state.config["fidelity"] == "counts" and "BlockPool.touch" in state.config["reduced"]
    pool = scheduler.kv_cache_manager.block_pool
    assert state.pools[1].active == pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    assert state.converged


def test_an_unknown_version_is_reduced_or_refused(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer than kvmon knows: counts, unless the operator takes the risk; older: refused, in a sentence."""
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.99.1")
    newer = kvmon.attach(build(), directory=tmp_path / "kv")
    assert newer.grade == "reduced" and "newer than kvmon knows" in newer.why
    trusting = kvmon.attach(build(), directory=tmp_path / "kv2", trust_untested=True)
    assert trusting.grade == "exact"
    monkeypatch.setattr(vllm, "__version__", "0.11.2")
    with pytest.raises(InputError, match="older than kvmon knows"):
        kvmon.attach(build(), directory=tmp_path / "kv3")
    monkeypatch.setattr(vllm, "__version__", "dev")
    with pytest.raises(InputError, match="no version"):
        kvmon.attach(build(), directory=tmp_path / "kv3")


def test_a_class_that_changed_shape(build: Callable[..., Any], tmp_path: Path) -> None:
    """Without a method that counting can spare: reduced, and it names it; without one that it needs: refused."""
    scheduler = build()
    pool = scheduler.kv_cache_manager.block_pool

    def get_new_blocks(count: int, where: int = 0) -> Any:
        return type(pool).get_new_blocks(pool, count)

    pool.get_new_blocks = get_new_blocks
    reduced = kvmon.attach(scheduler, directory=tmp_path / "kv")
    assert reduced.grade == "reduced" and "get_new_blocks(num_blocks)" in reduced.why
    traffic(Driver(scheduler, 1), 60)
    assert _active(tmp_path / "kv") == pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    other = build()
    del other.requests
    with pytest.raises(InputError, match=r"no Scheduler\.requests"):
        kvmon.attach(other, directory=tmp_path / "kv2")


def _active(directory: Path) -> int:
    state: StreamState = Followed.of(directory).read()
    return state.pools[1].active


def test_nothing_of_a_prompt_is_recorded(build: Callable[..., Any], tmp_path: Path) -> None:
    """No client request id, salt or token sequence is in any file of the recording; all of them are private."""
    scheduler = build()
    with kvmon.attach(scheduler, directory=tmp_path / "kv", class_by="salt"):
        driver = Driver(scheduler, 1)
        for number in range(12):
            driver.add(80, 20, name=f"{SECRET}-{number}", salt=f"{SECRET}-salt-{number % 3}")
        traffic(driver, 60)
    prompt = [at * 7 % 500 + 3 for at in range(80)]
    needles = [SECRET.encode()]
    for size in (2, 4, 8):
        needles.append(b"".join(token.to_bytes(size, "little") for token in prompt[:6]))
    files = [path for path in (tmp_path / "kv").rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        data = path.read_bytes()
        assert not any(needle in data for needle in needles), path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    state = Followed.of(tmp_path / "kv").read()
    assert state.config["class_by"] == "salt"


def test_classes_by_the_operators_rule(build: Callable[..., Any], tmp_path: Path) -> None:
    """Priorities are numbered as they come, lengths by their bits."""
    scheduler = build(policy="priority")
    with kvmon.attach(scheduler, directory=tmp_path / "kv", class_by="priority") as recording:
        driver = Driver(scheduler)
        for priority in (5, 5, 9):
            driver.add(10, 10, priority=priority)
        assert [one.class_id for one in recording.requests.facts.values()] == [1, 1, 2]
    other = build()
    with kvmon.attach(other, directory=tmp_path / "kv2", class_by="length") as recording:
        driver = Driver(other)
        for length in (1, 100, 130):
            driver.add(length, 10)
        assert [one.class_id for one in recording.requests.facts.values()] == [1, 7, 8]


def test_armed_engines_are_recorded_until_detached(build: Callable[..., Any], tmp_path: Path) -> None:
    """`kvmon.attach("vllm")` records what is built later; detaching restores the class and ends every recording."""
    from vllm.v1.core.sched.scheduler import Scheduler

    untouched = Scheduler.__init__
    kvmon.attach("vllm", directory=tmp_path / "kv", name="armed")
    scheduler = build()
    traffic(Driver(scheduler, 1), 20)
    assert "schedule" in vars(scheduler)
    assert kvmon.detach("vllm") == []
    assert Scheduler.__init__ is untouched and "schedule" not in vars(scheduler)
    assert [path.name for path in find_streams(tmp_path / "kv")] == ["armed-0"]
    assert "schedule" not in vars(build())


def test_the_plugin_does_nothing_without_a_directory(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And raises nothing with settings that cannot work."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from kvmon.adapters.vllm.plugin import register

    untouched = Scheduler.__init__
    monkeypatch.delenv("KVMON_DIR", raising=False)
    register()
    assert Scheduler.__init__ is untouched
    monkeypatch.setenv("KVMON_DIR", str(tmp_path / "kv"))
    monkeypatch.setenv("KVMON_BUDGET", "a lot")
    register()
    assert Scheduler.__init__ is untouched
    monkeypatch.delenv("KVMON_BUDGET")
    register()
    register()
    assert Scheduler.__init__ is not untouched
    scheduler = build()
    traffic(Driver(scheduler, 1), 10)
    assert len(find_streams(tmp_path / "kv")) == 1
    assert ADAPTER._armed is not None and ADAPTER._armed.detach() == []
    assert Scheduler.__init__ is untouched


def test_what_is_no_engine_is_refused() -> None:
    """In a sentence that names what can be attached to."""
    with pytest.raises(ConfigError, match="a dict is nothing that can be recorded"):
        kvmon.attach({}, directory="/tmp/kv")
    with pytest.raises(ConfigError, match="no adapter is called"):
        kvmon.attach("llama", directory="/tmp/kv")
    with pytest.raises(ConfigError, match="no directory"):
        kvmon.attach("vllm")
    with pytest.raises(ConfigError, match="is not attached"):
        kvmon.detach("vllm")


def test_blocks_that_a_connector_holds_are_deferred(build: Callable[..., Any], tmp_path: Path) -> None:
    """A request has ended and its blocks are read on: deferred until they come back, also where others share them."""
    from vllm.v1.outputs import KVConnectorOutput

    scheduler = build(connector="HoldingConnector", blocks=60)
    driver = Driver(scheduler, 3)
    with kvmon.attach(scheduler, directory=tmp_path / "kv") as recording:
        followed = Followed.of(tmp_path / "kv")
        most = 0

        def check() -> None:
            nonlocal most
            state = followed.read()
            assert differences(state, scheduler, recording) == []
            most = max(most, state.pools[1].units["deferred"])
            held = scheduler.connector.held
            if len(held) > 2:
                scheduler._update_from_kv_xfer_finished(KVConnectorOutput(finished_sending={held.pop(0)}))

        traffic(driver, 200, check)
        assert most > 5
        assert recording.grade == "exact"
        assert followed.read().faults() == []


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

        traffic(driver, 80, check)
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
        traffic(driver, 40)
        assert isinstance(recording, Recording) and recording.probe.writing
        follower = StreamFollower(directory / "vllm-0")
        while follower.poll() is not Progress.NOTHING:
            pass
        assert differences(follower.state, scheduler, recording) == []
        follower.close()

"""Attaching to real schedulers of the installed vLLM: what is taken, what is refused, and that nothing stays."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvmon
from kvmon.adapters.vllm import ADAPTER
from kvmon.adapters.vllm.recording import Recording
from kvmon.errors import ConfigError, InputError
from kvmon.recording.reader import find_streams
from kvmon.state import StreamState
from tests.engines.vllm_alone import Driver
from tests.engines.vllm_truth import Followed


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
    Driver(scheduler, 1).run(30)
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
    Driver(second, 1).run(20)
    kvmon.attach(third, directory=tmp_path / "kv", name="third")
    driver = Driver(first, 2)
    driver.run(20)
    assert sorted(path.name for path in find_streams(tmp_path / "kv")) == ["third-0", "vllm-0"]
    assert driver.tokens


def _propagate(name: str) -> None:
    """vLLM's loggers keep their records to themselves; a test wants to see them."""
    logging.getLogger(name.split(".")[0]).propagate = True


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
    Driver(scheduler, 1).run(60)
    assert _active(tmp_path / "kv") == pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()
    other = build()
    del other.requests
    with pytest.raises(InputError, match=r"no Scheduler\.requests"):
        kvmon.attach(other, directory=tmp_path / "kv2")


def _active(directory: Path) -> int:
    state: StreamState = Followed.of(directory).read()
    return state.pools[1].active


def test_armed_engines_are_recorded_until_detached(build: Callable[..., Any], tmp_path: Path) -> None:
    """`kvmon.attach("vllm")` records what is built later; detaching restores the class and ends every recording."""
    from vllm.v1.core.sched.scheduler import Scheduler

    untouched = Scheduler.__init__
    kvmon.attach("vllm", directory=tmp_path / "kv", name="armed")
    scheduler = build()
    Driver(scheduler, 1).run(20)
    assert "schedule" in vars(scheduler)
    assert kvmon.detach("vllm") == []
    assert Scheduler.__init__ is untouched and "schedule" not in vars(scheduler)
    assert [path.name for path in find_streams(tmp_path / "kv")] == ["armed-0"]
    assert "schedule" not in vars(build())


@pytest.mark.parametrize("armed", [True, False])
def test_an_engine_that_its_owner_lets_go_is_gone(build: Callable[..., Any], tmp_path: Path, armed: bool) -> None:
    """Whoever watches an engine does not keep it, nor the memory that hangs on it."""
    if armed:
        kvmon.attach("vllm", directory=tmp_path / "kv")
    scheduler = build()
    if not armed:
        kvmon.attach(scheduler, directory=tmp_path / "kv")
    Driver(scheduler, 1).run(20)
    gone = weakref.ref(scheduler)
    del scheduler
    gc.collect()
    assert gone() is None


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
    Driver(scheduler, 1).run(10)
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

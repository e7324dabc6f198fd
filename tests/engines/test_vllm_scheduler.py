"""What is recorded of one real scheduler of the installed vLLM, under any traffic."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmon
from kvmon.adapters.vllm.recording import Recording
from kvmon.events import FAILURE_REASONS, FailureOutcome
from kvmon.events.totals import PoolTotal
from tests.engines.vllm_alone import Driver, make_scheduler
from tests.engines.vllm_truth import Followed, differences

SECRET = "xyzzy-marked-word"


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


def test_who_gives_way_to_itself_is_refused_once(build: Callable[..., Any], tmp_path: Path) -> None:
    """The youngest cannot grow, loses its memory and waits to get it back: one refusal, not one more for the wait."""
    scheduler = build(blocks=11)
    driver = Driver(scheduler)
    with kvmon.attach(scheduler, directory=tmp_path / "kv") as recording:
        assert isinstance(recording, Recording)
        followed = Followed.of(tmp_path / "kv")
        driver.add(100, 60)
        driver.add(40, 30, family=1)
        for _ in range(20):
            driver.step()
        state = followed.read()
        assert (state.steps, state.last_step and state.last_step.waiting) == (20, 1)
        assert state.pools[1].last_failure is not None
        assert state.pools[1].last_failure.outcome == FailureOutcome.PREEMPTED_ITSELF
        assert _failures(recording) == {"exhausted": 1}


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

        driver.run(200, check)
        assert most > 5
        assert recording.grade == "exact"
        assert followed.read().faults() == []


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


def test_nothing_of_a_prompt_is_recorded(build: Callable[..., Any], tmp_path: Path) -> None:
    """No client request id, salt or token sequence is in any file of the recording; all of them are private."""
    scheduler = build()
    with kvmon.attach(scheduler, directory=tmp_path / "kv", class_by="salt"):
        driver = Driver(scheduler, 1)
        for number in range(12):
            driver.add(80, 20, name=f"{SECRET}-{number}", salt=f"{SECRET}-salt-{number % 3}")
        driver.run(60)
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

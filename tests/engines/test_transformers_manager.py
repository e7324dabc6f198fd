"""Managers of transformers that run in their own threads, with models that compute."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest

import kvmon
from kvmon.errors import ConfigError
from kvmon.events import FinishReason, Kind
from kvmon.recording import find_streams
from kvmon.state import StreamState
from tests.engines.transformers_driven import Driven, manager_of
from tests.engines.transformers_truth import events_of, words_of
from tests.engines.transformers_watched import PROMPTS, own_functions, through_the_manager

pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_real_model_in_its_own_thread(tmp_path: Path, name: str) -> None:
    """The loop's thread writes; its end ends the recording, and the answers are the same."""
    alone, _, _ = through_the_manager(name, PROMPTS)
    watched, recording, manager = through_the_manager(
        name, PROMPTS, lambda manager: kvmon.attach(manager, directory=tmp_path)
    )
    assert watched == alone and len(alone) == len(PROMPTS)
    assert kvmon.detach(manager) == []
    assert recording.grade == "exact"
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert not state.faults() and state.converged
    assert state.last_step is not None and (state.last_step.running, state.last_step.waiting) == (0, 0)
    finished = [event for event in events_of(tmp_path) if event.kind is Kind.REQUEST_FINISHED]
    assert sorted(event.fields["output"] for event in finished) == sorted(map(len, alone.values()))
    reasons = {event.fields["reason"] for event in finished}
    assert reasons <= {int(FinishReason.LENGTH), int(FinishReason.STOP)}


def test_every_manager_that_is_built_later(tmp_path: Path) -> None:
    """Armed by name: two managers one after another, and two at once under numbers of their own."""
    with kvmon.attach("transformers", directory=tmp_path, name="armed") as recording:
        assert recording.grade == "armed"
        with pytest.raises(ConfigError, match="armed already"):
            kvmon.attach("transformers", directory=tmp_path)
        first, _, _ = through_the_manager("llama", PROMPTS[:4])
        second, _, _ = through_the_manager("llama", PROMPTS[:4])
        assert first == second
        managers = [manager_of("llama"), manager_of("llama")]
        for manager in managers:
            manager.start()
            manager.add_request(PROMPTS[3], max_new_tokens=5)
        for manager in managers:
            while manager.get_result(timeout=2) is None:
                pass
        for manager in managers:
            manager.stop()
    streams = {path.name for path in find_streams(tmp_path)}
    assert streams == {"armed-0", "armed-1"}
    kind = type(managers[0])
    assert kind._create_batch_processor.__module__ == kind.__module__
    assert not hasattr(kind._create_batch_processor, "__wrapped__")


def test_attached_and_detached_while_it_runs(tmp_path: Path) -> None:
    """In the middle of a running loop: the loop begins and ends the recording itself, between two steps."""
    manager = manager_of("llama", blocks=60)
    manager.start()
    for _ in range(6):
        manager.add_request(PROMPTS[4], max_new_tokens=400)
    while manager.batch_processor is None or len(manager.batch_processor.scheduler.active_requests) < 2:
        threading.Event().wait(0.01)
    processor, before = manager.batch_processor, own_functions(manager)
    recording = kvmon.attach(manager, directory=tmp_path)
    while not find_streams(tmp_path) or len(words_of(tmp_path)) < 3000:
        threading.Event().wait(0.01)
    assert kvmon.detach(recording) == []
    assert manager.batch_processor is processor and own_functions(manager) == before
    assert processor.scheduler.active_requests, "it runs on"
    events = events_of(tmp_path)
    assert sum(event.kind is Kind.STEP for event in events) > 3
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert state.converged and not state.faults()
    manager.stop(hard_stop=True)


def test_a_manager_that_is_kept_for_the_next_session(tmp_path: Path) -> None:
    """Its cache outlives the loop: the second recording begins with what the first one left, and finds it out."""
    manager = manager_of("llama", blocks=40)
    recording = kvmon.attach(manager, directory=tmp_path)
    for session in range(2):
        manager.start()
        for number, prompt in enumerate(PROMPTS):
            manager.add_request(prompt, request_id=f"client-{session}-{number}", max_new_tokens=60)
        answers = 0
        while answers < len(PROMPTS):
            answers += manager.get_result(timeout=2) is not None
        manager.stop(keep_for_next_session=True)
        assert not recording._recorders, "it ended with its loop"
    kvmon.detach(recording)
    manager.model.destroy_cached_continuous_batching_manager()
    words, begins = words_of(tmp_path), []
    for event in events_of(tmp_path):
        if event.kind is Kind.POOL_ATTACHED and not event.fields["restated"]:
            begins.append('"fresh":true' in event.fields["text"])
    assert begins == [True, False]
    hits = [event.fields["hit_tokens"] for event in events_of(tmp_path) if event.kind is Kind.CACHE_HIT]
    assert sum(hits[len(PROMPTS) :]) > sum(hits[: len(PROMPTS)])
    state = StreamState(verify=True)
    state.apply(words)
    assert state.converged and {fault.kind.name for fault in state.faults()} <= {"FRAME_MISSING"}


def test_what_one_manager_lacks_the_next_one_has(tmp_path: Path) -> None:
    """Armed by name: a processor of another shape is reduced, alone; the recording goes on saying so."""
    with kvmon.attach("transformers", directory=tmp_path) as recording:
        for lacks_something in (True, False):
            driven = Driven("llama")
            if lacks_something:
                del driven.processor.offloading_manager._cpu_pool
            driven.step()
            driven.manager._fail_all_remaining_requests(RuntimeError("the loop ends"), driven.processor)
        assert recording.grade == "reduced" and "no OffloadingManager._cpu_pool" in recording.why
    configs = [event.fields["text"] for event in events_of(tmp_path) if event.kind is Kind.ENGINE_CONFIG]
    assert [config.count('"fidelity":"counts"') for config in configs] == [1, 0]


@pytest.mark.parametrize("armed", [True, False])
def test_a_manager_that_its_owner_lets_go_is_gone(tmp_path: Path, armed: bool) -> None:
    """Whoever watches it keeps neither it nor its model."""
    if armed:
        kvmon.attach("transformers", directory=tmp_path)
    attach = None if armed else lambda manager: kvmon.attach(manager, directory=tmp_path)
    gone = weakref.ref(through_the_manager("llama", PROMPTS[:2], attach)[2])
    gc.collect()
    assert gone() is None and find_streams(tmp_path)

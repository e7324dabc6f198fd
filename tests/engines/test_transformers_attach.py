"""What the adapter of transformers attaches to: versions, shapes, names."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvmon
from kvmon.adapters.base import SIGHTS
from kvmon.adapters.transformers import ADAPTER, DECLARATION, adapter, recorder
from kvmon.errors import ConfigError, InputError
from kvmon.events import Kind
from kvmon.recording import find_streams
from kvmon.state import StreamState
from tests.engines.transformers_driven import Driven, Traffic, manager_of
from tests.engines.transformers_truth import Follower, events_of, words_of
from tests.engines.transformers_watched import PROMPTS, own_functions, through_the_manager

pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize(("version", "why"), [("5.19.0", "older"), ("nightly", "no version"), ("", "no version")])
def test_versions_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, why: str) -> None:
    """One line, and nothing is patched."""
    monkeypatch.setattr(adapter, "running_version", lambda: version)
    driven = Driven("llama")
    before = own_functions(driven.manager)
    for engine in (driven.manager, driven.processor, "transformers"):
        with pytest.raises(InputError, match=why):
            kvmon.attach(engine, directory=tmp_path)
    assert own_functions(driven.manager) == before and not list(tmp_path.iterdir())


def test_a_newer_version_is_reduced_or_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps and how much is free, nothing that could be wrong; everything where the operator says so."""
    monkeypatch.setattr(adapter, "running_version", lambda: "5.99.0")
    with caplog.at_level(logging.WARNING, "kvmon"):
        driven = Driven("gemma3")
        recording = kvmon.attach(driven.processor, directory=tmp_path)
        assert recording.grade == "reduced" and "newer than kvmon knows" in recording.why
        traffic = Traffic(driven, 1)
        follower = Follower(tmp_path, driven, recording)
        for _ in range(30):
            traffic.arrive()
            driven.step()
            follower.fold()
            counted = follower.state.pools[1]
            cache = driven.processor.cache
            kept = sum(len(one.ledger.cached_blocks) * one.bytes_per_block for one in cache.cache_allocators.values())
            assert counted.free * counted.unit_bytes == cache.compute_free_capacity(relative=False) + kept
        kvmon.detach(recording)
    assert len(caplog.records) == 1 and "KVMON_UNTESTED" in caplog.text
    kinds = {event.kind for event in events_of(tmp_path)}
    audit = {Kind.AUDIT_SWEEP, Kind.AUDIT_SLICE, Kind.AUDIT_RUN}
    assert kinds - audit == {
        Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED, Kind.TICK, Kind.STEP, Kind.CLAIMS, Kind.ALLOC, Kind.FREE
    }  # fmt: skip
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert state.config["fidelity"] == "counts" and "newer than kvmon knows" in state.config["reduced"]
    assert state.converged and not state.faults()
    assert any(event.fields["running"] for event in events_of(tmp_path) if event.kind is Kind.STEP)
    trusted = kvmon.attach(driven.processor, directory=tmp_path, name="trusted", trust_untested=True)
    assert trusted.grade == "exact"


@pytest.mark.parametrize(
    ("change", "grade"),
    [
        (lambda patch, one: patch.delattr(type(one.scheduler).__mro__[1], "clear_cancelled_requests"), "reduced"),
        (lambda patch, one: patch.setattr(type(one.cache), "search_prefix_match", lambda self, ids: 0), "reduced"),
        (lambda patch, one: patch.setattr(type(one.cache.pool), "get_free_blocks", lambda self, n: []), "reduced"),
        (lambda patch, one: patch.delattr(one.cache.cache_allocators["full_attention"], "ledger"), "reduced"),
        (lambda patch, one: patch.delattr(one.cache, "pool"), "refused"),
        (lambda patch, one: patch.delattr(one, "scheduler"), "refused"),
        (lambda patch, one: patch.setattr(one.cache, "cache_allocators", []), "refused"),
    ],
)
def test_another_shape_is_reduced_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, grade: str
) -> None:
    """What does not look as it did is named, and never guessed."""
    driven = Driven("llama")
    before = own_functions(driven.manager)
    with monkeypatch.context() as patch:
        change(patch, driven.processor)
        if grade == "refused":
            with pytest.raises(InputError, match="another shape"):
                kvmon.attach(driven.processor, directory=tmp_path)
        else:
            recording = kvmon.attach(driven.processor, directory=tmp_path)
            assert recording.grade == "reduced" and "another shape" in recording.why
            kvmon.detach(recording)
    assert own_functions(driven.manager) == before


def test_a_shape_that_shows_only_when_the_loop_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Attached before there is a processor: one line in the log, and the engine runs on."""
    monkeypatch.setattr(recorder, "missing_for_counts", lambda processor: ["CachePool.free_sectors"])
    with caplog.at_level(logging.WARNING, "kvmon"):
        answers, recording, manager = through_the_manager(
            "llama", PROMPTS[:3], lambda manager: kvmon.attach(manager, directory=tmp_path)
        )
    assert len(answers) == 3 and recording.grade == "reduced"
    assert [record.getMessage().count("CachePool.free_sectors") for record in caplog.records] == [1]
    assert not find_streams(tmp_path)
    kvmon.detach(manager)


def test_attached_twice_and_a_second_engine_of_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same engine is refused; another one under the same name is turned away by the files, with a line."""
    first, second = Driven("llama"), Driven("llama")
    kvmon.attach(first.processor, directory=tmp_path)
    with pytest.raises(ConfigError, match="attached already"):
        kvmon.attach(first.processor, directory=tmp_path, name="again")
    first.add("one", PROMPTS[4], 6)
    first.step()
    with caplog.at_level(logging.WARNING, "kvmon"):
        kvmon.attach(second.processor, directory=tmp_path)
        second.add("one", PROMPTS[4], 6)
        second.run()
    assert [record.getMessage().count("another name") for record in caplog.records] == [1]
    first.run()
    assert first.tokens == second.tokens
    kvmon.detach()
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert not state.faults()
    assert sum(event.kind is Kind.REQUEST_FINISHED for event in events_of(tmp_path)) == 1


def test_what_is_declared(tmp_path: Path) -> None:
    """Every sight has an answer, and what is seen as exact is told with a hook."""
    assert set(DECLARATION.sees) == set(SIGHTS)
    assert all(
        sight.how in ("exact", "sampled", "partly", "absent") and sight.note for sight in DECLARATION.sees.values()
    )
    assert ADAPTER.recognises(Driven("llama").processor) and ADAPTER.recognises(manager_of("llama"))
    assert not ADAPTER.recognises(object()) and not ADAPTER.recognises("transformers")
    with pytest.raises(ConfigError, match="nothing that can be recorded"):
        kvmon.attach(object(), directory=tmp_path)


def test_importing_the_adapter_imports_no_engine() -> None:
    """The standard library alone, until an engine is attached."""
    code = (
        "import sys, kvmon.adapters.transformers as it; "
        "loaded = {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "assert not loaded, loaded; assert not it.ADAPTER.recognises(object()); "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Transformers does not notice that it is watched: the same answers, whatever fails, and every method comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import kvmon
from kvmon.adapters.transformers.hooks import Body, Hooks
from kvmon.recording import find_streams
from kvmon.state import StreamState
from tests.engines.transformers_driven import Driven, Traffic
from tests.engines.transformers_truth import words_of
from tests.engines.transformers_watched import PROMPTS, own_functions, served

pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"flying": True}),
        ("llama", {"host_sectors": 8}),
        ("gemma3", {"scheduler_type": "prefill_first"}),
        ("gemma3-slices", {"returns": 2}),
    ],
)
def test_answers_are_the_same_with_and_without(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """Token for token, and the engine's own faults are the same too."""
    for seed in range(3):
        alone = served(name, seed, 100, None, **options)
        assert alone == served(name, seed, 100, tmp_path, **options)
        assert len(alone[0]) > 5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_detach_restores_every_attribute(tmp_path: Path, name: str) -> None:
    """What an instance had it has again, and nothing more."""
    driven = Driven(name, host_sectors=8)
    driven.manager.batch_processor = driven.processor
    before = own_functions(driven.manager)
    recording = kvmon.attach(driven.processor, directory=tmp_path)
    driven.add("one", PROMPTS[5], 5)
    driven.step()
    assert sum(map(len, own_functions(driven.manager))) > sum(map(len, before)) + 20
    assert kvmon.detach(recording) == []
    assert own_functions(driven.manager) == before
    driven.run()
    assert driven.tokens["one"]


def test_what_somebody_else_patched_on_top_stays_and_is_off(tmp_path: Path) -> None:
    """Their patch is named and goes on working; nothing of ours runs below it."""
    driven = Driven("llama")
    recording = kvmon.attach(driven.processor, directory=tmp_path)
    driven.step()
    ours, calls = driven.processor.cache.can_store_request_tokens, []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return ours(*args, **kwargs)

    driven.processor.cache.can_store_request_tokens = theirs
    assert kvmon.detach(recording) == ["PagedAttentionCache.can_store_request_tokens"]
    words = len(words_of(tmp_path))
    driven.add("one", PROMPTS[5], 5)
    driven.run()
    assert calls and driven.tokens["one"] and len(words_of(tmp_path)) == words


class _Numbered:
    """Replaces the hook body of one number by one that raises; counts them all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: int) -> None:
        self.count, self.raised = 0, 0
        hook, body = Hooks.hook, Hooks.body

        def replaced(run: Any) -> Any:
            number, self.count = self.count, self.count + 1

            def failing(*args: Any, **kwargs: Any) -> None:
                self.raised += 1
                raise RuntimeError("a hook body that fails")

            return failing if number == fail else run

        def faulty_hook(hooks: Hooks, owner: Any, name: str, *, before: Any = None, after: Any = None) -> None:
            hook(
                hooks,
                owner,
                name,
                before=None if before is None else replaced(before),
                after=None if after is None else replaced(after),
            )

        def faulty_body(hooks: Hooks, label: str, run: Any) -> Body:
            return body(hooks, label, replaced(run))

        monkeypatch.setattr(Hooks, "hook", faulty_hook)
        monkeypatch.setattr(Hooks, "body", faulty_body)


@pytest.mark.parametrize(("name", "options"), [("llama", {"host_sectors": 10}), ("gemma3", {"returns": 2})])
def test_any_hook_that_raises_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    """Each body in turn: the same answers, and the recording says that it lacks something."""
    alone = served(name, 1, 40, None, **options)
    number = called = 0
    while True:
        with monkeypatch.context() as patched:
            faults = _Numbered(patched, number)
            directory = tmp_path / str(number)
            directory.mkdir()
            driven = Driven(name, **options)
            recording = kvmon.attach(driven.processor, directory=directory)
            seen = recording._recorders[0]
            traffic = Traffic(driven, 1)
            for _ in range(40):
                traffic.arrive()
                driven.step()
            probe = seen.probe
            kvmon.detach(recording)
        assert (driven.tokens, repr(driven.died)) == alone, f"body {number}"
        if faults.raised:
            called += 1
            assert faults.raised == 1, "it is never asked twice"
            if find_streams(directory) and probe is not None:
                assert "hook" in probe.loss_reasons, number
        number += 1
        if number > faults.count:
            break
    assert called > 20


def test_a_broken_hook_is_never_taken_for_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the failure on every step says that something is missing, so that no reader believes the rest."""
    driven = Driven("llama")
    recording = kvmon.attach(driven.processor, directory=tmp_path)
    traffic = Traffic(driven, 1)
    driven.step()
    for _ in range(10):
        traffic.arrive()
        driven.step()
    monkeypatch.setattr(recording._recorders[0]._hooks._bodies[4], "_run", lambda *args: 1 / 0)
    for _ in range(30):
        traffic.arrive()
        driven.step()
    assert recording.grade == "reduced" and "failed and is off" in recording.why
    kvmon.detach(recording)
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path))
    assert state.gaps > 20 and not state.converged

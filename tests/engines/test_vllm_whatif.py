"""Recordings of vLLM's own scheduler: how far a replay is from them, and what-ifs against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvmon.events import Kind as EventKind
from kvmon.events import decode
from kvmon.recording.reader import StreamReader, find_streams
from kvmon.replay.calibration import calibrate
from kvmon.replay.demand import Case, Demand
from kvmon.replay.simulated import record_setup
from kvmon.replay.whatif import begin_comparison
from kvmon.serving.scenarios import Setup
from tests.engines.calibration import ENGINES, Kind, Question, asked_and_done, calibration_row, is_stated, what_if_row

VLLM = ENGINES["vllm"]
_UNITS = {kind for kind in EventKind if kind <= EventKind.EVICT}


@pytest.mark.parametrize("kind", VLLM.kinds.values(), ids=lambda kind: kind.name)
def test_a_replay_without_a_change_is_as_near_as_the_docs_say(kind: Kind, tmp_path: Path) -> None:
    """The same memory in every step, or a distance within its bound; what is poor is called so, with the reason."""
    found = calibrate(VLLM.run(tmp_path, kind))
    was, now = found.recorded, found.replayed
    assert found.curve_mean_ratio is not None and found.curve_mean_ratio <= kind.curve
    assert found.quality == ("poor" if kind.poor else "good") and bool(found.reasons) == kind.poor
    assert found.different_steps is None  # vLLM tells one and the same step in another order
    if kind.curve == 0:
        assert found.other_memory_steps == 0 and found.first_different_ns is None
        assert (was.preemptions, was.hit_tokens, was.evictions) == (now.preemptions, now.hit_tokens, now.evictions)
        assert (was.finished, was.hung_up, was.peak_units) == (now.finished, now.hung_up, now.peak_units)
        assert now.refused_allocations <= was.refused_allocations <= now.refused_allocations + was.preemptions
    else:
        assert found.other_memory_steps and found.first_different_ns is not None
    assert is_stated(VLLM, calibration_row(kind, found)), "run python -m tests.engines.calibration vllm"


@pytest.mark.parametrize(
    "name", ["too little memory", "shared prefixes, evictions", "conversations", "clients hang up"]
)
def test_the_same_blocks_are_taken_and_given_in_the_same_order(name: str, tmp_path: Path) -> None:
    """Every block that vLLM takes, shares, names, evicts and gives back is that of the replay, step by step."""
    demand = VLLM.run(tmp_path, VLLM.kinds[name]).demand
    recorded, replayed = _blocks_by_step(_words_of(tmp_path / "kv")), _blocks_by_step(_replay(demand))
    assert len(recorded) == len(replayed) > 1000
    different = [step for step, (was, now) in enumerate(zip(recorded, replayed, strict=True)) if was != now]
    assert different == []


@pytest.mark.parametrize(
    ("name", "said"), [("queue by priority", "priorities"), ("hybrid, 3 groups", "groups of layers")]
)
def test_a_poor_replay_is_to_be_taken_with_care(name: str, said: str, tmp_path: Path) -> None:
    """The answers carry the doubt, and what is run differently is named beside them."""
    comparison = begin_comparison(VLLM.run(tmp_path, VLLM.kinds[name]))
    assert any("memory in use differs" in doubt for doubt in comparison.doubts)
    assert any(said in assumption for assumption in comparison.assumptions)


@pytest.mark.parametrize("question", VLLM.questions, ids=lambda one: f"{one.kind} {one.what_if}")
def test_what_vllm_then_really_does(question: Question, tmp_path: Path) -> None:
    """Its own classes in the configuration that was predicted, under the same traffic and the same clock."""
    recorded, answer, really = asked_and_done(VLLM, question, tmp_path)
    predicted = answer.most
    assert answer.definite and recorded != really
    assert abs(predicted.peak_units - really.peak_units) <= 0.02 * really.capacity_units
    assert abs(predicted.preemptions - really.preemptions) <= max(3, 0.1 * really.preemptions)
    assert abs(predicted.hit_tokens - really.hit_tokens) <= 0.02 * really.lookup_tokens
    assert (predicted.finished, predicted.lost) == (really.finished, really.lost)
    assert abs(predicted.mean_ratio - really.mean_ratio) <= 0.02
    assert is_stated(VLLM, what_if_row(question, recorded, answer, really)), (
        "run python -m tests.engines.calibration vllm"
    )


def _replay(demand: Demand) -> Any:
    engine = demand.described()
    setup = Setup(demand.workload(Case.RECORDED), engine.allocator, engine.scheduler, token_bytes=engine.token_bytes)
    pieces: list[Any] = []
    record_setup(
        lambda words: pieces.append(words.copy()),
        setup,
        recorded=demand.recorded_steps(),
        most_steps=len(demand.steps) + 1,
    )
    return np.concatenate(pieces)


def _words_of(directory: Path) -> Any:
    (path,) = find_streams(directory)
    reader, pieces = StreamReader(path), []
    while (piece := reader.poll()) is not None:
        pieces.append(np.frombuffer(piece.data, "<u4"))
    return np.concatenate(pieces)


def _blocks_by_step(words: Any) -> list[list[tuple[EventKind, int]]]:
    """What was done to which block, in its order, between each step and the one before."""
    steps: list[list[tuple[EventKind, int]]] = []
    now: list[tuple[EventKind, int]] = []
    for event in decode(words.tolist()):
        if event.kind is EventKind.STEP:
            steps.append(now)
            now = []
        elif event.kind in _UNITS:
            now += [(event.kind, unit) for unit in event.units]
    return steps

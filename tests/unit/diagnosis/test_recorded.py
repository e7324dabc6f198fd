"""Diagnosis of recorded runs: the right word for a scenario, the same live and afterwards, silent where all is well."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.diagnosis import Diagnosis
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import SCENARIOS, find
from kvmon.state import StreamState, scan
from kvmon.state.watch import WINDOW_NS, R, W

Words = npt.NDArray[np.uint32]
Told = list[tuple[int, int, tuple[str, ...]]]


@lru_cache(maxsize=4)
def recorded(name: str, seed: int = 0) -> Words:
    """Every frame of a scenario that has one run."""
    pieces: list[Words] = []
    record_setup(lambda words: pieces.append(words.copy()), find(name).setups(seed)[0][""])
    return np.concatenate(pieces)


def followed(words: Words, cuts: list[int]) -> tuple[Diagnosis, Told]:
    """A diagnosis of these words, read in pieces that end behind the frames `cuts`; what it was told of each window."""
    table = scan(words)
    told: Told = []
    state, diagnosis = StreamState(), Diagnosis(lambda end, pool, names: told.append((end, pool, names)))
    diagnosis.follow(state)
    begin = 0
    for end in [*(int(table.ends[cut]) for cut in sorted(cuts)), len(words)]:
        state.apply(words[begin:end])
        diagnosis.findings()  # somebody looks in between
        begin = end
    state.drain()
    return diagnosis, told


CASES = [scenario for base in SCENARIOS.values() if base.compare is None for scenario in (base, base.twin())]


@pytest.mark.parametrize("scenario", CASES, ids=lambda scenario: scenario.name)
def test_the_first_finding_is_what_a_scenario_stands_for(scenario: object) -> None:
    """And a twin shows nothing but what it may."""
    from kvmon.serving.scenarios.scenario import Scenario

    assert isinstance(scenario, Scenario)
    diagnosis, _ = followed(recorded(scenario.name), [])
    assert diagnosis.verdict() in (scenario.healthy if scenario.cured else (scenario.verdict,))
    for finding in diagnosis.findings():
        assert finding.start_ns < finding.end_ns and finding.summary and finding.evidence
        assert finding.avoided and finding.lever


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["post-incident", "stranded", "cache-thrash", "leak", "partition", "telemetry-untrusted"]),
    seed=st.integers(0, 1),
    places=st.lists(st.floats(0, 1, exclude_max=True), max_size=6),
)
def test_live_says_what_a_replay_says(name: str, seed: int, places: list[float]) -> None:
    """At every window end, however the words came in, and whoever looked in between."""
    words = recorded(name, seed)
    frames = len(scan(words).ends)
    replayed, after = followed(words, [])
    live, told = followed(words, [int(place * frames) for place in places])
    assert told == after
    assert [finding.to_json() for finding in live.findings()] == [finding.to_json() for finding in replayed.findings()]


def test_now_is_what_the_recording_says_up_to_here() -> None:
    """The window that is open counts as if it ended with the last frame."""
    words = recorded("leak")
    table = scan(words)
    half = int(table.ends[len(table.ends) // 2])
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    state.apply(words[:half])
    assert [*diagnosis.as_of_now().holding[1]] == ["leak"]
    before = diagnosis.findings()[0]
    assert before.end_ns % WINDOW_NS and before.end_ns == state.time_ns
    state.apply(words[half:])
    assert diagnosis.findings()[0].start_ns == before.start_ns
    assert diagnosis.findings()[0].end_ns > before.end_ns


def test_memory_is_bounded_on_an_endless_stream() -> None:
    """An hour of trouble, again and again: no more rows are held than a minute has, and findings end."""
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    words = recorded("preemption-storm")
    table = scan(words)
    state.apply_frames(words, table)
    state.drain()
    held = sum(len(waits.rows) for waits in diagnosis._waits.values())
    windows = np.zeros((5000, W.WIDTH), np.int64)
    from tests.unit.diagnosis.rows import window

    for number in range(5000):
        windows[number] = window(10_000 + number, errors=int(number % 26 == 0))
    for _ in range(3):
        diagnosis.take(np.zeros((0, R.WIDTH), np.int64), windows)
    assert held < 2000 and not diagnosis._waits
    assert len(diagnosis._findings) <= 200 and diagnosis.dropped > 0
    assert all(len(rows) <= 12 for rows, _ in diagnosis._minutes.values())


def test_a_late_reader_says_what_it_could_not_see() -> None:
    """Read from the middle, units are unknown: a cause that needs them is not named, and the finding says so."""
    words = recorded("pinned")
    table = scan(words)
    middle = int(table.ends[len(table.ends) // 2])
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    begin = int(table.ends[0])
    state.apply(words[:begin])  # the pool is attached
    state.apply(words[middle:])
    found = diagnosis.findings()
    assert {finding.verdict for finding in found} <= {"capacity", "telemetry_untrusted", "cache_thrash"}
    assert all(finding.completeness.missing for finding in found if finding.verdict == "capacity")

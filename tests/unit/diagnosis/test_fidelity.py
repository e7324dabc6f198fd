"""Recordings that see less: the diagnosis says less, and nothing that is wrong."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvmon.diagnosis import Diagnosis, Finding
from kvmon.events import Kind, decode, encode
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find
from kvmon.state import StreamState, scan

Words = npt.NDArray[np.uint32]

_UNITS = {kind for kind in Kind if kind <= 9} | {Kind.ASSIGN, Kind.ASSIGN_RUN, Kind.MIGRATED, Kind.TRUNCATE}
_CACHE = {Kind.CACHE_INSERT, Kind.EVICT, Kind.CACHE_HIT, Kind.POOL_RESET}
_FRAME = {Kind.STEP: 17, Kind.TICK: 6}
_NEEDED = {Kind.STEP, Kind.TICK, Kind.ENGINE_CONFIG, Kind.POOL_ATTACHED}
_DEMAND = {Kind.REQUEST_ARRIVED, Kind.REQUEST_HASHES, Kind.REQUEST_ADMITTED, Kind.FIRST_TOKEN, Kind.REQUEST_PROGRESS}
_DEMAND |= {Kind.REQUEST_FINISHED, Kind.PREEMPTED, Kind.CACHE_HIT, Kind.AUDIT_REQUEST}
DROPPED = {
    "counts": _UNITS,
    "sampled": _UNITS,
    "without demand": _DEMAND,
    "cache_only": {kind for kind in Kind if kind not in _CACHE | _NEEDED},
    "unsaid": {Kind.ENGINE_CONFIG},
}


SAID: dict[str, dict[str, str]] = {"without demand": {}}


@lru_cache(maxsize=8)
def recorded(name: str) -> Words:
    """Every frame of a scenario."""
    pieces: list[Words] = []
    record_setup(lambda words: pieces.append(words.copy()), find(name).setups(0)[0][""])
    return np.concatenate(pieces)


def degraded(words: Words, fidelity: str) -> Words:
    """The same run as an adapter of this fidelity would have recorded it."""
    out: list[int] = []
    begin = 0
    for end in scan(words).ends.tolist():
        frame: list[int] = []
        pool = 1
        for event in decode(words[begin:end].tolist()):
            fields = dict(event.fields)
            if event.kind in DROPPED[fidelity]:
                continue
            if event.kind in _FRAME:
                fields["words"] = len(frame) + _FRAME[event.kind]
                if fidelity == "cache_only" and event.kind is Kind.STEP:
                    fields |= dict.fromkeys(("prefill", "decode", "context", "running", "waiting"), 0)
                    fields["head_need"] = None
            elif event.kind is Kind.ENGINE_CONFIG:
                fields["text"] = json.dumps(
                    {**json.loads(fields["text"]), **SAID.get(fidelity, {"fidelity": fidelity})}
                )
            elif event.pool != pool:
                pool = event.pool
                frame.append(30 << 27 | pool)
            frame += encode(event.kind, **fields)
        out += frame
        begin = end
    return np.array(out, np.uint32)


def found(words: Words) -> Diagnosis:
    """The diagnosis of these words."""
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    state.apply(words, verify_checksums=False)
    state.drain()
    return diagnosis


@pytest.mark.parametrize("fidelity", ["counts", "sampled"])
@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("server-failures", {"fragmentation"}),  # the engine says itself what it lacked
        ("partition", {"partition"}),
        ("never-fits", {"never_fits", "deadlock"}),
        ("pool-starved", {"pool_starved", "deadlock"}),
        ("deadlock", {"deadlock", "capacity"}),
        ("reclaim-failed", {"reclaim_failed"}),
        ("pinned", {"capacity"}),  # who held it cannot be told
        ("stranded", {"capacity"}),
        ("leak", {"leak"}),  # from the engine's own numbers
        ("warm-cache", set()),
        ("leak-healthy", set()),
    ],
)
def test_counts_say_less_and_nothing_wrong(name: str, may: set[str], fidelity: str) -> None:
    """Without units no cause is named that needs them; capacity says what it could not see."""
    findings = found(degraded(recorded(name), fidelity)).findings()
    assert {finding.verdict for finding in findings} <= may
    assert bool(findings) == bool(may)
    for finding in findings:
        if finding.verdict == "capacity":
            assert finding.confidence != "certain" and "who held the memory" in finding.completeness.missing[0]


@pytest.mark.parametrize("name", ["pinned", "stranded", "deadlock", "leak", "warm-cache", "partition"])
def test_a_cache_alone_tells_of_no_failure(name: str) -> None:
    """Where only the prefix cache is seen, nothing else is claimed."""
    verdicts = {finding.verdict for finding in found(degraded(recorded(name), "cache_only")).findings()}
    assert verdicts <= {"cache_thrash"}


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("server-failures", {"fragmentation"}),
        ("post-incident", {"fragmentation"}),
        ("pinned", {"pinned", "capacity"}),
        ("deadlock", {"deadlock"}),
        ("double-free", {"double_free"}),
        ("warm-cache", set()),
        ("leak-healthy", set()),
    ],
)
def test_without_demand_nobody_owns_and_nothing_leaks(name: str, may: set[str]) -> None:
    """Requests are not recorded: units have no owners to miss, and what is refused is still explained."""
    verdicts = {finding.verdict for finding in found(degraded(recorded(name), "without demand")).findings()}
    assert verdicts <= may and (not may or verdicts or name == "pinned")


def test_a_gap_over_the_failure_is_what_there_is_to_say() -> None:
    """The frame with the refused allocation is gone: no failure is made up, and that something is missing is said."""
    words = recorded("server-failures")
    ends = scan(words).ends.tolist()
    begins = [0, *ends[:-1]]
    failed = next(
        place
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True))
        if any(event.kind is Kind.ALLOC_FAILED for event in decode(words[begin:end].tolist()))
    )
    cut = np.concatenate([words[: begins[failed]], words[ends[failed] :]])
    findings = found(cut).findings()
    assert [finding.verdict for finding in findings] == ["telemetry_untrusted"]
    assert findings[0].completeness.gaps == 1 and findings[0].completeness.missing


def test_an_unknown_engine_is_diagnosed_from_what_it_records() -> None:
    """Who does not say what it is, and what it sees, is taken at its events."""
    for name in ("server-failures", "pinned"):
        known, unknown = found(recorded(name)), found(degraded(recorded(name), "unsaid"))
        assert [_said(finding) for finding in unknown.findings()] == [_said(finding) for finding in known.findings()]


def _said(finding: Finding) -> dict[str, Any]:
    """A finding, with the frames of its events: what an engine says of itself moves the words behind it."""
    said = finding.to_json()
    return said | {"events": [event["frame"] for event in said["events"]]}

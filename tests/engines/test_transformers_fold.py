"""The adapter of transformers against the real classes: every step, every unit, every owner, no word of a client."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvmon
from kvmon.events import Kind
from kvmon.state import FaultKind, StreamState, scan
from tests.engines.transformers_driven import LAYERS, Driven, Traffic
from tests.engines.transformers_truth import Follower, events_of, words_of
from tests.engines.transformers_watched import followed

pytestmark = pytest.mark.usefixtures("transformers_alone")


@pytest.mark.parametrize("scheduler", ["fifo", "prefill_first"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_fold_of_every_step_is_the_engine(tmp_path: Path, name: str, scheduler: str) -> None:
    """References, content, owners and tokens of every unit and request, under pressure."""
    follower = followed(tmp_path, name, 1, 90, scheduler_type=scheduler)
    assert follower.compared == 90 and follower.preempted
    assert (follower.shared > 0) == (follower.cached > 0) == (name == "llama")


@pytest.mark.parametrize("name", ["llama", "gemma3-slices"])
def test_a_batch_in_flight_is_not_written_yet(tmp_path: Path, name: str) -> None:
    """Asynchronous batching prepares the next batch before the last one is known."""
    follower = followed(tmp_path, name, 3, 90, flying=True, cancels=0.0)
    assert follower.compared > 80 and follower.preempted


@pytest.mark.parametrize(
    ("name", "flying"), [("llama", False), ("llama", True), ("gemma3", False), ("gemma3-window", False)]
)
def test_the_swap_pool_is_a_second_pool(tmp_path: Path, name: str, flying: bool) -> None:
    """What is copied to the host, who has it there, and its way back."""
    follower = followed(tmp_path, name, 1, 110, host_sectors=12, flying=flying, cancels=0.0)
    assert follower.hosted > 5
    kinds = {event.kind for event in events_of(tmp_path)}
    assert {Kind.OFFLOADED, Kind.ONBOARDED, Kind.PREEMPTED} <= kinds
    claimed = [event for event in events_of(tmp_path) if event.kind is Kind.CLAIMS and event.pool == 2]
    capacity = follower.state.pools[2].capacity_units
    assert claimed and all(event.fields["available"] + event.fields["protected"] == capacity for event in claimed)


def test_what_a_dying_engine_forgets_on_the_host(tmp_path: Path) -> None:
    """An engine that dies while it offloads leaks blocks of its swap pool, and the recording says so."""
    sizes = {"blocks": 32, "page": 4, "budget": 33, "host_sectors": 10}
    follower = followed(tmp_path, "llama", 425, 45, scheduler_type="prefill_first", safety_margin=0.3, **sizes)
    assert isinstance(follower.driven.died, ValueError) and follower.lost_on_the_host > 0
    assert {(fault.kind, fault.pool) for fault in follower.state.faults()} == {(FaultKind.UNOWNED, 2)}


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma3-even"])
def test_forks_share_what_is_full(tmp_path: Path, name: str) -> None:
    """Children of one prompt hold its full blocks together, in hybrid models the full-attention ones."""
    follower = followed(tmp_path, name, 2, 60, returns=3)
    assert follower.shared > 100


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_workload_of_any_engine(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Models, schedulers, sizes, cancellations, sharing: no difference, ever."""
    name = data.draw(st.sampled_from(list(LAYERS)))
    options: dict[str, Any] = {
        "scheduler_type": data.draw(st.sampled_from(["fifo", "prefill_first"])),
        "allow_block_sharing": data.draw(st.sampled_from([True, True, False])),
        "blocks": data.draw(st.integers(6, 40)),
        "page": data.draw(st.sampled_from([4, 8])),
        "budget": data.draw(st.integers(9, 64)),
        "flying": data.draw(st.booleans()),
        "host_sectors": data.draw(st.sampled_from([0, 0, 10])),
        "returns": data.draw(st.sampled_from([1, 1, 2])),
        "safety_margin": data.draw(st.sampled_from([None, 0.0, 0.3])),
    }
    seed = data.draw(st.integers(0, 1000))
    followed(tmp_path_factory.mktemp("any"), name, seed, 45, **options)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_real_model_step_by_step(tmp_path: Path, name: str) -> None:
    """With a model that computes, the fold is the engine as well."""
    assert followed(tmp_path, name, 1, 40, scripted=False).compared == 40


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_recording_that_begins_late_finds_the_truth(tmp_path: Path, name: str) -> None:
    """Attached in the middle of things, everything is known after one sweep of the audit."""
    driven = Driven(name, blocks=40)
    traffic = Traffic(driven, 4)
    for _ in range(40):
        traffic.arrive()
        driven.step()
    assert driven.processor.scheduler.active_requests
    recording = kvmon.attach(driven.processor, directory=tmp_path)
    follower = Follower(tmp_path, driven, recording)
    for _ in range(60):
        traffic.arrive()
        driven.step()
        follower.compare()
    assert follower.state.converged_from and follower.compared > 30


def test_a_late_reader_finds_the_truth(tmp_path: Path) -> None:
    """What the audit ships of units, host blocks and requests is what the hooks told."""
    driven = Driven("gemma3", host_sectors=60, blocks=40)
    kvmon.attach(driven.processor, directory=tmp_path)
    traffic = Traffic(driven, 2)
    for _ in range(420):
        traffic.arrive()
        driven.step()
    assert driven.died is None
    kvmon.detach()
    words = words_of(tmp_path)
    ends = scan(words).ends.tolist()
    whole, late = StreamState(verify=True), StreamState(verify=True)
    whole.apply(words)
    late.apply(words[ends[100] :])
    assert late.converged and late.converged_from is not None and late.converged_from > 100
    assert not late.faults() and not whole.faults()
    for number, pool in whole.pools.items():
        assert late.pools[number].status.tolist() == pool.status.tolist()
        assert late.pools[number].owners.tolist() == pool.owners.tolist()


def test_no_word_of_a_client_is_in_the_files(tmp_path: Path) -> None:
    """Neither names of requests nor tokens of prompts, in any width; pages have keyed names."""
    driven = Driven("llama", blocks=60, budget=64)
    kvmon.attach(driven.processor, directory=tmp_path)
    marked = [101, 17, 93, 55, 109, 23, 71, 88, 3, 42, 117, 64]
    driven.add("MARKED-CLIENT-NAME", marked * 3, 4)
    driven.add("other", marked, 4)
    driven.run()
    kvmon.detach()
    recorded = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "key")
    assert len(recorded) > 10_000
    assert b"MARKED" not in recorded and "MARKED".encode("utf-16-le") not in recorded
    for width in "Hiq":
        assert struct.pack(f"<4{width}", *marked[:4]) not in recorded
        assert array(width, marked[2:6]).tobytes() not in recorded
    named = [event for event in events_of(tmp_path) if event.kind is Kind.REQUEST_HASHES]
    assert [len(event.fields["hashes"]) for event in named] == [9, 3]
    assert named[0].fields["hashes"][:3] == named[1].fields["hashes"]
    assert len(set(named[0].fields["hashes"])) == 9, "a page is named with what is before it"

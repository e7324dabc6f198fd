"""Checkpoints: a restored state is the state, and what this kvmon does not know is refused."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.errors import NewerFormatError, RecordingError
from kvmon.probe import PoolInfo, StreamProbe
from kvmon.state import StreamState, scan
from kvmon.state.checkpoint import CHECKPOINT_VERSION, dump, load
from tests.naive.watched_engine import OFTEN, REQUEST_ACTS, UNIT_ACTS, Engine, check
from tests.unit.capture.traffic import record, same, words_of

ACTS = st.tuples(st.sampled_from([*UNIT_ACTS, *REQUEST_ACTS, *OFTEN, "step"]), st.integers(0, 1 << 16))


@settings(max_examples=25)
@given(acts=st.lists(ACTS, min_size=5, max_size=80), share=st.floats(0, 1))
def test_a_restored_state_folds_on_as_the_one_that_was_dumped(acts: list[tuple[str, int]], share: float) -> None:
    """After any events, restoring a state and folding the rest gives the state that never stopped, array by array."""
    with tempfile.TemporaryDirectory() as directory:
        probe = StreamProbe(Path(directory), "engine")
        engine = Engine(probe, [PoolInfo("a", 24, 4096, 4), PoolInfo("b", 16, 4096, 4, contiguity="required")])
        for name, seed in acts:
            if name == "step":
                engine.step()
            else:
                engine.act(name, seed)
        engine.step()
        probe.close()
        words = words_of(Path(directory) / "engine-0")
    table = scan(words)
    cut = int(table.ends[round(share * (len(table.ends) - 1))])
    whole, first = StreamState(verify=True), StreamState(verify=True)
    whole.apply(words)
    first.apply(words[:cut])
    restored = load(dump(first), verify=True)
    assert same(restored, first)
    restored.apply(words[cut:])
    assert same(restored, whole)
    check(restored, engine)


def test_a_restored_state_answers_the_same(tmp_path: Path) -> None:
    """Views of a restored state, faults and configuration included, say what those of the dumped one say."""
    record(tmp_path, 200)
    state = StreamState(verify=True)
    state.apply(words_of(tmp_path / "toy-0"))
    restored = load(dump(state), verify=True)
    assert restored.config == state.config
    assert restored.converged and restored.next_frame == state.next_frame
    assert restored.faults() == state.faults()
    assert restored.last_step == state.last_step
    for number, pool in state.pools.items():
        other = restored.pools[number]
        assert other.units == pool.units
        assert other.info == pool.info
        assert other.slots() == pool.slots()
        assert other.units_by_owner_state() == pool.units_by_owner_state()
        assert (other.owner == pool.owner).all()


def test_samples_of_devices_come_back_also_those_of_an_earlier_kvmon(tmp_path: Path) -> None:
    """A sample is restored with its time; where only the event was kept, with the time of the checkpoint."""
    engine = record(tmp_path, 20, close=False)
    engine.probe.device_sample(0, 100, 20, 120, 90, 60, 30, largest_free=7, uuid="GPU-1")
    engine.run(2)
    engine.close()
    state = StreamState()
    state.apply(words_of(tmp_path / "toy-0"))
    data = dump(state)
    sample = load(data).device_samples[0]
    assert sample == state.device_samples[0] and sample.time_ns < state.time_ns
    length = int.from_bytes(data[8:12], "little")
    description = json.loads(data[12 : 12 + length])
    fields = {"device": 0, "used": 100, "free": 20, "total": 120, "reserved": 90, "allocated": 60, "inactive": 30}
    description["devices"] = [[80, 1, fields, 5]]
    old = json.dumps(description).encode().ljust(length)
    old += b" " * (-(len(old) - length) % 8)
    restored = load(data[:8] + len(old).to_bytes(4, "little") + old + data[12 + length :]).device_samples[0]
    assert restored == replace(sample, time_ns=state.time_ns, largest_free=None, uuid="")


def test_without_detail_it_is_the_fold_without_detail(tmp_path: Path) -> None:
    """A checkpoint of everything, restored without detail, equals a state that never folded detail."""
    record(tmp_path, 200)
    words = words_of(tmp_path / "toy-0")
    everything, units = StreamState(), StreamState(detail=False)
    everything.apply(words)
    units.apply(words)
    assert same(load(dump(everything), detail=False), units)


def test_another_version_is_refused() -> None:
    """A version that this kvmon does not know is one error, so that folding can begin elsewhere."""
    data = bytearray(dump(StreamState()))
    data[4] = CHECKPOINT_VERSION + 1
    with pytest.raises(NewerFormatError, match="fold from the start"):
        load(bytes(data))


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    """An array of another type, or one that is missing, makes a checkpoint unusable, not wrong."""
    data = dump(StreamState())
    for old, new in ((b'"misc","<i8"', b'"misc","<f8"'), (b'"detail.owner"', b'"detail.older"'), (b"KVST", b"KVSX")):
        with pytest.raises(RecordingError, match="no checkpoint"):
            load(data.replace(old, new, 1))


@given(st.data())
def test_bytes_that_are_no_checkpoint_are_refused(data: st.DataObject) -> None:
    """Cut or changed descriptions are errors of kvmon, never others."""
    raw = bytearray(dump(StreamState()))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    try:
        state = load(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except (RecordingError, NewerFormatError):
        return
    assert isinstance(state._misc, np.ndarray)

"""The division of a device's memory: its parts sum to what is used, whatever was told and however it fits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvmon.catalog import ENUMERATIONS
from kvmon.events import Kind, encode
from kvmon.state import DeviceSample, ScanEnd, StreamState
from kvmon.state.device import PARTS, overclaimed, parts_of
from tests.unit.capture.traffic import frame

GIB = 1 << 30
SAMPLE = DeviceSample(
    time_ns=1,
    device=0,
    uuid="GPU-1",
    used=78 * GIB,
    free=2 * GIB,
    total=80 * GIB,
    reserved=70 * GIB,
    allocated=66 * GIB,
    inactive=3 * GIB,
    largest_free=GIB,
    kv_pool=40 * GIB,
    weights=16 * GIB,
    retries=0,
    ooms=0,
)
SIZES = st.integers(0, 1 << 40)
SAMPLES = st.builds(
    lambda reserved, allocated, kv_pool, weights: replace(
        SAMPLE, reserved=reserved, allocated=allocated, kv_pool=kv_pool, weights=weights
    ),
    SIZES,
    SIZES,
    st.none() | SIZES,
    st.none() | SIZES,
)


def test_one_engine_is_divided_into_five_parts() -> None:
    """What torch allocated by purpose, what it holds beyond that, and everything else."""
    assert parts_of(78 * GIB, [SAMPLE]) == {
        "kv_pool": 40 * GIB,
        "weights": 16 * GIB,
        "torch_other": 10 * GIB,
        "torch_slack": 4 * GIB,
        "rest": 8 * GIB,
    }
    assert tuple(parts_of(78 * GIB, [SAMPLE])) == PARTS == ENUMERATIONS["kvmon_gpu_used_bytes", "part"]


def test_a_part_that_one_engine_does_not_tell_is_within_the_coarser_one() -> None:
    """Two engines on a GPU, one of which does not know its weights: no weights, and all of them in what torch holds."""
    other = replace(SAMPLE, reserved=6 * GIB, allocated=6 * GIB, kv_pool=GIB, weights=None)
    parts = parts_of(78 * GIB, [SAMPLE, other])
    assert parts == {"kv_pool": 41 * GIB, "torch_other": 31 * GIB, "torch_slack": 4 * GIB, "rest": 2 * GIB}


def test_what_cannot_be_known_is_absent() -> None:
    """Without a driver there is no rest, without torch's numbers there are no parts."""
    assert "rest" not in parts_of(None, [SAMPLE])
    assert parts_of(78 * GIB, []) == {}
    assert parts_of(78 * GIB, [replace(SAMPLE, reserved=None, allocated=None)]) == {}


@given(used=SIZES, samples=st.lists(SAMPLES, min_size=1, max_size=3))
def test_the_parts_always_sum_to_what_is_used(used: int, samples: list[DeviceSample]) -> None:
    """Also where engines say more than there is: then a part is negative, and by how much is counted."""
    parts = parts_of(used, samples)
    assert sum(parts.values()) == used
    assert sum(max(value, 0) for value in parts.values()) == used + overclaimed(parts)
    assert (overclaimed(parts) == 0) == (min(parts.values()) >= 0)


def test_a_sample_of_an_earlier_kvmon_folds() -> None:
    """A record that ends where the first version ended is no damage: what it could not say is absent."""
    numbers = {"used": 70, "free": 10, "total": 80, "reserved": 60, "allocated": 50, "inactive": 5}
    words = encode(Kind.DEVICE_SAMPLE, device=3, **numbers, uuid="GPU-1")
    first = 1 + len(numbers) * 2  # one word for the device, two for each size
    state = StreamState()
    table = state.apply(
        np.array(frame(0, 5, [[words[0] - (len(words) - 1 - first), *words[1 : 1 + first]]]), np.uint32)
    )
    assert table.end is ScanEnd.ALL
    nothing = dict.fromkeys(("largest_free", "kv_pool", "weights", "retries", "ooms"))
    assert state.device_samples == {3: DeviceSample(time_ns=5, device=3, uuid="", **numbers, **nothing)}

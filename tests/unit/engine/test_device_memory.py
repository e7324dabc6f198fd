"""Torch's numbers of a device: parsed from what torch recorded, and sampled no more often than was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvmon.engine.device_memory import (
    DeviceMemory,
    DeviceSampler,
    bytes_of,
    largest_free_block,
    nvml_uuid,
    read_device,
)
from kvmon.probe import StreamProbe

MIB = 1 << 20
UUID = "GPU-5d9c5b4e-8c2b-4b8f-9d50-1b1f2a3c4d5e"
CUDA = torch.device("cuda", 0)


def segment(device: int, *blocks: tuple[int, str], pool: tuple[int, int] | None = (0, 0)) -> dict[str, Any]:
    """A segment as torch 2.13 describes it; older ones have no pool."""
    described = {
        "device": device,
        "address": 0x7F0000000000,
        "total_size": sum(size for size, _ in blocks),
        "stream": 0,
        "segment_type": "large",
        "is_expandable": False,
        "blocks": [{"size": size, "requested_size": size, "state": state, "frames": []} for size, state in blocks],
    }
    return described if pool is None else {**described, "segment_pool_id": pool}


SNAPSHOT = [
    segment(0, (20 * MIB, "active_allocated"), (12 * MIB, "inactive"), (8 * MIB, "active_pending_free")),
    segment(0, (18 * MIB, "inactive"), pool=None),
    segment(0, (512 * MIB, "inactive"), pool=(0, 3)),  # of a graph
    segment(1, (64 * MIB, "inactive")),
]
STATS = {
    "reserved_bytes.all.current": 70_000 * MIB,
    "reserved_bytes.all.peak": 71_000 * MIB,
    "allocated_bytes.all.current": 69_600 * MIB,
    "inactive_split_bytes.all.current": 300 * MIB,
    "num_alloc_retries": 4,
    "num_ooms": 1,
}


def test_the_largest_free_block_is_one_that_a_request_could_have() -> None:
    """Of this device, free, and not of a pool that belongs to a graph."""
    assert largest_free_block(SNAPSHOT, 0) == 18 * MIB
    assert largest_free_block(SNAPSHOT, 1) == 64 * MIB
    assert largest_free_block(SNAPSHOT, 2) == 0


def test_numbers_are_those_that_torch_and_the_driver_say() -> None:
    """Free and total come from the driver, the others from torch; before torch used the device it has nothing."""
    seen = DeviceMemory.of(UUID, (330 * MIB, 81_000 * MIB), STATS, 18 * MIB)
    assert (seen.free, seen.total) == (330 * MIB, 81_000 * MIB)
    assert seen.reserved - seen.allocated == 400 * MIB and seen.inactive_split == 300 * MIB
    assert (seen.retries, seen.ooms) == (4, 1)
    assert DeviceMemory.of(UUID, (1, 2), {}, None).reserved == 0


def test_a_device_has_the_name_that_nvml_gives_it() -> None:
    """Torch leaves the kind of device out of its UUID."""
    assert nvml_uuid(UUID.removeprefix("GPU-"), "NVIDIA H100 80GB HBM3") == UUID
    assert nvml_uuid("5d9c", "NVIDIA A100-SXM4-40GB MIG 1g.5gb") == "MIG-5d9c"
    assert nvml_uuid(UUID, "NVIDIA H100 80GB HBM3") == UUID


def test_tensors_that_share_memory_count_once() -> None:
    """Tied weights and views are one storage; tensors elsewhere do not count."""
    weights = torch.zeros(100, dtype=torch.float32)
    held = [weights, weights[:50], torch.zeros(10, dtype=torch.int8)]
    assert bytes_of(held, torch.device("cpu")) == 410
    assert bytes_of(held, CUDA) == 0


class Device:
    """A device that says what it is told, a clock, and every sample that was emitted."""

    def __init__(self) -> None:
        self.now = 100.0
        self.looks: list[bool] = []
        self.broken = False
        self.samples: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def read(self, device: int, *, look: bool) -> DeviceMemory:
        """The recorded numbers."""
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        self.looks.append(look)
        largest = largest_free_block(SNAPSHOT, device) if look else None
        return DeviceMemory.of(UUID, (330 * MIB, 81_000 * MIB), STATS, largest)

    def emit(self, *numbers: int, **more: Any) -> None:
        """Keep a sample."""
        self.samples.append((numbers, more))

    def sampler(self, device: torch.device = CUDA, **options: Any) -> DeviceSampler:
        """One that looks at this device."""
        return DeviceSampler(self.emit, device, clock=lambda: self.now, read=self.read, **options)


def test_a_sampler_is_quiet_until_it_is_time() -> None:
    """A sample a second and a look at the snapshot every thirty, whatever the number of steps; the last look stands."""
    device = Device()
    sampler = device.sampler(kv_pool=40_000 * MIB, weights=16_000 * MIB)
    for _ in range(3_500):
        sampler.sample()
        device.now += 1 / 64
    assert len(device.samples) == 55
    assert device.looks == [True, *[False] * 29, True, *[False] * 24]
    numbers, more = device.samples[-1]
    assert numbers == (0, 80_670 * MIB, 330 * MIB, 81_000 * MIB, 70_000 * MIB, 69_600 * MIB, 300 * MIB)
    assert more["largest_free"] == 18 * MIB and more["uuid"] == UUID
    assert (more["kv_pool"], more["weights"]) == (40_000 * MIB, 16_000 * MIB)


def test_an_error_is_sampled_at_once_and_looked_at_closely() -> None:
    """`sample_now` does not wait for its time, and the next sample is a second behind it."""
    device = Device()
    sampler = device.sampler()
    sampler.sample()
    device.now += 0.5
    sampler.sample_now()
    device.now += 0.75
    sampler.sample()
    assert device.looks == [True, True]
    device.now += 0.25
    sampler.sample()
    assert device.looks == [True, True, False]


def test_a_device_without_cuda_is_never_asked() -> None:
    """On a CPU there is nothing to sample."""
    device = Device()
    sampler = device.sampler(torch.device("cpu"))
    sampler.sample()
    sampler.sample_now()
    assert device.samples == device.looks == []


def test_a_broken_device_ends_the_sampling_and_nothing_else() -> None:
    """An engine whose CUDA context is gone is not made to fail by being watched."""
    device = Device()
    sampler = device.sampler()
    sampler.sample()
    device.broken = True
    device.now += 5
    sampler.sample()
    sampler.sample_now()
    device.broken = False
    sampler.sample_now()
    assert len(device.samples) == 1


def test_the_probe_takes_what_a_sampler_emits(tmp_path: Path) -> None:
    """The call of the probe has the form that the sampler wants, and nothing is lost."""
    probe = StreamProbe(tmp_path, "toy")
    device = Device()
    DeviceSampler(probe.device_sample, CUDA, clock=lambda: device.now, read=device.read).sample()
    probe.tick()
    assert probe.lost == 0
    probe.close()


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """A CUDA device with a clean allocator."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: run on a machine with one")
    torch.cuda.empty_cache()
    yield CUDA
    torch.cuda.empty_cache()


@pytest.mark.gpu
def test_a_real_device_adds_up(gpu: torch.device) -> None:
    """Allocated is within reserved, reserved within what the driver says is used, and a freed block is found."""
    held = [torch.empty(64 * MIB, dtype=torch.uint8, device=gpu) for _ in range(4)]
    held[1] = held[3]  # a block of 64 MiB goes back to torch, which keeps it
    seen = read_device(0, look=True)
    assert seen.uuid.startswith(("GPU-", "MIG-")) and len(seen.uuid) == 40
    assert bytes_of(held, gpu) <= seen.allocated <= seen.reserved <= seen.total - seen.free
    assert seen.largest_free is not None and 64 * MIB <= seen.largest_free <= seen.reserved - seen.allocated

"""Device memory as torch counts it in this process: what its allocator holds, and the largest free block in that.

Torch's numbers exist nowhere but in the engine's process, so a sampler here writes them into the engine's recording,
together with what the driver says of the whole device. Reading is apart from parsing, so that recorded numbers can be
parsed without a GPU. Invariant: sampling never makes an engine fail; where torch refuses, it ends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

__all__ = [
    "DeviceMemory",
    "DeviceSampler",
    "EmitSample",
    "asked_bytes",
    "bytes_of",
    "largest_free_block",
    "nvml_uuid",
    "read_device",
]

_DEFAULT_POOL = (0, 0)


class EmitSample(Protocol):
    """Where samples go: `StreamProbe.device_sample` has this form."""

    def __call__(
        self,
        device: int,
        used: int,
        free: int,
        total: int,
        reserved: int = 0,
        allocated: int = 0,
        inactive: int = 0,
        *,
        largest_free: int | None = None,
        kv_pool: int | None = None,
        weights: int | None = None,
        retries: int | None = None,
        ooms: int | None = None,
        uuid: str = "",
    ) -> None:
        """One sample, in bytes."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """One device in bytes.

    uuid            its name in every process, as NVML spells it
    total, free     by the driver (cudaMemGetInfo), all processes together
    reserved, allocated, inactive_split     of torch's allocator in this process: held of the device, given out, free in
                    pieces beside what is given out
    largest_free    the largest free block in `reserved`; None where nobody looked
    retries, ooms   times since the process began that it emptied its cache to try again, and gave up
    """

    uuid: str
    total: int
    free: int
    reserved: int
    allocated: int
    inactive_split: int
    largest_free: int | None
    retries: int
    ooms: int

    @classmethod
    def of(cls, uuid: str, driver: tuple[int, int], stats: Mapping[str, int], largest_free: int | None) -> DeviceMemory:
        """From what `torch.cuda.mem_get_info` (free, total) and `torch.cuda.memory_stats` return; the latter is empty
        before torch first used the device.
        """
        return cls(
            uuid=uuid,
            total=driver[1],
            free=driver[0],
            reserved=stats.get("reserved_bytes.all.current", 0),
            allocated=stats.get("allocated_bytes.all.current", 0),
            inactive_split=stats.get("inactive_split_bytes.all.current", 0),
            largest_free=largest_free,
            retries=stats.get("num_alloc_retries", 0),
            ooms=stats.get("num_ooms", 0),
        )


def largest_free_block(snapshot: Sequence[Mapping[str, Any]], device: int) -> int:
    """The largest block that torch could give out on `device` without asking the driver, from
    `torch.cuda.memory_snapshot`.

    Blocks of private pools (CUDA graphs) do not count: an ordinary request cannot have them.
    """
    return max(
        (
            int(block["size"])
            for segment in snapshot
            if segment["device"] == device and tuple(segment.get("segment_pool_id", _DEFAULT_POOL)) == _DEFAULT_POOL
            for block in segment["blocks"]
            if block["state"] == "inactive"
        ),
        default=0,
    )


def nvml_uuid(uuid: str, name: str) -> str:
    """A device's UUID as NVML spells it, from torch's bare one and the name of the device."""
    if uuid.startswith(("GPU-", "MIG-")):
        return uuid
    return f"{'MIG' if ' MIG ' in f'{name} ' else 'GPU'}-{uuid}"


def bytes_of(tensors: Iterable[torch.Tensor], device: torch.device) -> int:
    """Memory behind tensors on one device, such as a model's parameters and buffers; what several share counts once."""
    sizes = {}
    for tensor in tensors:
        if tensor.device == device:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def read_device(device: int, *, look: bool) -> DeviceMemory:
    """CUDA device `device` of this process now; `look` also for its largest free block, which takes milliseconds.

    Raises RuntimeError where CUDA does not answer.
    """
    properties = torch.cuda.get_device_properties(device)
    take_snapshot: Callable[[], Sequence[Mapping[str, Any]]] = torch.cuda.memory_snapshot
    largest = largest_free_block(take_snapshot(), device) if look else None
    driver = torch.cuda.mem_get_info(device)
    uuid = nvml_uuid(str(properties.uuid), properties.name)
    return DeviceMemory.of(uuid, driver, torch.cuda.memory_stats(device), largest)


def asked_bytes(error: BaseException) -> int:
    """The bytes that torch could not allocate, as its error says; 0 where it does not say."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)", str(error))
    if found is None:
        return 0
    return int(float(found[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB").index(found[2]))


class DeviceSampler:
    """Emits a sample of `device` at most every `every` seconds, however often it is called.

    `kv_pool` and `weights` are bytes that this process holds there. The largest free block is looked for every
    `look_every` seconds and said again in between. A device that is no CUDA device is never sampled.
    """

    def __init__(
        self,
        emit: EmitSample,
        device: torch.device,
        *,
        kv_pool: int | None = None,
        weights: int | None = None,
        every: float = 1.0,
        look_every: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[..., DeviceMemory] = read_device,
    ) -> None:
        self.kv_pool = kv_pool
        self.weights = weights
        self._emit = emit
        self._cuda = device.type == "cuda"
        self._index = torch.cuda.current_device() if self._cuda and device.index is None else device.index or 0
        self._every, self._look_every = every, look_every
        self._clock = clock
        self._read = read
        self._next = self._next_look = float("-inf")
        self._largest: int | None = None
        self.seen: DeviceMemory | None = None
        """The last sample; None before the first."""

    def sample(self) -> None:
        """Emit a sample if it is time for one; cheap enough for every step."""
        if self._cuda and self._clock() >= self._next:
            self._take(look=self._clock() >= self._next_look)

    def sample_now(self) -> None:
        """Emit a sample with a fresh look at the largest free block, whatever the time: call it when an allocation
        failed, before the error is recorded.
        """
        if self._cuda:
            self._take(look=True)

    def _take(self, look: bool) -> None:
        now = self._clock()
        self._next = now + self._every
        try:
            seen = self._read(self._index, look=look)
        except RuntimeError:  # CUDA is broken: the engine will say so itself, and is not to fail for being watched
            self._cuda = False
            return
        self.seen = seen
        if look:
            self._largest, self._next_look = seen.largest_free, now + self._look_every
        self._emit(
            self._index,
            seen.total - seen.free,
            seen.free,
            seen.total,
            seen.reserved,
            seen.allocated,
            seen.inactive_split,
            largest_free=self._largest,
            kv_pool=self.kv_pool,
            weights=self.weights,
            retries=seen.retries,
            ooms=seen.ooms,
            uuid=seen.uuid,
        )

"""The GPUs of this machine as their driver counts them (NVML); parts of a partitioned one (MIG) are devices too.

A device is named by its UUID, because process and index numbers differ between containers. Invariant: no driver, a
lost device or a missing permission is no failure; what cannot be asked is None or left out, and a driver that was not
there is asked for again every ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

__all__ = ["Driver", "Gpu"]

_RETRY_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """Memory of one device in bytes, all processes together.

    reserved        the driver's own part; None where an old driver counts it as used
    processes       compute processes that the driver shows: none in many containers; None where it will not say
    process_memory  what they hold together; None unless it is known of each
    """

    uuid: str
    used: int
    free: int
    reserved: int | None
    processes: int | None
    process_memory: int | None


class Driver:
    """NVML, once there is one; `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nvml: Any = None
        self._asked: float | None = None

    def gpus(self) -> list[Gpu]:
        """Every device that answers."""
        nvml = self._connect()
        found = []
        for handle in self._handles(nvml) if nvml else ():
            try:
                found.append(_look(nvml, handle))
            except nvml.NVMLError:
                continue  # lost, no permission, or a GPU whose parts are the devices: this one alone is absent
        return found

    def _connect(self) -> Any:
        now = self._clock()
        if self._nvml is None and (self._asked is None or now - self._asked >= _RETRY_SECONDS):
            self._asked = now
            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return None
            self._nvml = pynvml
        return self._nvml

    def _handles(self, nvml: Any) -> Iterator[Any]:
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError:
            self._nvml = None  # the driver went away: begin again later
            return
        for index in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
            except nvml.NVMLError:
                continue
            yield handle
            yield from _partitions(nvml, handle)


def _partitions(nvml: Any, handle: Any) -> Iterator[Any]:
    """The parts of a partitioned GPU; none of one that is whole."""
    try:
        most = int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    except nvml.NVMLError:
        return
    for index in range(most):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:
            continue  # a place without a part in it


def _look(nvml: Any, handle: Any) -> Gpu:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    processes, process_memory = _processes(nvml, handle)
    return Gpu(
        uuid=uuid if isinstance(uuid, str) else uuid.decode(),
        **_memory(nvml, handle),
        processes=processes,
        process_memory=process_memory,
    )


def _memory(nvml: Any, handle: Any) -> dict[str, Any]:
    """Bytes by state; drivers without the second version of the call count their own part as used."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return {"used": info.used, "reserved": info.reserved, "free": info.free}
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"used": info.used, "reserved": None, "free": info.free}


def _processes(nvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """How many processes compute on the device, and their memory."""
    try:
        shown = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except nvml.NVMLError:
        return None, None
    memory = [process.usedGpuMemory for process in shown]
    return len(shown), sum(memory) if memory and None not in memory else None

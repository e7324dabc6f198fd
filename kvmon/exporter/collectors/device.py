"""The GPUs as their driver counts them (NVML): memory used, reserved by the driver, free.

Absent without a GPU or its driver, which is no failure; one that is lost or will not say is left out. A device is
named by its UUID, because process and index numbers differ between containers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import View

__all__ = ["DeviceCollector"]

_RETRY_SECONDS = 600.0


class DeviceCollector:
    """Memory of every GPU of the machine; asks for a driver again every ten minutes where there was none."""

    name = "device"

    def __init__(self, source: Callable[[], View], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nvml: Any = None
        self._asked: float | None = None

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        memory = CatalogFamily("kvmon_gpu_memory_bytes")
        nvml = self._driver()
        for index in range(self._devices(nvml) if nvml else 0):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid, info = nvml.nvmlDeviceGetUUID(handle), _memory(nvml, handle)
            except nvml.NVMLError:
                continue  # lost, or no permission: this device alone is absent
            for state, count in info.items():
                memory.add((uuid if isinstance(uuid, str) else uuid.decode(), state), count)
        yield memory

    def _driver(self) -> Any:
        """The NVML bindings, initialised; None where there is no driver."""
        now = self._clock()
        if self._nvml is None and (self._asked is None or now - self._asked >= _RETRY_SECONDS):
            self._asked = now
            import pynvml

            try:
                pynvml.nvmlInit()
            except pynvml.NVMLError:
                return None
            self._nvml = pynvml
        return self._nvml

    def _devices(self, nvml: Any) -> int:
        try:
            return int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError:
            self._nvml = None  # the driver went away: begin again later
            return 0


def _memory(nvml: Any, handle: Any) -> dict[str, int | None]:
    """Bytes by state; drivers without the second version of the call count their own part as used."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        return {"used": info.used, "reserved": info.reserved, "free": info.free}
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"used": info.used, "reserved": None, "free": info.free}

"""The GPUs: memory as the driver counts it, as the engines' frameworks do, and what the used part is for.

A device that an engine named by its UUID is divided (`state.device` has the parts and their definition); the driver's
number and the engines' are read apart in time, so a part may be negative for a moment, and is served as it is. Absent
without a GPU or its driver, which is no failure; dead engines have no numbers here either.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from kvmon.exporter.families import Budget, CatalogFamily
from kvmon.exporter.nvml import Driver, Gpu
from kvmon.exporter.source import Need, RankView, View
from kvmon.state.device import DeviceSample, overclaimed, parts_of

__all__ = ["DeviceCollector"]

_OF_ENGINE = ("torch_memory_bytes", "torch_largest_free_block_bytes", "torch_allocation_retries_total")
_OF_GPU = (
    "gpu_memory_bytes",
    "gpu_used_bytes",
    "gpu_overclaimed_bytes",
    "gpu_processes",
    "gpu_process_memory_bytes",
)


class DeviceCollector:
    """Memory of every GPU of the machine, and of every engine on its own."""

    name = "device"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __init__(self, source: Callable[[], View], clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._driver = Driver(clock)

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of this topic."""
        families = {name: CatalogFamily(f"kvmon_{name}") for name in (*_OF_GPU, *_OF_ENGINE)}
        samples: dict[str, list[DeviceSample]] = {}
        for rank in self._source().shown:
            for sample in rank.follower.state.fresh_device_samples():
                samples.setdefault(sample.name.lower(), []).append(sample)
                _of_engine(families, rank, sample)
        budget = self._source().machine
        for gpu in self._driver.gpus():
            _of_gpu(families, gpu, samples.get(gpu.uuid.lower(), []), budget)
        yield from families.values()


def _of_engine(families: dict[str, CatalogFamily], rank: RankView, sample: DeviceSample) -> None:
    labels, budget = (*rank.labels, sample.name), rank.budget
    if sample.slack is not None and sample.inactive is not None:
        states = (
            ("allocated", sample.allocated),
            ("inactive_split", sample.inactive),
            ("cached", sample.slack - sample.inactive),
        )
        for state, count in states:
            families["torch_memory_bytes"].add((*labels, state), count, budget)
    families["torch_largest_free_block_bytes"].add(labels, sample.largest_free, budget)
    families["torch_allocation_retries_total"].add(labels, sample.retries, budget)


def _of_gpu(families: dict[str, CatalogFamily], gpu: Gpu, samples: list[DeviceSample], budget: Budget) -> None:
    for state, count in (("used", gpu.used), ("reserved", gpu.reserved), ("free", gpu.free)):
        families["gpu_memory_bytes"].add((gpu.uuid, state), count, budget)
    families["gpu_processes"].add((gpu.uuid,), gpu.processes or None, budget)
    families["gpu_process_memory_bytes"].add((gpu.uuid,), gpu.process_memory, budget)
    parts = parts_of(gpu.used, samples)
    for part, count in parts.items():
        families["gpu_used_bytes"].add((gpu.uuid, part), count, budget)
    families["gpu_overclaimed_bytes"].add((gpu.uuid,), overclaimed(parts) if parts else None, budget)

"""Which collectors there are, in the order in which they may use up a rank's budget of series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kvmon.exporter.collectors.allocator import AllocatorCollector
from kvmon.exporter.collectors.device import DeviceCollector
from kvmon.exporter.collectors.diagnosis import DiagnosisCollector
from kvmon.exporter.collectors.engine import EngineCollector
from kvmon.exporter.collectors.fragmentation import FragmentationCollector
from kvmon.exporter.collectors.memory import MemoryCollector
from kvmon.exporter.collectors.requests import RequestsCollector
from kvmon.exporter.collectors.trust import TrustCollector
from kvmon.exporter.families import CatalogFamily
from kvmon.exporter.source import View

__all__ = ["COLLECTORS", "Collector", "Source"]

Source = Callable[[], View]
"""The ranks as they are in the scrape that is being answered."""


class Collector(Protocol):
    """Builds fresh families of one topic at each scrape, from the source that its constructor got."""

    name: str

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of the topic; each name is in the catalogue and in no other collector."""


# What on-call needs first comes first.
COLLECTORS: tuple[Callable[[Source], Collector], ...] = (
    EngineCollector,
    DiagnosisCollector,
    MemoryCollector,
    FragmentationCollector,
    RequestsCollector,
    TrustCollector,
    AllocatorCollector,
    DeviceCollector,
)

"""Which collectors there are, in the order in which they may use up a budget of series."""

from __future__ import annotations

import inspect
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
from kvmon.exporter.source import Need, View

__all__ = ["COLLECTORS", "Collector", "CollectorClass", "Source", "about"]

Source = Callable[[], View]
"""The ranks as they are in the scrape that is being answered."""


class Collector(Protocol):
    """Builds fresh families of one topic at each scrape, from the source that its constructor got."""

    name: str

    def collect(self) -> Iterator[CatalogFamily]:
        """The families of the topic; each name is in the catalogue and in no other collector."""


class CollectorClass(Protocol):
    """What makes a collector; `name` is how users call it, `needs` what the sidecar has to keep at hand for it."""

    name: str
    needs: tuple[Need, ...]

    def __call__(self, source: Source, /) -> Collector:
        """The collector that looks at `source`."""


# What on-call needs first comes first.
COLLECTORS: tuple[CollectorClass, ...] = (
    EngineCollector,
    DiagnosisCollector,
    MemoryCollector,
    FragmentationCollector,
    RequestsCollector,
    TrustCollector,
    AllocatorCollector,
    DeviceCollector,
)


def about(collector: CollectorClass) -> str:
    """What a collector tells, in one sentence: the first of its module."""
    module = inspect.getmodule(collector)
    documentation = inspect.getdoc(module) if module else None
    return " ".join((documentation or "").partition("\n\n")[0].split())

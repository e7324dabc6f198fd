"""The collectors, one topic of the catalogue a file; a new one is registered by one line in `registry.py`."""

from __future__ import annotations

from kvmon.exporter.collectors.registry import COLLECTORS, Collector, CollectorClass, Source, about

__all__ = ["COLLECTORS", "Collector", "CollectorClass", "Source", "about"]

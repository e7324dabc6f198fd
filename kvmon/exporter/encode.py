"""Encode families as Prometheus' text format or OpenMetrics 1.0.0: what prometheus_client writes, in less time.

What a scrape repeats is remembered: the head of a family, and the part of a line up to the value, by name and labels.
Supports what the catalogue's families hold: no timestamps, no exemplars, no native histograms, ASCII names. A test
compares whole pages with the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from prometheus_client import utils

from kvmon.catalog import Metric
from kvmon.exporter.families import Row

__all__ = ["Encodable", "Encoder"]

_number: Callable[[float], str] = utils.floatToGoString
_MOST_PREFIXES = 100_000


class Encodable(Protocol):
    """A family: what it is, and its samples."""

    @property
    def entry(self) -> Metric:
        """What the catalogue says of it."""

    @property
    def rows(self) -> Sequence[Row]:
        """Its samples."""


class Encoder:
    """Encodes one page after the other; keep one for as long as pages are served."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, tuple[str, ...]], str] = {}

    def text(self, families: Iterable[Encodable]) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for family in families:
            entry = family.entry
            kind = "gauge" if entry.kind == "info" else entry.kind
            lines.append(f"# HELP {entry.name} {_help(entry)}\n# TYPE {entry.name} {kind}\n")
            self._samples(family, lines)
        return "".join(lines).encode()

    def openmetrics(self, families: Iterable[Encodable]) -> bytes:
        """OpenMetrics 1.0.0."""
        lines: list[str] = []
        for family in families:
            entry = family.entry
            documentation = _help(entry).replace('"', r"\"")
            lines.append(f"# HELP {entry.family} {documentation}\n# TYPE {entry.family} {entry.kind}\n")
            self._samples(family, lines)
        lines.append("# EOF\n")
        return "".join(lines).encode()

    def _samples(self, family: Encodable, lines: list[str]) -> None:
        prefixes, labels = self._prefixes, family.entry.labels
        for name, values, number in family.rows:
            prefix = prefixes.get((name, values))
            if prefix is None:
                if len(prefixes) > _MOST_PREFIXES:
                    prefixes.clear()
                prefix = prefixes[name, values] = _prefix(name, labels, values)
            lines.append(f"{prefix}{_number(number)}\n")


def _prefix(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not values:
        return f"{name} "
    # a bucket has one more value than its family has labels: its bound
    pairs = sorted(zip((*labels, "le"), values, strict=False))
    inner = ",".join(f'{label}="{_escape(value)}"' for label, value in pairs)
    return f"{name}{{{inner}}} "


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _help(entry: Metric) -> str:
    return entry.help.replace("\\", r"\\").replace("\n", r"\n")

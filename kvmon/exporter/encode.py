"""Encode families as Prometheus' text format or OpenMetrics 1.0.0: what prometheus_client writes, in less time.

What a scrape repeats is remembered: the part of a line up to the value, by name and labels. Supports what the
catalogue's families hold: no timestamps, no exemplars, no native histograms, ASCII names. A test compares whole pages
with the library's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import utils
from prometheus_client.metrics_core import Metric as Family

__all__ = ["Encoder"]

_number: Callable[[float], str] = utils.floatToGoString
_SUFFIX = {"counter": "_total", "info": "_info"}
_MOST_PREFIXES = 100_000


class Encoder:
    """Encodes one page after the other; keep one for as long as pages are served."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, ...], str] = {}

    def text(self, families: Iterable[Family]) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for family in families:
            name = family.name + _SUFFIX.get(family.type, "")
            kind = "gauge" if family.type == "info" else family.type
            lines.append(f"# HELP {name} {_help(family)}\n# TYPE {name} {kind}\n")
            self._samples(family, lines)
        return "".join(lines).encode()

    def openmetrics(self, families: Iterable[Family]) -> bytes:
        """OpenMetrics 1.0.0."""
        lines: list[str] = []
        for family in families:
            documentation = _help(family).replace('"', r"\"")
            lines.append(f"# HELP {family.name} {documentation}\n# TYPE {family.name} {family.type}\n")
            self._samples(family, lines)
        lines.append("# EOF\n")
        return "".join(lines).encode()

    def _samples(self, family: Family, lines: list[str]) -> None:
        prefixes = self._prefixes
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            prefix = prefixes.get(key)
            if prefix is None:
                if len(prefixes) > _MOST_PREFIXES:
                    prefixes.clear()
                prefix = prefixes[key] = _prefix(sample.name, sample.labels)
            lines.append(prefix + _number(sample.value) + "\n")


def _prefix(name: str, labels: dict[str, str]) -> str:
    if not labels:
        return f"{name} "
    pairs = ",".join(f'{label}="{_escape(value)}"' for label, value in sorted(labels.items()))
    return f"{name}{{{pairs}}} "


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _help(family: Family) -> str:
    return family.documentation.replace("\\", r"\\").replace("\n", r"\n")

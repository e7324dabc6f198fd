"""Formatting of bytes, counts, durations and ratios for people, and parsing of sizes that people type.

One place, so that a number reads the same in the terminal, in a report and in an error message. It measures nothing.
"""

from __future__ import annotations

import re

from kvmon.errors import ConfigError

__all__ = ["counted", "format_bytes", "format_clock", "format_count", "format_duration", "format_ratio", "parse_size"]

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DIGITS = 15
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes from `256M`, `1.5 GiB`, `40GB` or `4096`: KB to TB are powers of 1000, K to T and KiB to TiB of 1024.

    Raises ConfigError when `text` is no size.
    """
    match = _SIZE.match(text)
    if match is None or len(match.group(1)) > _DIGITS:
        raise ConfigError(f"'{text}' is no size: write a number with K, M, G or T, such as 256M or 1.5GiB")
    base = 1000 if (match.group(3) or "").lower() == "b" else 1024
    return round(float(match.group(1)) * float(base) ** _POWERS[match.group(2).lower()])


def format_bytes(count: float) -> str:
    """`1536` as `1.5 KiB`; below 1 KiB in whole bytes."""
    sign = "-" if count < 0 else ""
    size = abs(float(count))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{sign}{size:.0f} B" if unit == "B" else f"{sign}{size:.1f} {unit}"
        size /= 1024
    return f"{sign}{size:.1f} TiB"


def counted(count: int, name: str) -> str:
    """`1 unit`, `1,024 units`."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def format_count(count: int) -> str:
    """`65536` as `65,536`."""
    return f"{count:,}"


def format_duration(seconds: float) -> str:
    """`0.00042` as `0.42 ms`, `75` as `1 min 15 s`; the two largest units that matter."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def format_clock(seconds: float) -> str:
    """`83.4` as `1:23.4`, minutes and seconds, with hours in front where there are some."""
    tenths = round(abs(seconds) * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{'-' if seconds < 0 and (hours or minutes or tenths) else ''}{head}:{tenths // 10:02d}.{tenths % 10}"


def format_ratio(ratio: float) -> str:
    """`0.7512` as `75.1 %`."""
    return f"{ratio * 100:.1f} %"

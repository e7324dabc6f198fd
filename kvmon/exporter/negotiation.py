"""What a client accepts: the exposition format by `Accept`, compression by `Accept-Encoding` (RFC 9110, section 12.5).

Pure functions over header values; they never refuse, because an unreadable preference is no reason to withhold metrics.
"""

from __future__ import annotations

__all__ = ["OPENMETRICS", "TEXT", "accepts_gzip", "prefers_openmetrics"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
"""Content type of Prometheus' text format."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Content type of OpenMetrics 1.0.0."""


def prefers_openmetrics(accept: str) -> bool:
    """Whether the client names OpenMetrics 1.0.0 (or any version of it) and likes it as well as plain text.

    A wildcard alone is answered with plain text, so that a browser and `curl` show it.
    """
    wanted = 0.0
    text = 0.0
    for name, parameters, quality in _items(accept):
        if name == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0":
            wanted = max(wanted, quality)
        elif name == "text/plain" and parameters.get("version", "0.0.4") == "0.0.4":
            text = max(text, quality)
    return wanted > 0 and wanted >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether the client takes gzip; `gzip;q=0` and `*;q=0` say no."""
    qualities = {name: quality for name, _, quality in _items(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _items(header: str) -> list[tuple[str, dict[str, str], float]]:
    """Name, parameters and quality (0 to 1) of each item of a list header; an unreadable quality counts as 0."""
    items = []
    for part in header.split(","):
        name, *rest = (piece.strip() for piece in part.split(";"))
        pairs = (piece.partition("=") for piece in rest)
        parameters = {key.strip().lower(): value.strip().strip('"') for key, _, value in pairs}
        try:
            quality = min(1.0, max(0.0, float(parameters.pop("q", "1"))))
        except ValueError:
            quality = 0.0
        if name:
            items.append((name.lower(), parameters, quality))
    return items

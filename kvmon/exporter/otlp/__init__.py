"""The catalogue pushed over OTLP/HTTP, beside the scrapes or without them.

The only place that imports the OpenTelemetry SDK, which is an extra: import this when somebody asked for it.
"""

from __future__ import annotations

from kvmon.exporter.otlp.convert import metrics_data
from kvmon.exporter.otlp.push import Pusher, metrics_endpoint

__all__ = ["Pusher", "metrics_data", "metrics_endpoint"]

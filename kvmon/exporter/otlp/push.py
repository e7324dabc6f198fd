"""Push a snapshot of all metrics to an OTLP receiver now and then, in a thread of its own.

The SDK's exporter encodes and sends; it heeds the standard OTEL_EXPORTER_OTLP_* variables for headers, timeout,
compression and certificates. Invariant: a receiver that is down, slow or refuses costs nothing but its own data: one
snapshot is at hand at a time, none is kept for later, the followers are held only while it is taken, and the log says
once that it fails and once that it works again.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from kvmon import __version__
from kvmon.errors import ConfigError
from kvmon.exporter.otlp.convert import metrics_data
from kvmon.exporter.page import Snapshot

__all__ = ["Pusher", "metrics_endpoint"]

_LOG = logging.getLogger(__name__)
_SDK = logging.getLogger("opentelemetry")
_PATH = "/v1/metrics"
_STOP_SECONDS = 2.0
_LONGEST_REASON = 300


def metrics_endpoint(url: str) -> str:
    """The URL to push to: as given where it has a path, else with the standard one, `/v1/metrics`.

    Raises ConfigError for anything but http and https, and for credentials within.
    """
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or not url.isprintable() or " " in url:
        raise ConfigError(f"{url!r} is no OTLP endpoint: give one such as http://localhost:4318")
    if "@" in parts.netloc:
        raise ConfigError("credentials do not belong into the OTLP endpoint: set OTEL_EXPORTER_OTLP_HEADERS")
    return parts._replace(path=_PATH).geturl() if parts.path in ("", "/") else url


class Pusher:
    """Sends what `source` gives to `endpoint` each `interval` seconds, within its block.

    `wall` is the wall clock in ns. Raises ConfigError for an endpoint, or an OTEL_* variable, that cannot be.
    """

    def __init__(
        self,
        source: Callable[[], Snapshot],
        endpoint: str,
        interval: float,
        *,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self.endpoint = metrics_endpoint(endpoint)
        self._source = source
        self._interval = interval
        self._wall = wall
        self._began = wall()
        self._resource = _resource()
        try:
            self._exporter = OTLPMetricExporter(endpoint=self.endpoint)
        except Exception as error:  # the SDK reads its variables here, each in its own way
            raise ConfigError(f"the OTLP exporter cannot be set up, see the OTEL_* variables: {error}") from None
        self._fine: bool | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvmon-otlp", daemon=True)

    def __enter__(self) -> Pusher:
        """Begin to push, the first time after one interval."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Push once more if that worked the last time, and end; it takes no longer than a few seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)
        with _overheard():
            self._exporter.shutdown()

    def push(self) -> bool:
        """Send the metrics as of now; whether they arrived. What went wrong is told in the log, once."""
        fine, reason = self._send()
        if fine and not self._fine:
            _LOG.info("metrics are pushed", extra={"endpoint": self.endpoint})
        elif not fine and self._fine is not False:
            _LOG.warning(
                "metrics cannot be pushed, which goes on without another word until it works",
                extra={"endpoint": self.endpoint, "reason": reason},
            )
        self._fine = fine
        return fine

    def _send(self) -> tuple[bool, str]:
        with _overheard() as heard:
            try:
                snapshot = self._source()
                data = metrics_data(snapshot, self._resource, began_ns=self._began, now_ns=self._wall())
                fine = self._exporter.export(data) is MetricExportResult.SUCCESS
            except Exception as error:  # older SDKs let errors of the connection through
                return False, f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
            return fine, heard.first or "unknown"

    def _run(self) -> None:
        due = time.monotonic()
        while True:
            now = time.monotonic()
            due += self._interval * (
                1 + max(0.0, now - due) // self._interval
            )  # pushes that took too long are left out
            if self._stopping.wait(due - now):
                break
            self.push()
        if self._fine:
            self.push()


class _Overheard(logging.Handler):
    """Keeps the first thing that the SDK says: it logs why an export failed, and returns only that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first one."""
        self.first = self.first or record.getMessage()[:_LONGEST_REASON]


@contextmanager
def _overheard() -> Iterator[_Overheard]:
    handler, before = _Overheard(), _SDK.propagate
    _SDK.addHandler(handler)
    _SDK.propagate = False
    try:
        yield handler
    finally:
        _SDK.propagate = before
        _SDK.removeHandler(handler)


def _resource() -> Resource:
    """Who pushes: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, over what is so by itself."""
    host = socket.gethostname()
    own = {"service.name": "kvmon", "service.version": __version__, "service.instance.id": host, "host.name": host}
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})

"""A receiver of OTLP metrics over real HTTP that decodes what arrives and can be told to refuse.

`samples` says what a push holds in the words of Prometheus' text format, so that a test can compare it with a scrape.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric


class Receiver:
    """What arrived: decoded requests, and the headers and path of each; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 200
        self.port = 0
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def otlp_receiver(port: int = 0) -> Iterator[Receiver]:
    """A receiver in a thread, for the length of a block."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.headers.append({name.lower(): value for name, value in self.headers.items()})
            receiver.paths.append(self.path)
            if receiver.status == 200:
                receiver.requests.append(ExportMetricsServiceRequest.FromString(body))
            self.send_response(receiver.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            receiver.arrived.set()

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def metrics(request: ExportMetricsServiceRequest) -> list[Metric]:
    """Every metric of a push."""
    return [
        metric for resource in request.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]


def resource(request: ExportMetricsServiceRequest) -> dict[str, str]:
    """The attributes of its resource that are text."""
    return {pair.key: pair.value.string_value for pair in request.resource_metrics[0].resource.attributes}


def samples(request: ExportMetricsServiceRequest) -> dict[str, float]:
    """Series with their values, as a scrape in Prometheus' text format has them."""
    found: dict[str, float] = {}

    def add(name: str, attributes: dict[str, str], value: float) -> None:
        labels = ",".join(f'{key}="{text}"' for key, text in sorted(attributes.items()))
        series = f"{name}{{{labels}}}" if labels else name
        assert series not in found, series
        found[series] = value

    for metric in metrics(request):
        kind = metric.WhichOneof("data")
        for point in getattr(metric, str(kind)).data_points:
            attributes = {pair.key: pair.value.string_value for pair in point.attributes}
            if kind != "histogram":
                add(metric.name, attributes, point.as_double)
                continue
            total = 0
            bounds = [repr(float(bound)) for bound in point.explicit_bounds]
            for bound, count in zip([*bounds, "+Inf"], point.bucket_counts, strict=True):
                total += count
                add(f"{metric.name}_bucket", {**attributes, "le": bound}, total)
            add(f"{metric.name}_count", attributes, point.count)
            add(f"{metric.name}_sum", attributes, point.sum)
    return found

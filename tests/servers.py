"""Real servers for tests, each a process of its own that is gone at the end of its block."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import AlertmanagerBinary, PrometheusBinaries


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """Wait until it is so; kernels may have to be compiled."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if condition():
                return
        assert time.monotonic() < end, what
        time.sleep(0.1)


@contextlib.contextmanager
def exporter(directory: Path, port: int, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """An exporter that is killed, not stopped, at the end of the block; `options` of its own, `environment` besides."""
    command = [sys.executable, "-m", "kvmon", "exporter", "--dir", str(directory), *options]
    process = subprocess.Popen(
        [*command, "--web.listen-address", f"127.0.0.1:{port}"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    try:
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/-/ready") is not None, "the exporter is not ready")
        yield
    finally:
        process.kill()
        process.wait()


def fetch(address: str) -> bytes:
    """The body of an answer of 200. Raises OSError for any other."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        return bytes(answer.read())


class Prometheus:
    """A running Prometheus that scrapes one target five times a second."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[dict[str, object]]:
        """The result of an instant query."""
        address = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        result = json.loads(fetch(address))["data"]["result"]
        assert isinstance(result, list)
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Every loaded rule as the server tells it: its health, the state of an alert, its instances."""
        groups = json.loads(fetch(f"http://127.0.0.1:{self.port}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def value(self, expression: str) -> float | None:
        """The value of a query with one series; None while there is none."""
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else None

    def resets(self, name: str) -> float | None:
        """How often Prometheus saw a counter fall."""
        return self.value(f"sum(resets({name}[10m]))")


@contextlib.contextmanager
def prometheus(
    binaries: PrometheusBinaries,
    place: Path,
    target: int,
    *,
    rules: Sequence[Path] = (),
    alertmanager: int | None = None,
) -> Iterator[Prometheus]:
    """A Prometheus of its own; it evaluates `rules` as often as it scrapes, and tells the Alertmanager of that port."""
    config = place / "prometheus.yml"
    scrape = {
        "job_name": "kvmon",
        "scrape_interval": "200ms",
        "scrape_timeout": "200ms",
        "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
    }
    body: dict[str, Any] = {"scrape_configs": [scrape]}
    if rules:
        body |= {"global": {"evaluation_interval": "200ms"}, "rule_files": list(map(str, rules))}
    if alertmanager is not None:
        body["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]}
    config.write_text(json.dumps(body), encoding="ascii")
    port = free_port()
    options = [f"--config.file={config}", f"--storage.tsdb.path={place / 'data'}", "--log.level=error"]
    options.append(f"--web.listen-address=127.0.0.1:{port}")
    process = subprocess.Popen([binaries.prometheus, *options], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/-/ready") != b"", "Prometheus is not ready")
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()


class Alertmanager:
    """A running Alertmanager."""

    def __init__(self, port: int) -> None:
        self.port = port

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert that it has and that goes on."""
        found = json.loads(fetch(f"http://127.0.0.1:{self.port}/api/v2/alerts?active=true"))
        assert isinstance(found, list)
        return found


@contextlib.contextmanager
def alertmanager(binary: AlertmanagerBinary, place: Path) -> Iterator[Alertmanager]:
    """An Alertmanager of its own that notifies nobody."""
    config, port = place / "alertmanager.yml", free_port()
    config.write_text(
        json.dumps({"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]}), encoding="ascii"
    )
    options = [f"--config.file={config}", f"--storage.path={place / 'alertmanager'}", "--cluster.listen-address="]
    options += ["--log.level=error", f"--web.listen-address=127.0.0.1:{port}"]
    process = subprocess.Popen([binary.path, *options], cwd=binary.folder, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: fetch(f"http://127.0.0.1:{port}/-/ready") != b"", "Alertmanager is not ready")
        yield Alertmanager(port)
    finally:
        process.kill()
        process.wait()

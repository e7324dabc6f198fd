"""The rules in a real Prometheus that scrapes a real exporter of real engines and tells a real Alertmanager.

Each test has an engine of its own: one that works, one that is stopped, one that is killed. `for` durations are
thresholds too and are short here; every expression is the one that is shipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest

from kvmon.alerts import alerts_of, load_thresholds, recorded, rule_groups, runbooks, written
from tests.conftest import AlertmanagerBinary, PrometheusBinaries
from tests.servers import Alertmanager, Prometheus, alertmanager, exporter, fetch, free_port, prometheus, wait_for

pytestmark = [pytest.mark.prometheus, pytest.mark.slow]  # slow: five processes start, and alerts have to wait, 30 s

ROOT = Path(__file__).parents[2]
SCRAPE_S = 0.2
THRESHOLDS = """
verdict_window: 10s
verdict_step: 1s
fresh: 15s
rate_window: 10s
progress_window: 10s
engine_down_for: 2s
stalled_for: 2s
"""


class Stack(NamedTuple):
    """What runs: engines by name, the exporter's port, and the two servers."""

    engines: dict[str, subprocess.Popen[str]]
    exporter: int
    server: Prometheus
    manager: Alertmanager

    def selected(self, metric: str, engine: str) -> list[dict[str, Any]]:
        """The series of an engine now."""
        return self.server.query(f'{metric}{{engine="{engine}"}}')

    def state(self, alert: str, severity: str, engine: str) -> str:
        """inactive, pending or firing: how an alert about an engine is."""
        for rule in self.server.rules():
            if rule["name"] == alert and rule.get("labels", {}).get("severity") == severity:
                for found in rule["alerts"]:
                    if found["labels"]["engine"] == engine:
                        return str(found["state"])
        return "inactive"

    def received(self, alert: str, engine: str) -> dict[str, Any] | None:
        """The alert as Alertmanager has it."""
        for found in self.manager.alerts():
            if found["labels"]["alertname"] == alert and found["labels"].get("engine") == engine:
                return found
        return None


@pytest.fixture(scope="module")
def stack(
    prometheus_binaries: PrometheusBinaries,
    alertmanager_binary: AlertmanagerBinary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """Three engines, an exporter with a made-up GPU driver, Prometheus with every rule, Alertmanager."""
    place = tmp_path_factory.mktemp("alerts")
    recordings = place / "recordings"
    recordings.mkdir()
    (place / "thresholds.yml").write_text(THRESHOLDS, encoding="ascii")
    rules = []
    for name, text in written(rule_groups(load_thresholds(place / "thresholds.yml"))).items():
        rules.append(place / name)
        rules[-1].write_text(text, encoding="utf-8")
    with contextlib.ExitStack() as stopping:
        engines = {name: _engine(recordings, name, stopping) for name in ("works", "stops", "dies")}
        port = free_port()
        stopping.enter_context(exporter(recordings, port, "--stall-seconds", "1", environment=_driver(place)))
        manager = stopping.enter_context(alertmanager(alertmanager_binary, place))
        server = stopping.enter_context(
            prometheus(prometheus_binaries, place, port, rules=rules, alertmanager=manager.port)
        )
        stack = Stack(engines, port, server, manager)
        wait_for(lambda: server.value('rank:kvmon_kv_wait_seconds:slow_ratio{engine="works"}') is not None, "no waits")
        yield stack


def _engine(recordings: Path, name: str, stopping: contextlib.ExitStack) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.live_engine", recordings, name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    stopping.callback(process.wait)
    stopping.callback(process.kill)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    stopping.callback(process.stdout.close)
    return process


def _driver(place: Path) -> dict[str, str]:
    """The environment of an exporter that finds a GPU; without a compiler, of one that finds none."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    source = ROOT / "tests" / "unit" / "exporter" / "nvml_stub.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", place / "libnvidia-ml.so.1", source], check=True)
    return {"NVML_STUB": "full", "LD_LIBRARY_PATH": str(place)}


def test_every_rule_is_healthy(stack: Stack) -> None:
    """Prometheus evaluates each, finds no error in it, and says so."""
    expected = [rule for group in rule_groups(load_thresholds()) for rule in group.rules]
    wait_for(lambda: all(rule["health"] == "ok" for rule in stack.server.rules()), "a rule is not healthy", 20)
    assert len(stack.server.rules()) == len(expected)
    assert not [rule for rule in stack.server.rules() if rule.get("lastError")]


def test_what_is_recorded_has_its_labels(stack: Stack) -> None:
    """Each recorded series is there for the engine that works, with the labels that it is said to have."""
    for name, labels in recorded().items():
        wait_for(lambda name=name: bool(stack.selected(name, "works")), f"{name} has no data", 20)
        for series in stack.selected(name, "works"):
            metric = series["metric"]
            assert isinstance(metric, dict) and set(metric) - {"__name__"} == set(labels)


def test_what_an_alert_asks_for_is_there(stack: Stack) -> None:
    """No expression, and no number of a description, selects what does not exist: each metric in it has data."""
    asked = {name for alert in alerts_of(rule_groups(load_thresholds())) for name in _metrics(alert.expr)}
    gpu = {name for name in asked if name.startswith("kvmon_gpu")}
    if shutil.which("cc") is None:
        asked -= gpu
    assert len(asked) > 20 and gpu
    for name in sorted(asked):
        wait_for(lambda name=name: bool(stack.server.query(f"count({name})")), f"{name} has no data", 20)


def test_nothing_fires_for_an_engine_that_works(stack: Stack) -> None:
    """Whatever happens to the engines beside it."""
    assert stack.server.query('ALERTS{alertstate="firing",engine="works"}') == []
    assert stack.selected("kvmon_engine_up", "works") and stack.server.query("up == 0") == []


def test_an_engine_that_is_stopped_keeps_its_series(stack: Stack) -> None:
    """SIGSTOP: stalled fires, into Alertmanager; the numbers stay as they were; it ends when the engine goes on."""
    os.kill(stack.engines["stops"].pid, signal.SIGSTOP)
    try:
        wait_for(lambda: stack.received("KvmonEngineStalled", "stops") is not None, "no alert of a stalled engine", 30)
        said = (stack.received("KvmonEngineStalled", "stops") or {})["annotations"]["description"]
        assert re.search(r"has \d+ requests running and 0 waiting, and has recorded nothing for \d[\d.]*s\.", said)
        assert stack.selected("kvmon_memory_bytes", "stops") and stack.selected("kvmon_requests", "stops")
        assert stack.server.value('kvmon_engine_up{engine="stops"}') == 1
        assert stack.state("KvmonEngineDown", "critical", "stops") == "inactive"
    finally:
        os.kill(stack.engines["stops"].pid, signal.SIGCONT)
    wait_for(lambda: stack.state("KvmonEngineStalled", "critical", "stops") == "inactive", "the alert stays", 40)


def test_an_engine_that_is_killed(stack: Stack) -> None:
    """SIGKILL: its series end at once, and its alert goes from inactive through pending to firing into Alertmanager."""
    alert = ("KvmonEngineDown", "critical", "dies")
    assert stack.state(*alert) == "inactive"
    wait_for(lambda: bool(stack.selected("kvmon_requests", "dies")), "the engine is not seen", 20)
    stack.engines["dies"].kill()
    states = []
    end = time.monotonic() + 30
    while "firing" not in states and time.monotonic() < end:
        state = stack.state(*alert)
        states += [state] if state not in states[-1:] else []
        time.sleep(SCRAPE_S / 4)
    assert states == ["inactive", "pending", "firing"]

    assert {str(series["metric"]["__name__"]) for series in stack.server.query('{engine="dies",alertname=""}')} <= {
        "kvmon_engine_up",
        *recorded(),
    }
    last = max(_times(stack, 'kvmon_memory_capacity_bytes{engine="dies"}[2m]'))
    down = min(_times(stack, 'kvmon_engine_up{engine="dies"}[2m]', value="0"))
    assert 0 < down - last < 2 * SCRAPE_S + 0.1

    wait_for(lambda: stack.received("KvmonEngineDown", "dies") is not None, "Alertmanager has not heard of it", 30)
    received = stack.received("KvmonEngineDown", "dies")
    assert received is not None
    assert received["labels"]["severity"] == "critical" and received["labels"]["instance"].endswith(str(stack.exporter))
    assert "dies/0 is gone with requests in it" in received["annotations"]["summary"]
    page = fetch(received["annotations"]["runbook_url"]).decode()
    assert runbooks()["KvmonEngineDown"].splitlines()[0].removeprefix("# ")[:20] in page.replace("&#x27;", "'")


def _metrics(expression: str) -> set[str]:
    """Names of the series that an expression selects."""
    found: set[str] = set()
    todo: list[Any] = [promql_parser.parse(expression)]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector) and node.name:
            found.add(node.name)
        todo += [getattr(node, name) for name in ("lhs", "rhs", "expr", "vector_selector") if hasattr(node, name)]
        todo += getattr(node, "args", [])
    return found


def _times(stack: Stack, selector: str, value: str | None = None) -> list[float]:
    """When the samples in a range were scraped; of those with this value where one is given."""
    samples = [sample for series in stack.server.query(selector) for sample in series["values"]]  # type: ignore[attr-defined]
    return [float(when) for when, number in samples if value in (None, number)]

"""Every query of every dashboard against a real run: the demo's engines, a real exporter, a real Prometheus."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PrometheusBinaries
from tests.dashboards.asking import Json, PanelServer, dashboards, filled, numbers, panels, queries
from tests.servers import exporter, free_port, prometheus, wait_for
from tests.toy_engine import ToyEngine

pytestmark = pytest.mark.prometheus

GIB = 1 << 30
RATE_S = 3
ROOT = Path(__file__).parents[2]
PAGES = dashboards()

# Of all queries, the events that do not happen by themselves in a run: they are made to happen at the end of it.
EVENTS = {"annotation Prefix cache dropped", "annotation Torch out of memory", "annotation Engine down"}


class SampledEngine(ToyEngine):
    """A toy in which somebody always waits or is preempted, and that tells its own books and of its GPU."""

    retries = resets = 0

    def step(self) -> None:
        """Finish a request now and then, admit one, tell."""
        if len(self.free) < self.units // 4 or self.random.random() < 0.3:
            for request in list(self.tables)[:1]:
                self.probe.preempted(request, 16)
                self.finish(request)
        self.admit(self.random.randint(1, 24))
        active = sum(count > 0 for count in self.references)
        self.pool.claims(self.units - active, 0, active, 0)
        for _ in range(self.resets):
            self.pool.reset()
        self.resets = 0
        sizes = {"largest_free": GIB, "kv_pool": 30 * GIB, "weights": 12 * GIB, "retries": self.retries}
        self.probe.device_sample(0, 70 * GIB, 30 * GIB, 100 * GIB, 48 * GIB, 45 * GIB, 2 * GIB, uuid="GPU-1", **sizes)
        self.probe.step(self.clock(), 5_000_000, 16, len(self.tables), 100, len(self.tables), 1, 200)


class Run:
    """What is up while the test runs."""

    def __init__(self, server: PanelServer, toy: SampledEngine, demo: subprocess.Popen[bytes]) -> None:
        self.server, self.toy, self.demo = server, toy, demo
        self.began_s = time.time()

    def answers(self, panel: Json) -> dict[str, list[Json]]:
        """What a panel shows of the run."""
        return self.server.answers(panel, self.began_s, time.time(), 0.5, RATE_S)

    def over(self, expression: str) -> list[Json]:
        """What a query gives over the run."""
        return self.server.over(filled(expression, RATE_S), self.began_s, time.time(), 0.5)


@contextlib.contextmanager
def running(place: Path, binaries: PrometheusBinaries) -> Iterator[Run]:
    """The demo's two engines and a toy with a GPU, followed, scraped, and at work for ten seconds."""
    recordings, port = place / "recordings", free_port()
    with contextlib.ExitStack() as stack:
        demo = stack.enter_context(_demo(recordings, place))
        wait_for(lambda: recordings.is_dir(), "the demo makes no recordings")
        at_work = stack.enter_context(AtWork(recordings))
        _use_driver(place, stack)
        stack.enter_context(exporter(recordings, port))
        server = PanelServer(stack.enter_context(prometheus(binaries, place, port)).port)
        run = Run(server, at_work.toy, demo)
        wait_for(lambda: server.value("sum(kvmon_allocation_failures_total{engine!='toy'})") not in (None, 0.0), "calm")
        time.sleep(8)  # rates need scrapes on either side of what happened
        yield run


@contextlib.contextmanager
def _demo(recordings: Path, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--dir", str(recordings), "--no-exporter", "--plain", "--seconds", "600", "--speed", "4"]
    environment = {**os.environ, "TMPDIR": str(place)}
    process = subprocess.Popen(
        [sys.executable, "-m", "kvmon", "demo", *options], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class AtWork:
    """A toy that works in a thread, which is the only one that may touch it, until the block ends."""

    toy: SampledEngine

    def __init__(self, recordings: Path) -> None:
        self._recordings, self._done, self._ready = recordings, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> AtWork:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        self.toy = SampledEngine(self._recordings, "toy")
        self._ready.set()
        while not self._done.wait(0.02):
            self.toy.run(1)
        self.toy.close()


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text(encoding="ascii").split()]


def _use_driver(place: Path, stack: contextlib.ExitStack) -> None:
    """Give the exporter that starts next a GPU to look at: a driver that was made for tests."""
    compiler = shutil.which("cc")
    if compiler is None:
        message = "a C compiler is missing: run 'apt-get install gcc'"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    source = ROOT / "tests" / "unit" / "exporter" / "nvml_stub.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", place / "libnvidia-ml.so.1", source], check=True)
    patched = stack.enter_context(pytest.MonkeyPatch.context())
    patched.setenv("LD_LIBRARY_PATH", str(place))
    patched.setenv("NVML_STUB", "full")


@pytest.mark.slow  # three engines are started, compile, and are watched for a while
def test_every_query_of_every_dashboard_against_a_real_run(
    tmp_path: Path, prometheus_binaries: PrometheusBinaries
) -> None:
    """Everything that is asked is answered, with numbers that can be; events are marked; the dead are down."""
    with running(tmp_path, prometheus_binaries) as run:
        answered = {
            name: {panel["title"]: run.answers(panel) for panel in panels(page)} for name, page in PAGES.items()
        }
        assert nothing_is_empty(run, answered) == []
        assert nothing_is_impossible(answered) == []
        the_numbers_are_those_of_the_run(answered)
        events_are_marked_when_they_happen(run)
        the_dead_are_down_and_have_no_other_number(run)


Answered = dict[str, dict[str, dict[str, list[Json]]]]


def nothing_is_empty(run: Run, answered: Answered) -> list[str]:
    """Queries without a single finite number."""
    found = [
        f"{name}: {title} / {letter}"
        for name, panels_of_page in answered.items()
        for title, letters in panels_of_page.items()
        for letter, series in letters.items()
        if not any(math.isfinite(value) for row in series for value in numbers(row))
    ]
    asked = {f"{name}: {what}": (what, query) for name, page in PAGES.items() for what, query in queries(page)}
    for called, (what, query) in asked.items():
        if what.startswith(("annotation", "variable")) and what not in EVENTS and not run.over(query):
            found.append(called)
    return found


def nothing_is_impossible(answered: Answered) -> list[str]:
    """Numbers below the least, or above the most, that the panel says there can be."""
    found = []
    for name, page in PAGES.items():
        for panel in panels(page):
            least = panel.get("fieldConfig", {}).get("defaults", {}).get("min", -math.inf)
            most = panel.get("fieldConfig", {}).get("defaults", {}).get("max", math.inf)
            for letter, series in answered[name][panel["title"]].items():
                for value in (value for row in series for value in numbers(row)):
                    if not least <= value <= most:
                        found.append(f"{name}: {panel['title']} / {letter} is {value}")
    return found


def the_numbers_are_those_of_the_run(answered: Answered) -> None:
    """Sums that must hold, and a row for each engine."""
    pool, fleet, incident = (answered[f"kvmon-{name}"] for name in ("pool", "fleet", "incident"))
    states = pool["Where the memory is"]
    columns = [[value for row in states[letter] for value in numbers(row)] for letter in "ABCDEF"]
    assert all(sum(parts) == capacity for *parts, capacity in zip(*columns, strict=True))
    assert numbers(fleet["Engines up"]["A"][0])[-1] == 3
    assert len({row["metric"]["engine"] for row in fleet["Engines"]["State"]}) == 3
    assert {row["metric"]["engine"] for row in fleet["Engines"]["Verdict"]} == {
        row["metric"]["engine"] for row in fleet["Engines"]["State"]
    }
    parts = incident["What the GPU's memory is for"]
    assert sum(numbers(parts[letter][0])[-1] for letter in "ABCDE") == 60 * GIB
    assert numbers(parts["F"][0])[-1] == 2 * 100 * GIB
    least = min(numbers(pool["Largest free block"]["A"][0]))
    assert least < 1, "the toy's queue needs more than it has"


def events_are_marked_when_they_happen(run: Run) -> None:
    """A cache that is reset, and a torch that tries again."""
    marked = {what: query for page in PAGES.values() for what, query in queries(page)}
    run.toy.retries, run.toy.resets = 1, 1
    for what in ("annotation Prefix cache dropped", "annotation Torch out of memory"):
        wait_for(lambda what=what: run.over(marked[what]) != [], f"{what} was not marked", 20)


def the_dead_are_down_and_have_no_other_number(run: Run) -> None:
    """Killed engines keep their row, which says down, and lose every other cell."""
    for child in children(run.demo.pid):
        os.kill(child, signal.SIGKILL)
    marked = dict(queries(PAGES["kvmon-incident"]))["annotation Engine down"]
    wait_for(lambda: len(run.over(marked)) == 2, "the dead are not marked", 20)
    table = next(panel for panel in panels(PAGES["kvmon-fleet"]) if panel["title"] == "Engines")

    def cells() -> dict[str, dict[str, float]]:
        asked = run.answers(table)
        return {
            letter: {row["metric"]["engine"]: numbers(row)[0] for row in series} for letter, series in asked.items()
        }

    def are_down() -> bool:
        found = cells()
        others = {
            engine for letter in ("Verdict", "Failures", "Waiting", "Largest", "Used") for engine in found[letter]
        }
        return sorted(found["State"].values()) == [0, 0, 1] and others == {"toy"}

    wait_for(are_down, "the dead are not down, or have other numbers", 30)
    worst = cells()["Worst"]
    assert min(worst, key=lambda engine: worst[engine]) == "toy"

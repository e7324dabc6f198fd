"""The main job end to end: a production trace through two allocators, recorded, exported, scraped and verified."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kvmon.adapters.described import engine_config, pool_info
from kvmon.adapters.reference import ReferenceAdapter, ReferenceAudit
from kvmon.allocators import AllocatorConfig, ContiguousConfig, PagedConfig, page_pool
from kvmon.allocators.refusal import Reason
from kvmon.cli.main import run
from kvmon.probe import StreamProbe
from kvmon.serving import Workload
from kvmon.serving import state as at
from kvmon.serving.config import SchedulerConfig
from kvmon.serving.scheduler import Scheduler
from kvmon.serving.traces import read_trace
from tests.conftest import PrometheusBinaries
from tests.servers import Prometheus, exporter, free_port, prometheus, wait_for

REQUESTS = 250
TOKEN_BYTES = 131_072
ENGINES: dict[str, AllocatorConfig] = {
    "paged": PagedConfig(900, 16),
    "contiguous": ContiguousConfig(1200, 16, chunk_tokens=64),
}


class Engine:
    """A scheduler that serves a trace in simulated time and is recorded through the public adapter."""

    def __init__(self, directory: Path, name: str, allocator: AllocatorConfig, workload: Workload) -> None:
        config = SchedulerConfig()
        self.workload = workload
        self.scheduler = Scheduler(allocator, config, journal=True)
        self.probe = StreamProbe(directory, name, config=engine_config(allocator, config))
        base = time.monotonic_ns()
        self.adapter = ReferenceAdapter(
            self.probe, self.probe.attach_pool(pool_info(allocator, TOKEN_BYTES)), time_base_ns=base
        )
        self.probe.audit_from(ReferenceAudit(self.scheduler, base))
        self.now = self.arrived = 0

    def serve(self) -> None:
        """Serve every request to its end."""
        arrivals = self.workload.arrival_ns.tolist()
        while self.arrived < len(arrivals) or self.scheduler.has_work:
            if not self.scheduler.has_work:
                self.now = max(self.now, arrivals[self.arrived])
            while self.arrived < len(arrivals) and arrivals[self.arrived] <= self.now:
                self._add(self.arrived)
                self.arrived += 1
            self.scheduler.schedule()
            self.scheduler.commit(self.now, 40_000_000)
            self.now += 40_000_000
            self.adapter.emit(self.scheduler.drain())

    def _add(self, index: int) -> None:
        load = self.workload
        self.scheduler.add(
            int(load.prompt_tokens[index]),
            int(load.token_limit[index]),
            intended_output=int(load.output_tokens[index]),
            arrival_ns=int(load.arrival_ns[index]),
        )


@pytest.mark.prometheus
def test_a_production_trace_from_allocator_to_metric_and_proof(
    tmp_path: Path, traces: Path, prometheus_binaries: PrometheusBinaries, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a real Prometheus says is what the schedulers did; capture and recording verify clean."""
    workload = read_trace(traces / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv").first(REQUESTS)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    port = free_port()
    with exporter(recordings, port), prometheus(prometheus_binaries, tmp_path, port) as server:
        engines = {name: Engine(recordings, name, allocator, workload) for name, allocator in ENGINES.items()}
        for engine in engines.values():
            engine.serve()
        for name, engine in engines.items():
            compare(server, name, engine)
    for engine in engines.values():
        engine.probe.close()
        assert engine.probe.lost == 0
    kept = str(tmp_path / "kept.kvmon")
    assert run(["verify", str(recordings)]) == 0
    assert run(["capture", str(recordings), "-o", kept]) == 0
    assert run(["verify", kept]) == 0
    assert capsys.readouterr().out.count("exclusive and conserved at every one of") == 4


def compare(server: Prometheus, name: str, engine: Engine) -> None:
    """Prometheus' numbers of one engine against the scheduler's own."""
    tally, reasons = engine.scheduler.state.tally, engine.scheduler.failures.sum(axis=0)
    failures = {
        f'kvmon_allocation_failures_total{{reason="{reason.name.lower()}"}}': int(reasons[reason])
        for reason in (Reason.EXHAUSTED, Reason.NO_CONTIGUOUS_RUN)
    }
    expected = {
        "kvmon_steps_total": int(tally[at.STEPS]),
        "kvmon_requests_arrived_total": REQUESTS,
        "sum(kvmon_requests_finished_total)": REQUESTS,
        "kvmon_preemptions_total": int(tally[at.PREEMPTIONS]),
        "sum(kvmon_memory_bytes)": engine.scheduler.allocator.capacity_units * 16 * TOKEN_BYTES,
        'kvmon_memory_bytes{state="active"}': 0,
        "kvmon_unowned_units": 0,
        "kvmon_engine_up": 1,
        **failures,
    }
    if name == "paged":
        expected["kvmon_evicted_units_total"] = int(engine.scheduler.state.pages.tally[page_pool.EVICTIONS_DONE])
        assert failures['kvmon_allocation_failures_total{reason="no_contiguous_run"}'] == 0
    else:
        expected["kvmon_migrated_tokens_total"] = int(tally[at.COPIED_TOKENS])
        assert failures['kvmon_allocation_failures_total{reason="no_contiguous_run"}'] > 0
    for expression, value in expected.items():
        query = of_engine(expression, name)
        until_it_is(server, query, value)


def until_it_is(server: Prometheus, query: str, value: float) -> None:
    """Wait for a scrape after which the query gives the value."""
    wait_for(lambda: server.value(query) == value, f"{query} is {server.value(query)}, not {value}", 20)


def of_engine(expression: str, name: str) -> str:
    """The expression about one engine only."""
    if expression.startswith("sum("):
        return f"sum({of_engine(expression[4:-1], name)})"
    selector = f'engine="{name}"'
    return expression.replace("{", "{" + selector + ",") if "{" in expression else f"{expression}{{{selector}}}"


def test_a_simulated_run_is_a_capture_that_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out holds what the JSON says, byte for byte the same each time, and keeps every rule."""
    trace = tmp_path / "trace.csv"
    rows = [f"{i * 0.05:.2f},{100 + 137 * (i % 7)},{20 + i % 70}" for i in range(200)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    for allocator in (["paged"], ["first-fit", "--reserve", "chunk:32"]):
        outs = [tmp_path / f"{allocator[0]}-{number}.kvmon" for number in (1, 2)]
        for out in outs:
            options = ["--allocator", *allocator, "--capacity-tokens", "3000", "--out", str(out), "--json"]
            assert run(["simulate", str(trace), *options]) == 0
            result = json.loads(capsys.readouterr().out)
        assert outs[0].read_bytes() == outs[1].read_bytes()
        assert result["preemptions"] + sum(result["allocation_failures"].values()) > 0
        assert run(["verify", str(outs[0]), "--json"]) == 0
        verified = json.loads(capsys.readouterr().out)
        assert verified["streams"][0]["frames"] >= result["steps"]
        assert run(["simulate", str(trace), *options]) == 3
        assert "exists" in capsys.readouterr().err

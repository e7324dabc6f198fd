"""Public request traces through kvmon's simulator, recording off and on, beside NVIDIA Dynamo's mocker.

Both sides get the same file, the same blocks, 2,048 tokens a step, 256 sequences, prefix cache and chunked prefill on.
Steps take a fixed time: 20 ms; to Dynamo 20 ms where a step prefills and 20 ms more where it decodes, so it takes no
more steps than kvmon. What both complete and how much they hit stands in the rows, because a replay that does less
would be faster.

A replay is timed by its own side: Dynamo's `wall_time_ms`, kvmon's `wall_seconds`. Neither holds the start of the
process, an import, compilation or the reading of the trace. The second figure of a row holds the reading too: Dynamo's
whole call against kvmon's reader and replay.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.adapters.described import engine_config, pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.allocators.config import PagedConfig
from kvmon.serving import SchedulerConfig, StepTime, Workload
from kvmon.serving.traces import read_trace
from kvmon.simulate import Result, simulate
from tests.benchmarks.table import Row, best_of

ROOT = Path(__file__).parents[2]
TRACES = Path(os.environ.get("KVMON_TRACES", ROOT.parent / "shared" / "traces"))
PEER = ROOT / ".venv" / "peers" / "bin" / "python"
SCRIPT = Path(__file__).with_name("dynamo_replay.py")

STEP_MS = 20
IDENTITY_TOKENS = 512  # Mooncake's ids, and those that Azure's trace is given for Dynamo
ROUNDS = 6  # one side after the other in each: a shared machine is slow for seconds at a time
TIMES = ("replay_s", "call_s")
TARGET = 10.0


@dataclass(frozen=True)
class Case:
    """A trace in a pool."""

    name: str
    trace: str
    unit: int
    units: int

    @property
    def work(self) -> str:
        """The case as a row names it."""
        return f"replay, {self.name}, {self.units:,} blocks of {self.unit}"


CASES = (
    Case("Mooncake conversation", "mooncake/conversation_trace.jsonl", 512, 16_384),
    Case("Mooncake conversation", "mooncake/conversation_trace.jsonl", 64, 131_072),
    Case("Mooncake conversation", "mooncake/conversation_trace.jsonl", 16, 524_288),
    Case("Azure conversation", "azure-llm-2023/AzureLLMInferenceTrace_conv.csv", 16, 65_536),
)


def replayed(workload: Workload, case: Case, *, record: bool = False) -> Result:
    """One run of kvmon's simulator; with `record`, every event becomes words."""
    allocator, scheduler = PagedConfig(case.units, case.unit), SchedulerConfig()
    times = StepTime(STEP_MS * 1e6, 0, 0, 0)
    if not record:
        return simulate(workload, allocator, scheduler, times)
    words = JournalWords(
        lambda piece: None,
        json.dumps(engine_config(allocator, scheduler)),
        pool_info(allocator, 131_072),
        requests=len(workload),
        offsets=workload.hash_offsets,
        hashes=workload.hashes,
        hash_tokens=workload.hash_tokens,
    )
    result = simulate(workload, allocator, scheduler, times, journal_sink=words)
    words.close()
    return result


def as_mooncake(workload: Workload, path: Path) -> Path:
    """The requests of a trace without identities in Mooncake's format: every block of every prompt has its own."""
    counts = -(-workload.prompt_tokens // IDENTITY_TOKENS)
    ends = np.cumsum(counts)
    with path.open("w", encoding="utf-8") as file:
        for i in range(len(workload)):
            row = {
                "timestamp": int(workload.arrival_ns[i]) // 1_000_000,
                "input_length": int(workload.prompt_tokens[i]),
                "output_length": int(workload.output_tokens[i]),
                "hash_ids": list(range(int(ends[i] - counts[i]), int(ends[i]))),
            }
            file.write(json.dumps(row) + "\n")
    return path


def dynamo(case: Case, trace: Path) -> dict[str, Any] | str:
    """What Dynamo's mocker measured, or why it did not."""
    if not PEER.exists():
        return "not installed: run 'make bench'"
    task = {
        "trace": str(trace),
        "block_tokens": case.unit,
        "blocks": case.units,
        "trace_block_tokens": IDENTITY_TOKENS,
        "step_ms": STEP_MS,
        "runs": 1,
    }
    done = subprocess.run([PEER, SCRIPT, json.dumps(task)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"failed: {last[:100]}"
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def case_rows(case: Case, trace: Path, workload: Workload, reading: float) -> list[Row]:
    """Off, on, and beside Dynamo."""
    replayed(workload, case, record=True)
    off, peer = replayed(workload, case), dynamo(case, trace)
    for _ in range(ROUNDS):
        again = (replayed(workload, case), replayed(workload, case))
        off = min(off, *again, key=lambda result: result.wall_seconds)
        if isinstance(peer, dict):
            other = dynamo(case, trace)
            peer = other if isinstance(other, str) else {**peer, **{key: min(peer[key], other[key]) for key in TIMES}}
    on = best_of(ROUNDS, lambda: replayed(workload, case, record=True))
    rows = [
        Row(case.work, f"{off.wall_seconds * 1e3:.0f} ms, {off.steps / off.wall_seconds / 1e6:.2f} M steps/s"),
        Row(f"{case.work}, every event as words", f"{on * 1e3:.0f} ms"),
    ]
    if isinstance(peer, str):
        return [*rows, Row(f"{case.work}, beside Dynamo's mocker", peer)]
    hits = off.prefix_hit_tokens / off.prefix_lookup_tokens if off.prefix_lookup_tokens else 0.0
    times = peer["replay_s"] / off.wall_seconds
    whole = peer["call_s"] / (reading + off.wall_seconds)
    figure = f"{times:.1f} x (Dynamo {peer['replay_s'] * 1e3:,.0f} ms); with reading the trace {whole:.1f} x"
    figure += f"; requests completed {off.completed:,} and {peer['completed']:,}"
    figure += f", prompt tokens hit {hits:.4f} and {peer['hit_ratio']:.4f}"
    each = off.wall_seconds / int((-(-workload.prompt_tokens // case.unit)).sum()) * 1e9
    limit = f"{each:.0f} ns for each block of each prompt, in which it is found, or named and taken from another prefix"
    met = times >= TARGET
    return [
        *rows,
        Row(f"{case.work}, beside Dynamo's mocker", figure, f"{TARGET:.0f} x", met, "" if met else limit),
    ]


def rows() -> list[Row]:
    """The rows of this file."""
    if not TRACES.is_dir():
        return [Row("replay of public traces", "no traces here: point KVMON_TRACES at the folder with mooncake/")]
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            path = TRACES / case.trace
            workload = read_trace(path)
            reading = best_of(ROUNDS, partial(read_trace, path))
            trace = path if len(workload.hashes) else as_mooncake(workload, Path(folder) / "azure.jsonl")
            found += case_rows(case, trace, workload, reading)
    return found

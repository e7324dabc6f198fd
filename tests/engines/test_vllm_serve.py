"""vLLM as users run it: a server with its engine core in another process, the sidecar in a third."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvmon.recording.reader import find_streams
from kvmon.state import StreamState
from tests.engines.vllm_server import ROOT, completion, engine_cores, exporter, samples, serve, wait_for
from tests.engines.vllm_truth import Followed


def _prompt(number: int) -> list[int]:
    return [(at * 7 + number % 4 * 91) % 500 + 3 for at in range(60 + 9 * (number % 11))]


def kvmon(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as a process."""
    return subprocess.run(
        [sys.executable, "-m", "kvmon", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def value(scraped: dict[str, float], name: str, *labels: str) -> float:
    """Of the samples of this name with these labels, the sum."""
    return sum(
        found
        for sample, found in scraped.items()
        if sample.partition("{")[0] == name and all(label in sample for label in labels)
    )


def test_a_server_under_load_and_its_death(tmp_path: Path) -> None:
    """Both sides count the same; after kill -9 the recording is whole and the exporter says that the engine is gone."""
    directory = tmp_path / "kv"
    directory.mkdir(mode=0o700)
    with exporter(directory, tmp_path) as sidecar, serve(tmp_path, KVMON_DIR=str(directory)) as (address, log, process):
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda number: completion(address, _prompt(number), 60), range(48)))
        assert all(len(answer["choices"][0]["token_ids"]) == 60 for answer in answers)

        def settled() -> bool:
            return value(samples(sidecar), "kvmon_requests_finished_total", 'reason="length"') == 48

        # the sidecar compiles its kernels meanwhile, where nobody has before
        wait_for("end of the load in the sidecar", settled, 120, tmp_path / "exporter.log")
        mine, theirs = samples(sidecar), samples(f"{address}/metrics")
        assert value(theirs, "vllm:request_success_total", 'finished_reason="length"') == 48
        preempted = value(mine, "kvmon_preemptions_total")
        assert preempted == value(theirs, "vllm:num_preemptions_total") > 0
        # vLLM leaves out the lookups of resumed requests
        assert value(mine, "kvmon_prefix_hit_tokens_total") >= value(theirs, "vllm:prefix_cache_hits_total") > 0
        assert value(mine, "kvmon_allocation_failures_total", 'reason="exhausted"') > 0
        assert value(mine, "kvmon_engine_info", 'adapter="vllm"', 'fidelity="exact"', 'engine_version="0.32.0') == 1
        assert value(mine, "kvmon_memory_bytes") == value(mine, "kvmon_memory_capacity_bytes") == 23 * 16384
        assert value(mine, "kvmon_drift_units") == value(mine, "kvmon_unowned_units") == 0
        said = [line for line in log.read_text().splitlines() if "kvmon" in line.lower()]
        assert len(said) == 1 and "kvmon records vllm (rank 0)" in said[0] and "EngineCore" in said[0]

        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(completion, address, _prompt(number), 300) for number in range(16)]
            wait_for("load", lambda: value(samples(sidecar), "kvmon_requests", "running") > 3, 20, log)
            (core,) = engine_cores(process)
            os.kill(core, signal.SIGKILL)
            wait_for("death", lambda: not engine_cores(process), 10, log)
            samples(sidecar)
            time.sleep(1)  # a short interval of scrapes
            second = samples(sidecar)
            assert value(second, "kvmon_engine_up") == 0
            assert value(second, "kvmon_memory_bytes") == 0, "a dead engine looks alive"
            os.killpg(process.pid, signal.SIGKILL)
            assert any(load.exception() is not None for load in loads)
    verified = kvmon("verify", str(directory))
    assert verified.returncode == 0, verified.stdout
    kept = kvmon("capture", str(directory), "-o", str(tmp_path / "x.kvmon"))
    assert kept.returncode == 0, kept.stderr
    assert kvmon("verify", str(tmp_path / "x.kvmon")).returncode == 0
    assert "dead" in kvmon("status", str(directory)).stdout
    assert "vllm" in kvmon("top", "--once", str(directory)).stdout


def _followed(directory: Path) -> dict[str, StreamState]:
    states = {}
    for path in find_streams(directory):
        found = Followed.at(path)
        states[path.name] = found.read()
    return states


def test_data_parallel_ranks_are_streams(tmp_path: Path) -> None:
    """Two ranks, two recordings, each with requests of its own."""
    directory = tmp_path / "kv"
    options = ("--data-parallel-size", "2")
    with serve(tmp_path, *options, KVMON_DIR=str(directory), KVMON_ENGINE="two") as (address, log, _):
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda number: completion(address, _prompt(number), 30), range(24)))
        said = [line for line in log.read_text().splitlines() if "kvmon records" in line]
    states = _followed(directory)
    assert sorted(states) == ["two-0", "two-1"] and len(said) == 2
    for state in states.values():
        assert state.steps > 30 and state.faults() == []
    assert kvmon("verify", str(directory)).returncode == 0


def test_tensor_parallel_shards_are_one_pool(tmp_path: Path) -> None:
    """Two workers, one scheduler: one recording, whose bytes are those of one shard."""
    directory = tmp_path / "kv"
    with serve(tmp_path, "--tensor-parallel-size", "2", KVMON_DIR=str(directory)) as (address, log, _):
        completion(address, _prompt(1), 20)
        assert log.read_text().count("kvmon records") == 1
    (state,) = _followed(directory).values()
    assert state.pools[1].info["shards"] == 2
    assert state.pools[1].unit_bytes == 16384 // 2
    assert state.faults() == []

"""vLLM as users run it: a server with its engine core in another process, the sidecar in a third."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kvmon.events import Kind, decode
from kvmon.recording.reader import StreamReader, find_streams
from kvmon.state import StreamState
from tests.engines.vllm_server import ROOT, completion, engine_cores, exporter, holders, samples, serve, wait_for
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


def said_by_kvmon(log: str) -> list[str]:
    """Lines that name it; paths that do are none of them."""
    return [line for line in log.splitlines() if re.search(r"(?<![\w/.-])kvmon(?![\w/.-])", line, re.IGNORECASE)]


def recorded(path: Path) -> Counter[Kind]:
    """Events of a stream by kind, and that its writer is gone and left nothing damaged."""
    reader, found = StreamReader(path), Counter[Kind]()
    assert reader.alive() is False
    while piece := reader.poll() or reader.open_tail():
        found.update(event.kind for event in decode(np.frombuffer(piece.data, np.uint32).tolist()))
        if piece.open_tail:
            break
    assert not reader.damaged
    return found


# expensive: a start of vLLM, three loads, the command line
def test_a_server_under_load_and_its_death(tmp_path: Path) -> None:
    """Both sides count the same; after kill -9 the recording is whole and the exporter says that the engine is gone."""
    directory = tmp_path / "kv"
    directory.mkdir(mode=0o700)
    with exporter(directory, tmp_path) as sidecar, serve(tmp_path, KVMON_DIR=str(directory)) as (address, log, process):

        def both(finished: int) -> tuple[dict[str, float], dict[str, float]]:
            def settled() -> bool:
                return (
                    value(samples(sidecar), "kvmon_requests_finished_total", 'reason="length"') == finished
                    and value(samples(f"{address}/metrics"), "vllm:request_success_total", '"length"') == finished
                )

            # the sidecar compiles its kernels meanwhile, where nobody has before
            wait_for("end of the load on both sides", settled, 120, tmp_path / "exporter.log")
            return samples(sidecar), samples(f"{address}/metrics")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: completion(address, _prompt(number), 20), range(12)))
        mine, theirs = both(12)
        assert value(mine, "kvmon_preemptions_total") == value(theirs, "vllm:num_preemptions_total") == 0
        for name, counterpart in (
            ("kvmon_prefix_lookup_tokens_total", "vllm:prefix_cache_queries_total"),
            ("kvmon_prefix_hit_tokens_total", "vllm:prefix_cache_hits_total"),
            ("kvmon_prefill_tokens_total", "vllm:request_prefill_kv_computed_tokens_sum"),
            ("kvmon_requests_arrived_total", "vllm:request_prompt_tokens_count"),
        ):
            assert value(mine, name) == value(theirs, counterpart) > 0, name

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda number: completion(address, _prompt(number), 60), range(48)))
        assert all(len(answer["choices"][0]["token_ids"]) == 60 for answer in answers)
        mine, theirs = both(60)
        preempted = value(mine, "kvmon_preemptions_total")
        assert preempted == value(theirs, "vllm:num_preemptions_total") > 0
        # vLLM leaves out the lookups of resumed requests
        lookups, hits = (value(mine, f"kvmon_prefix_{what}_tokens_total") for what in ("lookup", "hit"))
        assert lookups > value(theirs, "vllm:prefix_cache_queries_total") > 0
        assert hits >= value(theirs, "vllm:prefix_cache_hits_total") > 0
        assert value(mine, "kvmon_prefill_tokens_total") == lookups - hits
        # a prefill gives a token too: the first one, and the next one of a request that was resumed
        decoded = value(theirs, "vllm:generation_tokens_total") - 60 - preempted
        assert value(mine, "kvmon_decode_tokens_total") == decoded
        assert value(mine, "kvmon_allocation_failures_total", 'reason="exhausted"') > 0
        assert value(mine, "kvmon_engine_info", 'adapter="vllm"', 'fidelity="exact"', 'engine_version="0.32.0') == 1
        assert value(mine, "kvmon_memory_bytes") == value(mine, "kvmon_memory_capacity_bytes") == 23 * 16384
        assert value(mine, "kvmon_drift_units") == value(mine, "kvmon_unowned_units") == 0
        assert value(mine, "kvmon_events_lost_total") == 0
        said = said_by_kvmon(log.read_text())
        assert len(said) == 1 and "kvmon records vllm (rank 0)" in said[0] and "EngineCore" in said[0]
        assert holders(process, directory) == engine_cores(process)

        dead = threading.Event()

        def ask(number: int) -> None:
            while not dead.is_set():
                completion(address, _prompt(number), 300)

        def loaded() -> bool:
            now = samples(sidecar)
            return value(now, "kvmon_requests", "running") > 1 and value(now, "kvmon_preemptions_total") > preempted

        with ThreadPoolExecutor(8) as pool:
            loads = [pool.submit(ask, number) for number in range(8)]
            try:
                wait_for("load", loaded, 60, log)
                (core,) = engine_cores(process)
                os.kill(core, signal.SIGKILL)
            finally:
                dead.set()
            wait_for("death", lambda: not engine_cores(process), 30, log)
            samples(sidecar)
            time.sleep(1)  # a short interval of scrapes
            second = samples(sidecar)
            assert second['kvmon_engine_up{engine="vllm",rank="0"}'] == 0
            assert value(second, "kvmon_memory_bytes") == 0, "a dead engine looks alive"
            os.killpg(process.pid, signal.SIGKILL)
            assert any(load.exception() is not None for load in loads), "nothing was under way"
    found = recorded(directory / "vllm-0")
    assert found[Kind.REQUEST_ARRIVED] > found[Kind.REQUEST_FINISHED] >= 60
    verified = kvmon("verify", str(directory))
    assert verified.returncode == 0, verified.stdout
    kept = kvmon("capture", str(directory), "-o", str(tmp_path / "x.kvmon"))
    assert kept.returncode == 0, kept.stderr
    again = kvmon("verify", str(tmp_path / "x.kvmon"))
    assert again.returncode == 0, again.stdout
    assert again.stdout.splitlines()[1:] == verified.stdout.splitlines()[1:], "the capture is another recording"
    state = kvmon("status", str(directory))
    assert state.returncode == 1 and "dead" in state.stdout, state.stderr
    shown = kvmon("top", "--once", str(directory))
    assert shown.returncode == 0 and "vllm/0 kv dead since" in shown.stdout, shown.stderr


def _followed(directory: Path) -> dict[str, StreamState]:
    states = {}
    for path in find_streams(directory):
        found = Followed.at(path)
        states[path.name] = found.read()
    return states


# expensive: a start of vLLM with two engine cores
def test_data_parallel_ranks_are_streams(tmp_path: Path) -> None:
    """Two ranks, two recordings, each with requests of its own."""
    directory = tmp_path / "kv"
    options = ("--data-parallel-size", "2", "--api-server-count", "1")
    with serve(tmp_path, *options, KVMON_DIR=str(directory), KVMON_ENGINE="two") as (address, log, process):
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda number: completion(address, _prompt(number), 30), range(24)))
        said = said_by_kvmon(log.read_text())
        assert len(engine_cores(process)) == 2 and holders(process, directory) == engine_cores(process)
    states = _followed(directory)
    assert sorted(states) == ["two-0", "two-1"] and len(said) == 2
    finished = [recorded(directory / name)[Kind.REQUEST_FINISHED] for name in states]
    assert min(finished) > 0 and sum(finished) == 24
    for state in states.values():
        assert state.steps > 30 and state.faults() == []
    assert kvmon("verify", str(directory)).returncode == 0


# expensive: a start of vLLM with two workers
def test_tensor_parallel_shards_are_one_pool(tmp_path: Path) -> None:
    """Two workers, one scheduler: one recording, whose bytes are those of one shard."""
    directory = tmp_path / "kv"
    with serve(tmp_path, "--tensor-parallel-size", "2", KVMON_DIR=str(directory)) as (address, log, process):
        completion(address, _prompt(1), 20)
        assert len(said_by_kvmon(log.read_text())) == 1
        assert holders(process, directory) == engine_cores(process)
    (state,) = _followed(directory).values()
    assert state.pools[1].info["shards"] == 2
    assert state.pools[1].unit_bytes == 16384 // 2
    assert state.faults() == []


def answered(method: str, folder: Path, **environment: str) -> tuple[Any, list[str]]:
    """What an engine answers whose core is a process of its own, and what kvmon said."""
    folder.mkdir()
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engines.vllm_server", method, str(folder)],
            cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO", **environment},
        )  # fmt: skip
        try:
            process.wait(180)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            log.seek(0)
            text = log.read()
    assert process.returncode == 0, text[-3000:]
    (line,) = (line for line in text.splitlines() if line.startswith('{"answers"'))
    return json.loads(line)["answers"], said_by_kvmon(text)


# expensive: four starts of vLLM
def test_answers_are_the_same_forked_spawned_or_unwatched(tmp_path: Path) -> None:
    """Every token; one recording and one line where it is wanted, nothing at all where it is not.

    `vllm serve` on a CPU always spawns; only here is a process forked that has the patches already.
    """
    kv = {name: tmp_path / f"kv-{name}" for name in ("excluded", "fork", "spawn")}
    environments = {name: {"KVMON_DIR": str(path)} for name, path in kv.items()}
    environments["excluded"]["VLLM_PLUGINS"] = "lora_filesystem_resolver"
    environments["alone"] = {}
    with ThreadPoolExecutor(2) as pool:  # most of it is one thread that imports
        runs = {
            name: pool.submit(answered, "spawn" if name == "spawn" else "fork", tmp_path / name, **environment)
            for name, environment in environments.items()
        }
    alone, said = runs["alone"].result()
    assert len(alone) == 24 and said == []
    assert runs["excluded"].result() == (alone, [])
    for method in ("fork", "spawn"):
        watched, said = runs[method].result()
        assert watched == alone
        assert len(said) == 1 and "kvmon records vllm (rank 0)" in said[0] and "EngineCore" in said[0]
        assert [path.name for path in find_streams(kv[method])] == ["vllm-0"]
        found = recorded(kv[method] / "vllm-0")
        assert found[Kind.REQUEST_ARRIVED] == found[Kind.REQUEST_FINISHED] == 24
        assert found[Kind.PREEMPTED] > 5
    segments = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.seg")}
    assert segments == {"kv-fork", "kv-spawn"} and not kv["excluded"].exists()

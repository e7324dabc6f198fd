"""The reference engine: tokens a second beside transformers' continuous batching, what being recorded costs it, and how
near the simulator comes to it in real time.

Throughput is `engine_throughput` in a process of its own, one thread of torch, because two would wait for one another
on a shared machine. The cost of recording is the ratio of the times with and without the probe, in turns over the same
requests; a tiny model makes it look as large as it can be. In real time the engine serves the same traffic several
times, which is never the same twice; the simulator does it with step times fitted to the first run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kvmon.adapters.attach import attach
from kvmon.allocators import PagedConfig
from kvmon.capture.steps import read_steps
from kvmon.engine import Decoder, Engine, Sampling, random_weights, tiny_config
from kvmon.engine.clock import PassingClock
from kvmon.engine.config import ModelConfig
from kvmon.engine.drive import build_driver
from kvmon.serving import SchedulerConfig
from kvmon.serving import state as at
from kvmon.serving.scenarios import Setup
from kvmon.serving.workloads import OpenLoop, SharedPrefixes, Traffic, generate
from kvmon.simulate import fit_step_time, simulate
from tests.benchmarks.table import Row

ROUNDS = 20
REAL_RUNS = 4


def rows() -> list[Row]:
    """Throughput by layout and model, then recording."""
    found = [*throughput("tiny", 16, 128, 64), *throughput("small", 8, 128, 32)]
    found += [recording("tiny model, 16 sequences", tiny_config()), recording("a model of 27 M", small())]
    return [*found, real_time()]


def small() -> ModelConfig:
    """Eight layers of 512: still a fiftieth of the smallest model that anybody serves."""
    return ModelConfig(2000, 512, 1408, 8, 8, 4, 64, tied=False, name="small")


def throughput(size: str, requests: int, prompt: int, tokens: int) -> list[Row]:
    """Both layouts beside transformers, in one process and in turns."""
    options = [f"--size={size}", f"--requests={requests}", f"--prompt={prompt}", f"--tokens={tokens}", "--threads=1"]
    command = [sys.executable, "-m", "tests.benchmarks.engine_throughput", *options, "--rounds=3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    speeds = json.loads(done.stdout.splitlines()[-1])["tokens_per_s"]
    theirs = speeds["transformers"]
    return [
        Row(
            f"engine, {size} model, {requests} requests of {prompt} + {tokens}, {layout}",
            f"{speeds[layout]:,.0f} tokens/s, {speeds[layout] / theirs:.1f} x transformers ({theirs:,.0f})",
            "1.0 x",
            speeds[layout] >= theirs,
        )
        for layout in ("paged", "contiguous")
    ]


def recording(name: str, config: ModelConfig) -> Row:
    """Time without the probe over time with it, the median of pairs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Decoder(config, random_weights(config, 0))
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        for turn in range(ROUNDS):
            order = (False, True) if turn % 2 else (True, False)
            seconds = {recorded: served(model, Path(place) / str(turn) if recorded else None) for recorded in order}
            ratios.append(seconds[False] / seconds[True])
    torch.set_num_threads(threads)
    ratio = statistics.median(ratios)
    return Row(
        f"engine recorded, {name}: speed beside the same without a probe",
        f"{ratio:.3f} x (of {ROUNDS} pairs {min(ratios):.3f} to {max(ratios):.3f})",
        "0.99 x",
        ratio >= 0.99,
        ""
        if ratio >= 0.99
        else "about 100 us a step for the journal, entry by entry, and a slice of the audit: much for a step of 2 ms",
    )


def real_time() -> Row:
    """Refused allocations and preemptions of the engine's own runs, and of its simulation."""
    threads = torch.get_num_threads()
    work = generate(
        Traffic(
            300,
            seed=5,
            lengths="uniform:50-600/uniform:20-200",
            arrivals=OpenLoop(25.0),
            prefixes=SharedPrefixes(3, 100),
        )
    )
    setup = Setup(work, PagedConfig(320, 16), SchedulerConfig(token_budget=512))
    runs: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(REAL_RUNS):
            directory = Path(place) / str(number)
            directory.mkdir()
            runs.append(once(setup, directory))
        (steps,) = read_steps(Path(place) / "0")
    torch.set_num_threads(threads)
    fit = fit_step_time(steps.duration_ns, steps.prefill_tokens, steps.decode_sequences, steps.context_tokens)
    result = simulate(work, setup.allocator, setup.scheduler, fit.step_time)
    preemptions = [count for count, _ in runs]
    seconds = [took for _, took in runs]
    between = max(preemptions) - min(preemptions)
    away = abs(result.preemptions - statistics.mean(preemptions))
    return Row(
        "engine in real time beside its simulation with fitted step times: preemptions, seconds",
        f"{REAL_RUNS} runs {min(preemptions)} to {max(preemptions)}, {min(seconds):.2f} to {max(seconds):.2f} s; "
        f"simulated {result.preemptions}, {result.duration_s:.2f} s",
        "as near as two runs",
        away <= between,
        "" if away <= between else "the machine's pauses are in no formula",
    )


def once(setup: Setup, directory: Path) -> tuple[int, float]:
    """Preemptions and seconds of one run in real time, recorded into `directory`."""
    clock = PassingClock()
    driver = build_driver(setup, threads=1, clock=clock)
    recording = attach(driver.engine, directory, clock=lambda: 1 + clock.now_ns, time_base_ns=1)
    driver.run()
    recording.close()
    return int(driver.engine.scheduler.state.tally[at.PREEMPTIONS]), clock.now_ns / 1e9


def served(model: Decoder, directory: Path | None) -> float:
    """Seconds to serve 16 requests of 100 + 60 tokens."""
    engine = Engine(model, PagedConfig(400, 16))
    if directory is not None:
        directory.mkdir()
        engine.closers.append(attach(engine, directory).close)
    random = np.random.default_rng(0)
    for _ in range(16):
        engine.add(random.integers(0, model.config.vocabulary, 100), Sampling(60, ignore_eos=True))
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - began
    engine.close()
    return seconds

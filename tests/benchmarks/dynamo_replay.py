"""Replay a trace in NVIDIA Dynamo's mocker; run by the interpreter of `.venv/peers`, for `bench_simulator.py`.

Argument: a JSON object with `trace`, `block_tokens`, `blocks`, `trace_block_tokens`, `step_ms`, `runs`. Prints a JSON
object for the best run: `replay_s` (Dynamo's own wall time of the simulation), `call_s` (the whole call, which reads
the trace first), `completed` and `hit_ratio`. Importing Dynamo is in neither.

Nothing of kvmon is imported: this runs where only Dynamo is installed.
"""

from __future__ import annotations

import json
import sys
import time

from dynamo._core import run_mocker_trace_replay


def replay(task: dict[str, object]) -> dict[str, object]:
    """One worker like vLLM's scheduler, with the defaults of kvmon's: 2,048 tokens a step, 256 sequences."""
    engine = {
        "backend": "vllm",
        "block_size": task["block_tokens"],
        "num_gpu_blocks": task["blocks"],
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 256,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "timing_model": {"type": "fixed", "prefill_ms": task["step_ms"], "decode_ms": task["step_ms"]},
    }
    start = time.perf_counter()
    summary = run_mocker_trace_replay(
        [task["trace"]],
        extra_engine_args={"engine": engine},
        num_workers=1,
        replay_mode="offline",
        trace_format="mooncake",
        trace_block_size=task["trace_block_tokens"],
        capture_planner_details=False,
    ).summary
    return {
        "call_s": time.perf_counter() - start,
        "replay_s": summary["wall_time_ms"] / 1e3,
        "completed": summary["completed_requests"],
        "hit_ratio": summary["prefix_cache_reused_ratio"],
    }


def main(task: dict[str, object]) -> None:
    """Print the run with the shortest replay, with the shortest call of any run."""
    runs = [replay(task) for _ in range(int(str(task["runs"])))]
    best = min(runs, key=lambda run: float(str(run["replay_s"])))
    best["call_s"] = min(float(str(run["call_s"])) for run in runs)
    print(json.dumps(best))


main(json.loads(sys.argv[1]))

"""A whole vLLM in this process, with a tiny model under memory pressure; prints what it answered and what differed.

    python -m tests.engines.vllm_model llama|gemma3 [DIRECTORY]

With a directory the plugin records into it, and after every step the fold is held against the engine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.engines.tiny_models import write_gemma3, write_llama

_BLOCKS, _MODEL_LEN = 24, 512


def main() -> None:
    """Serve some requests, hang up on some, reset, and say how it went."""
    directory = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if directory is not None:
        os.environ["KVMON_DIR"] = str(directory)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    from kvmon.events.totals import StreamTotal

    write = {"llama": write_llama, "gemma3": write_gemma3}[sys.argv[1]]
    llm = LLM(
        model=str(write(Path(tempfile.mkdtemp()))),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        num_gpu_blocks_override=_BLOCKS * (4 if sys.argv[1] == "gemma3" else 1),
        max_model_len=_MODEL_LEN,
        block_size=32,
        max_num_seqs=16,
        disable_log_stats=False,
        seed=1,
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    recording = followed = None
    if directory is not None:
        from kvmon.adapters.vllm.recording import recording_of
        from tests.engines.vllm_truth import Followed

        recording = recording_of(scheduler)
        followed = Followed.of(directory)
    answers: dict[str, list[list[int]]] = {}
    found: list[str] = []
    steps = 0

    def run(most: int) -> None:
        nonlocal steps, found
        for _ in range(most):
            if not engine.has_unfinished_requests():
                return
            for output in engine.step():
                if output.finished:
                    answers[output.request_id] = [list(one.token_ids) for one in output.outputs]
            steps += 1
            if followed is not None and not found:
                from tests.engines.vllm_truth import differences

                found = differences(followed.read(), scheduler, recording)
                if found:
                    found.insert(0, f"step {steps}")

    for number in range(24):
        several = 3 if number % 8 == 5 else 1
        params = SamplingParams(
            n=several, max_tokens=40 + 5 * (number % 7), temperature=0.8 if several > 1 else 0.0, seed=number,
            ignore_eos=True, detokenize=False,
        )  # fmt: skip
        prompt = [(at * 7 + number % 3 * 91) % 500 + 3 for at in range(40 + 9 * (number % 11))]
        engine.add_request(f"r{number}", {"prompt_token_ids": prompt}, params)
        if number % 6 == 5:
            run(12)
    engine.abort_request(["r3", "r20"])
    run(10_000)
    reset = bool(llm.reset_prefix_cache())
    engine.add_request("again", {"prompt_token_ids": prompt}, params)
    run(10_000)
    report: dict[str, Any] = {"answers": answers, "steps": steps, "reset": reset, "differences": found}
    metrics = {metric.name: getattr(metric, "value", None) for metric in llm.get_metrics()}
    report["engine"] = {
        "preempted": metrics.get("vllm:num_preemptions"),
        "lookups": metrics.get("vllm:prefix_cache_queries"),
        "hits": metrics.get("vllm:prefix_cache_hits"),
    }
    if recording is not None and followed is not None:
        state = followed.read()
        totals = recording.probe.emitter.totals
        info = next(recording.probe.pools())[1]
        report["kvmon"] = {
            "grade": recording.grade,
            "faults": [str(fault) for fault in state.faults()][:5],
            "lost": recording.probe.lost,
            "preempted": totals[StreamTotal.PREEMPTED],
            "lookups": totals[StreamTotal.LOOKUP_TOKENS],
            "hits": totals[StreamTotal.HIT_TOKENS],
            "arrived": totals[StreamTotal.ARRIVED],
            "unit_bytes": info.unit_bytes,
            "unit_tokens": info.unit_tokens,
            "attributes": dict(info.attributes),
            "config": state.config,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()

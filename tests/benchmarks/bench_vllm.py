"""A real vLLM scheduler with 256 running requests: watched, unwatched, and with vLLM's own events; all in one run.

Needs the environment of `make test-engines`; without it the rows say so.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.benchmarks.table import Row

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-engines" / "bin" / "python"
STEPS = 4000
TARGETS = {"pool events": 1.01, "everything": 1.02}


def rows() -> list[Row]:
    """Ratios with an interval of 95 %, and what a step of kvmon takes."""
    if not PYTHON.exists():
        return [Row("vLLM's scheduler, watched", "not measured: run 'make test-engines' first")]
    done = subprocess.run(
        [str(PYTHON), "-m", "tests.engines.vllm_cost", str(STEPS)],
        cwd=ROOT,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    ratios = found["ratios"]
    unwatched = found["unwatched_us"]
    table = [Row("vLLM 0.32, schedule and update with 256 running, unwatched", f"{unwatched:,.0f} us a step")]
    for name, (middle, low, high) in ratios.items():
        target = TARGETS.get(name)
        extra = (middle - 1) * unwatched
        table.append(
            Row(
                f"vLLM 0.32, the same with {name}" if "nothing" not in name else f"vLLM 0.32, {name}",
                f"{middle:.3f} x ({low:.3f} to {high:.3f}), {extra:+,.0f} us a step",
                "" if target is None else f"{target} x",
                None if target is None else middle <= target,
                ""
                if target is None or middle <= target
                else "Python that runs once a step is cold: three to four times its warm time; "
                "to try next: the bodies that run once a step in one compiled function",
            )
        )
    share = (ratios["everything"][0] - 1) / max(ratios["KV events over ZMQ"][0] - 1, 1e-9)
    table.append(Row("vLLM 0.32, everything, of what KV events over ZMQ cost", f"{share:.2f}", "0.20", share <= 0.2))
    steps = {name: calls * ns / 1e3 for name, (calls, ns) in found["bodies"].items()}
    named = ", ".join(f"{name} {us:.0f}" for name, us in sorted(steps.items(), key=lambda item: -item[1])[:6])
    table.append(Row("vLLM 0.32, bodies of hooks, us a step (some within others)", named))
    table.append(Row("vLLM 0.32, recorded", f"{found['bytes_a_step']:,.0f} bytes a step"))
    table.append(Row("vLLM 0.32, attach", f"{found['attach_ms']:.1f} ms", "5 ms", found["attach_ms"] <= 5))
    return table

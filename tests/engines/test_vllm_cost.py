"""What watching costs, with a bound that a busy machine keeps too; `make bench` measures it properly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.engines.vllm_cost import clocked

ROOT = Path(__file__).parents[2]
MOST_NS_A_STEP = 1_000_000  # of 4 ms that 256 running requests take; about 150,000 when nothing else runs
MOST_BYTES_A_STEP = 4096
MOST_ATTACH_MS = 50  # 3 when nothing else runs


def test_cost_of_the_hooks(tmp_path: Path) -> None:
    """Calls a step times ns a call, of what runs once a step and of the hooks of blocks; bytes; time to attach."""
    bodies, size, attach_ms = clocked(60, tmp_path)
    spent = {name: calls * ns for name, (calls, ns) in bodies.items()}
    within = ("StreamProbe.step", "Requests.end")  # these run within Steps.after_update
    assert sum(ns for name, ns in spent.items() if name not in within) < MOST_NS_A_STEP, spent
    assert bodies["Steps.after_schedule"][0] == bodies["StreamProbe.step"][0] == 1
    assert 10 < bodies["PoolProbe.alloc_one"][0] < 30
    assert size < MOST_BYTES_A_STEP
    assert attach_ms < MOST_ATTACH_MS


def test_installing_kvmon_changes_no_package() -> None:
    """What was there before it is there after it, in the same version; pip would change nothing now either."""
    before = (ROOT / ".venv-engines" / "without-kvmon.txt").read_text(encoding="utf-8").splitlines()
    run = [sys.executable, "-m", "pip"]
    after = subprocess.run([*run, "freeze"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in before if line not in after] == []
    assert len(before) > 100
    dry = subprocess.run(
        [*run, "install", "--dry-run", "--no-build-isolation", "--no-index", "--find-links", "/nonexistent", str(ROOT)],
        capture_output=True,
        text=True,
    )
    would = [line for line in dry.stdout.splitlines() if line.startswith("Would install")]
    assert dry.returncode == 0, dry.stderr
    assert [name for line in would for name in line.split()[2:] if not name.startswith("kvmon-")] == []

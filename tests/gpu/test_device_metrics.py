"""A real GPU in the exporter's page: what the driver says, what torch says, and that the parts sum."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

POOL = 4 << 30
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture
def page(tmp_path: Path) -> Iterator[dict[str, float]]:
    """The page of a directory in which a server on the GPU records, after it answered once."""
    command = [sys.executable, "-m", "kvmon"]
    options = ["--port", "0", "--device", "cuda", "--capacity-bytes", str(POOL), "--dir", str(tmp_path)]
    server = subprocess.Popen(
        [*command, "engine", "serve", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert server.stderr is not None
        said = next(line for line in server.stderr if line.startswith("kvmon: serving"))
        root = said.split(" at ")[1].strip()
        model = json.loads(urllib.request.urlopen(f"{root}/models", timeout=60).read())["data"][0]["id"]
        asked = urllib.request.Request(
            f"{root}/completions",
            json.dumps({"model": model, "prompt": "Say something", "max_tokens": 200}).encode(),
            {"Content-Type": "application/json"},
        )
        end = time.monotonic() + 4  # the engine tells of its device every second
        while time.monotonic() < end:
            urllib.request.urlopen(asked, timeout=60).read()
        told = subprocess.run(
            [*command, "exporter", "--dir", str(tmp_path), "--textfile", "-"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines = [line for line in told.splitlines() if line and not line.startswith("#")]
        yield {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    finally:
        server.kill()
        server.communicate()


def total(page: dict[str, float], name: str) -> float:
    """Sum of all series of a metric."""
    return sum(value for series, value in page.items() if series.startswith(name + "{"))


def test_the_driver_torch_and_the_pool_agree(page: dict[str, float]) -> None:
    """States sum to the memory of the GPU; parts to what is used; the pool has the size that the engine gave it."""
    _, memory = torch.cuda.mem_get_info()
    states = total(page, "kvmon_gpu_memory_bytes")
    assert states == pytest.approx(memory, rel=0.05)
    used = next(value for series, value in page.items() if re.match(r'kvmon_gpu_memory_bytes\{.*state="used"', series))
    assert total(page, "kvmon_gpu_used_bytes") == pytest.approx(used, rel=0.02)
    kv_pool = next(value for series, value in page.items() if 'part="kv_pool"' in series)
    capacity = total(page, "kvmon_memory_capacity_bytes")
    assert capacity == pytest.approx(POOL, rel=0.01)
    assert kv_pool == pytest.approx(capacity, rel=0.02)
    assert total(page, "kvmon_gpu_overclaimed_bytes") == 0
    assert total(page, "kvmon_torch_memory_bytes") >= kv_pool
    assert total(page, "kvmon_torch_largest_free_block_bytes") >= 0

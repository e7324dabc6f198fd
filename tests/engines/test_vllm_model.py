"""vLLM with a model, in one process: real attention, real sampling, memory that is too small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def serve(model: str, directory: Path | None = None, **environment: str) -> tuple[dict[str, Any], str]:
    """What a vLLM of its own answered, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm_model", model, *([] if directory is None else [str(directory)])],
        cwd=ROOT,
        env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


# bytes of a block: layers of a group x keys and values x 32 tokens x heads x 32 x 2 bytes
@pytest.mark.parametrize(
    ("model", "unit_bytes", "groups"), [("llama", 2 * 2 * 32 * 2 * 32 * 2, 1), ("gemma3", 4096, 4)]
)
def test_watched_or_not(model: str, unit_bytes: int, groups: int, tmp_path: Path) -> None:
    """Every token is the same; after every step the recording is the engine; the geometry is right to the byte."""
    watched, printed = serve(model, tmp_path)
    alone, _ = serve(model)
    assert watched["answers"] == alone["answers"] and len(alone["answers"]) == 23
    assert watched["steps"] == alone["steps"] > 200
    assert watched["differences"] == []
    seen = watched["kvmon"]
    assert (seen["grade"], seen["faults"], seen["lost"]) == ("exact", [], 0)
    assert seen["preempted"] == watched["engine"]["preempted"] > 10
    assert seen["arrived"] == 31  # three requests in parallel of each that asked for as many answers, and one more
    assert seen["hits"] >= watched["engine"]["hits"] > 1000  # vLLM leaves out those of resumed requests
    assert watched["reset"]
    assert (seen["unit_bytes"], seen["unit_tokens"]) == (unit_bytes, 32)
    assert seen["attributes"].get("groups", 1) == groups
    assert printed.count("kvmon records") == 1


def test_excluded_by_vllms_own_list(tmp_path: Path) -> None:
    """Where VLLM_PLUGINS does not name it, kvmon makes no file and prints no line."""
    alone, printed = serve("llama", KVMON_DIR=str(tmp_path), VLLM_PLUGINS="lora_filesystem_resolver")
    assert list(tmp_path.iterdir()) == []
    assert "kvmon records" not in printed
    assert len(alone["answers"]) == 23

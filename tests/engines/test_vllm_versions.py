"""The real Scheduler and BlockPool of nine versions of vLLM: the fold of the recording is the engine's own state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.adapters.base import parse_version
from kvmon.adapters.vllm import ADAPTER
from tests.engines import sources
from tests.engines.vllm_versions import SCENARIOS

ROOT = Path(__file__).parents[2]
INSTALLED = "0.32.0"
# vLLM counted a lookup at every attempt to admit a request, kvmon counts those of admitted ones
LOOKUPS_AT_ADMISSION = (0, 27)


@pytest.mark.parametrize("version", [*sources.VERSIONS, INSTALLED])
def test_fold_is_the_engines_state(version: str) -> None:
    """After every step no unit, table, request or token count differs; preemptions and lookups are vLLM's own."""
    path = ROOT if version == INSTALLED else f"{sources.path_of(version)}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.vllm_versions", version, "0", "1", "2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["version"].startswith(version)
    preempted = refused = hits = 0
    for name, result in answer["results"].items():
        assert result["differences"] == [], name
        assert result["faults"] == [] and result["lost"] == 0 and result["drift"] in (0, None), (name, result)
        assert result["compared"] > 150, name
        assert result["left"] == [], f"{name}: a method stayed patched"
        assert result["preempted"] == result["engine"]["preempted"], name
        if parse_version(version) >= LOOKUPS_AT_ADMISSION:
            assert result["lookups"] == result["engine"]["lookups"], name
            assert result["hits"] == result["engine"]["hits"], name
        preempted += result["preempted"]
        refused += sum(result["failures"].values())
        hits += result["hits"]
    assert len(answer["results"]) == 3 * len(SCENARIOS)
    assert preempted > 50 and refused > 50 and hits > 1000, "there was no pressure"


def test_declared_versions_are_those_that_are_tested() -> None:
    """The docs name no version that nothing here runs."""
    assert sorted(ADAPTER.declaration.tested, key=parse_version) == sorted(
        [*sources.VERSIONS, INSTALLED], key=parse_version
    )

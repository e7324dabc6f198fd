"""Where the public request traces lie, and the two of them that the simulator is measured on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmon.serving import Workload
from kvmon.serving.traces import read_trace


@pytest.fixture(scope="session")
def traces() -> Path:
    """The traces folder: KVMON_TRACES, or `shared/traces` beside the checkout; without it the test skips."""
    beside = Path(__file__).parents[4] / "shared" / "traces"
    folder = Path(os.environ.get("KVMON_TRACES", beside))
    if not folder.is_dir():
        pytest.skip("no request traces here: point KVMON_TRACES at a folder that has mooncake/ and azure-llm-2023/")
    return folder


@pytest.fixture(scope="session")
def mooncake(traces: Path) -> Workload:
    """Mooncake's conversation trace."""
    return read_trace(traces / "mooncake" / "conversation_trace.jsonl")


@pytest.fixture(scope="session")
def azure(traces: Path) -> Workload:
    """Azure's conversation trace of 2023."""
    return read_trace(traces / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv")

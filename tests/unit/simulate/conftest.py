"""The two public request traces that the simulator is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmon.serving import Workload
from kvmon.serving.traces import read_trace


@pytest.fixture(scope="session")
def mooncake(traces: Path) -> Workload:
    """Mooncake's conversation trace."""
    return read_trace(traces / "mooncake" / "conversation_trace.jsonl")


@pytest.fixture(scope="session")
def azure(traces: Path) -> Workload:
    """Azure's conversation trace of 2023."""
    return read_trace(traces / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv")

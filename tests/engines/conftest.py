"""Tests against engines as they are published: where one cannot be imported they fail, they never skip."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvmon
from tests.engines.vllm_alone import make_scheduler

# an engine built in a test process runs there, on a CPU, and talks to nobody
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
    HF_HUB_OFFLINE="1",
)
for _name in [name for name in os.environ if name.startswith("KVMON_")]:
    del os.environ[_name]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes schedulers of vLLM, with few blocks; see `vllm_alone.make_scheduler`. In the end nothing stays attached."""
    yield lambda **options: make_scheduler(tmp_path / "models", **{"blocks": 40, **options})
    kvmon.detach()


@pytest.fixture
def transformers_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Claims and a slice of the audit with every step, quiet engines, and nothing attached afterwards."""
    from kvmon.adapters.transformers import adapter, recorder, steps

    monkeypatch.setattr(steps, "CLAIMS_EVERY_NS", 0)
    monkeypatch.setattr(recorder, "STEPS_A_SLICE", 1)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL + 1)
    yield
    kvmon.detach()
    assert not list(adapter._attached)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What engines warn of is theirs."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))

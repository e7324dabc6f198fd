"""GPU memory through the real NVML bindings, over a driver made for the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import json
from kvmon.exporter.collectors.device import DeviceCollector
from kvmon.exporter.source import View
collector = DeviceCollector(lambda: View([], 0))
for _ in range(2):
    families = list(collector.collect())
print(json.dumps([[*sample.labels.values(), sample.value] for sample in families[0].family.samples]))
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a made-up `libnvidia-ml.so.1`."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a C compiler is missing: run 'apt-get install gcc'")
    place = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", place / "libnvidia-ml.so.1", source], check=True)
    return place


def collected(library: Path | None, mode: str = "") -> list[list[object]]:
    """What a process with this driver serves."""
    environment = {**os.environ, "NVML_STUB": mode}
    if library is not None:
        environment["LD_LIBRARY_PATH"] = str(library)
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert isinstance(result, list)
    return result


def test_every_gpu_has_its_memory_by_state(driver: Path) -> None:
    """Used, reserved and free, by the UUID of the device."""
    states = (("used", 60), ("reserved", 10), ("free", 30))
    assert collected(driver) == [[gpu, state, value] for gpu in ("GPU-1", "GPU-2") for state, value in states]


def test_a_lost_gpu_is_absent_and_the_other_stays(driver: Path) -> None:
    """One device that fell off the bus takes nothing else with it."""
    assert {row[0] for row in collected(driver, "lost")} == {"GPU-1"}


def test_an_old_driver_does_not_know_what_is_reserved(driver: Path) -> None:
    """What cannot be known is absent, not zero."""
    assert collected(driver, "old")[:2] == [["GPU-1", "used", 70], ["GPU-1", "free", 30]]


def test_no_driver_is_no_failure(driver: Path, tmp_path: Path) -> None:
    """A library that finds no driver gives no series and no error."""
    assert collected(driver, "no-driver") == []

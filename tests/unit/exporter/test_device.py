"""GPU memory through the real NVML bindings, over a driver made for the test, and what engines say of the same GPUs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.exporter.collectors.device import DeviceCollector
from kvmon.exporter.nvml import Driver
from kvmon.state.device import STALE_NS
from tests.toy_engine import SECOND, FakeClock, ToyEngine
from tests.unit.exporter.test_page import page_of, series

GIB = 1 << 30

# Two scrapes; the second one is what counts, after a driver had the time to go away.
_PROGRAM = """
import json, sys
from pathlib import Path
from kvmon.exporter.collectors.device import DeviceCollector
from kvmon.exporter.follow import DirectoryFollower
from kvmon.exporter.source import view
from tests.toy_engine import FakeClock
directory, now = sys.argv[1:]
followers = DirectoryFollower(Path(directory), clock=FakeClock(int(now)))
followers.catch_up()
ranks = view(followers.streams)
collector = DeviceCollector(lambda: ranks)
for _ in range(2):
    families = list(collector.collect())
print(json.dumps({
    family.name: [[*labels, value] for _, labels, value in family.rows] for family in families
}))
"""
Found = dict[str, list[list[object]]]


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


def collected(library: Path, mode: str = "", recorded: Path | None = None, now: int = 0) -> Found:
    """What a process with this driver serves of the engines that recorded in a directory, by metric."""
    environment = {**os.environ, "NVML_STUB": mode, "LD_LIBRARY_PATH": str(library)}
    arguments = [str(recorded or library), str(now)]
    command = [sys.executable, "-c", _PROGRAM, *arguments]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=root)
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return {name: rows for name, rows in result.items() if rows}


def memory(found: Found) -> list[list[object]]:
    """What the driver says of memory."""
    return found.get("kvmon_gpu_memory_bytes", [])


def test_every_gpu_has_its_memory_by_state(driver: Path) -> None:
    """Used, reserved and free, by the UUID of the device; without an engine on it nothing is divided."""
    found = collected(driver)
    states = (("used", 60), ("reserved", 10), ("free", 30))
    assert memory(found) == [[gpu, state, value] for gpu in ("GPU-1", "GPU-2") for state, value in states]
    assert not {"kvmon_gpu_used_bytes", "kvmon_gpu_overclaimed_bytes", "kvmon_torch_memory_bytes"} & set(found)


def test_a_lost_gpu_is_absent_and_the_other_stays(driver: Path) -> None:
    """One device that fell off the bus takes nothing else with it."""
    assert {row[0] for row in memory(collected(driver, "lost"))} == {"GPU-1"}


def test_an_old_driver_does_not_know_what_is_reserved(driver: Path) -> None:
    """What cannot be known is absent, not zero."""
    assert memory(collected(driver, "old"))[:2] == [["GPU-1", "used", 70], ["GPU-1", "free", 30]]


def test_the_parts_of_a_partitioned_gpu_are_the_devices(driver: Path) -> None:
    """The whole one does not answer; its parts are named by UUIDs of their own, and an empty place is none."""
    assert list(dict.fromkeys(row[0] for row in memory(collected(driver, "mig")))) == ["GPU-1", "MIG-0", "MIG-2"]


@pytest.mark.parametrize("mode", ["no-driver", "forbidden", "gone"])
def test_no_driver_is_no_failure(driver: Path, mode: str) -> None:
    """A library without a driver, one that permits nothing and one that goes away give no series and no error."""
    assert collected(driver, mode) == {}


@pytest.mark.parametrize(
    ("mode", "processes", "held"),
    [("", [["GPU-1", 2]], [["GPU-1", 90]]), ("secret", [["GPU-1", 2]], []), ("hidden", [], []), ("mute", [], [])],
)
def test_processes_are_counted_as_far_as_they_are_shown(
    driver: Path, mode: str, processes: list[object], held: list[object]
) -> None:
    """Their memory is known when it is of each; none that are shown may be a container's view, and is not zero."""
    found = collected(driver, f"lost {mode}")
    assert found.get("kvmon_gpu_processes", []) == processes
    assert found.get("kvmon_gpu_process_memory_bytes", []) == held
    assert len(memory(found)) == 3


class Engine:
    """An engine that records what torch says of the first GPU: 48 GiB reserved of the 60 that are used."""

    def __init__(self, directory: Path, name: str = "toy") -> None:
        self.directory, self.clock = directory, FakeClock()
        self.toy = ToyEngine(directory, name, clock=self.clock, wall=lambda: 1)
        self.toy.run(3)

    def sample(self, reserved: int = 48, allocated: int = 45, uuid: str = "GPU-1", **more: int | None) -> None:
        """A sample in GiB."""
        said = {"kv_pool": 30, "weights": 12, "largest_free": 1, **more}
        sizes = {key: None if value is None else value * GIB for key, value in said.items()}
        used, free, total = 70 * GIB, 30 * GIB, 100 * GIB
        probe = self.toy.probe
        probe.device_sample(
            0, used, free, total, reserved * GIB, allocated * GIB, 2 * GIB, retries=5, uuid=uuid, **sizes
        )
        self.toy.run(1)

    def served(self, driver: Path, mode: str = "full") -> Found:
        """What is served of it and of the GPUs."""
        return collected(driver, mode, self.directory, self.clock())


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """One that has told nothing of a device yet."""
    return Engine(tmp_path)


def parts(found: Found) -> dict[str, int]:
    """The division of the first GPU in GiB; nothing of another one."""
    rows = found.get("kvmon_gpu_used_bytes", [])
    assert all(row[0] == "GPU-1" for row in rows)
    return {str(row[1]): int(str(row[2]).removesuffix(".0")) // GIB for row in rows}


def test_the_parts_of_a_gpu_sum_to_what_the_driver_says_is_used(driver: Path, engine: Engine) -> None:
    """KV pool, weights, torch's other memory, its slack and the rest: to the byte, on the GPU of that UUID alone."""
    engine.sample()
    found = engine.served(driver)
    assert parts(found) == {"kv_pool": 30, "weights": 12, "torch_other": 3, "torch_slack": 3, "rest": 12}
    used = next(row[2] for row in memory(found) if row[:2] == ["GPU-1", "used"])
    assert sum(int(str(row[2])) for row in found["kvmon_gpu_used_bytes"]) == used == 60 * GIB
    assert found["kvmon_gpu_overclaimed_bytes"] == [["GPU-1", 0]]


def test_what_torch_holds_is_served_by_engine(driver: Path, engine: Engine) -> None:
    """States that sum to what is reserved, the largest free block, and the retries that come before an error."""
    engine.sample()
    found = engine.served(driver)
    states = (("allocated", 45), ("inactive_split", 2), ("cached", 1))
    assert found["kvmon_torch_memory_bytes"] == [["toy", "0", "GPU-1", state, size * GIB] for state, size in states]
    assert found["kvmon_torch_largest_free_block_bytes"] == [["toy", "0", "GPU-1", GIB]]
    assert found["kvmon_torch_allocation_retries_total"] == [["toy", "0", "GPU-1", 5]]


def test_a_difference_is_shown_and_not_clipped(driver: Path, engine: Engine) -> None:
    """More reserved than the driver says is used, more told than allocated: parts are negative, and by how much."""
    engine.sample(reserved=66, allocated=40)
    found = engine.served(driver)
    assert parts(found) == {"kv_pool": 30, "weights": 12, "torch_other": -2, "torch_slack": 26, "rest": -6}
    assert found["kvmon_gpu_overclaimed_bytes"] == [["GPU-1", 8 * GIB]]


def test_two_engines_share_a_gpu(driver: Path, engine: Engine) -> None:
    """Their parts are summed; what one of them does not tell is within torch's other memory."""
    engine.sample()
    other = Engine(engine.directory, "other")
    other.sample(reserved=6, allocated=5, kv_pool=4, weights=None)
    found = engine.served(driver)
    assert parts(found) == {"kv_pool": 34, "torch_other": 16, "torch_slack": 4, "rest": 6}
    assert {row[0] for row in found["kvmon_torch_memory_bytes"]} == {"toy", "other"}


def test_without_a_name_or_a_driver_nothing_is_divided(driver: Path, engine: Engine) -> None:
    """A sample without UUID belongs to no GPU of the driver; without a driver torch's own numbers stand alone."""
    engine.sample(uuid="")
    found = engine.served(driver)
    assert parts(found) == {} and {row[2] for row in found["kvmon_torch_memory_bytes"]} == {"cuda:0"}
    engine.sample(uuid="GPU-1")
    assert set(engine.served(driver, "no-driver")) == {
        "kvmon_torch_memory_bytes",
        "kvmon_torch_largest_free_block_bytes",
        "kvmon_torch_allocation_retries_total",
    }


def test_a_dead_engine_and_a_silent_sampler_say_nothing_of_now(driver: Path, engine: Engine) -> None:
    """Their series vanish as all others do."""
    engine.sample()
    engine.clock.advance(STALE_NS / SECOND + 1)
    engine.toy.run(1)
    assert parts(engine.served(driver)) == {}
    engine.sample()
    assert parts(engine.served(driver))
    engine.toy.close()
    assert set(engine.served(driver)) == set(collected(driver))


def test_torch_series_are_of_the_ranks_budget(engine: Engine) -> None:
    """They are counted with the rank's others, and dropped where there is no room."""
    bare = series(page_of(engine.directory, engine.clock, [DeviceCollector]))["kvmon_series"]
    engine.sample()
    page = page_of(engine.directory, engine.clock, [DeviceCollector])
    assert series(page)["kvmon_series"] - bare == 5
    small = series(page_of(engine.directory, engine.clock, [DeviceCollector], series_budget=2))
    assert (small["kvmon_series"], small["kvmon_series_dropped_total"]) == (2, 3)


@pytest.mark.gpu
def test_torch_and_the_driver_call_a_gpu_by_one_name() -> None:
    """The UUID that an engine tells is one that NVML knows, and the parts sum to what NVML says is used."""
    torch = pytest.importorskip("torch", reason="torch is missing: pip install 'kvmon[engine]'")
    if not torch.cuda.is_available():
        pytest.skip("no GPU here: run on a machine with one")
    from kvmon.engine.device_memory import read_device
    from kvmon.state import DeviceSample
    from kvmon.state.device import overclaimed, parts_of

    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda:0")
    seen = read_device(0, look=True)
    gpu = next(gpu for gpu in Driver().gpus() if gpu.uuid == seen.uuid)
    sample = DeviceSample(
        time_ns=0,
        device=0,
        uuid=seen.uuid,
        used=seen.total - seen.free,
        free=seen.free,
        total=seen.total,
        reserved=seen.reserved,
        allocated=seen.allocated,
        inactive=seen.inactive_split,
        largest_free=seen.largest_free,
        kv_pool=held.nbytes,
        weights=0,
        retries=seen.retries,
        ooms=seen.ooms,
    )
    parts = parts_of(gpu.used, [sample])
    assert sum(parts.values()) == gpu.used and overclaimed(parts) == 0 and parts["rest"] > 0

"""The working half of the exporter: when it is ready and healthy, what it keeps, what it survives."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmon.exporter import sidecar as module
from kvmon.exporter.sidecar import Sidecar
from tests.toy_engine import FakeClock, ToyEngine


def series(sidecar: Sidecar) -> dict[str, float]:
    """Every series of the page with its value."""
    lines = (line for line in sidecar.render(False).decode().splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def settle(sidecar: Sidecar) -> None:
    """Poll until everything has been read."""
    while sidecar.poll() or not sidecar.followers.caught_up:
        pass


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until it is so; a minute covers the compilation of every kernel."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_it_becomes_ready_follows_and_stops(tmp_path: Path) -> None:
    """Not ready before the first pass, healthy while the thread lives, and a page that moves with the engine."""
    engine = ToyEngine(tmp_path)
    engine.run(20)
    sidecar = Sidecar([tmp_path], poll_seconds=0.01)
    assert sidecar.ready() == (False, "compiling or loading kernels")
    assert not sidecar.health()[0]
    sidecar.start()
    wait_for(lambda: sidecar.ready()[0])
    assert sidecar.ready() == (True, "1 streams are followed") and sidecar.health()[0]
    engine.run(5)
    wait_for(lambda: series(sidecar)['kvmon_steps_total{engine="toy",rank="0"}'] == 25)
    sidecar.stop()
    assert not sidecar.health()[0]
    assert (tmp_path / "toy-0" / "exporter.json").exists()


def test_an_empty_directory_is_ready(tmp_path: Path) -> None:
    """There is nothing to read; an engine that comes later is found."""
    sidecar = Sidecar([tmp_path])
    settle(sidecar)
    assert series(sidecar)["kvmon_series"] == 0
    ToyEngine(tmp_path).run(3)
    settle(sidecar)
    assert series(sidecar)['kvmon_steps_total{engine="toy",rank="0"}'] == 3


def test_a_silent_thread_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in a look at the disk is noticed, one that ended with an error too."""
    clock = FakeClock()
    sidecar = Sidecar([tmp_path], poll_seconds=0.01, clock=clock)
    sidecar.start()
    wait_for(lambda: sidecar.ready()[0])
    monkeypatch.setattr(Sidecar, "poll", lambda self: time.sleep(0.05))
    time.sleep(0.05)
    clock.advance(60)
    assert sidecar.health() == (False, "the recordings have not been looked at for 60 s: is the disk hanging?")
    monkeypatch.setattr(Sidecar, "poll", lambda self: 1 / 0)
    wait_for(lambda: "has ended" in sidecar.health()[1])
    sidecar.stop()


def test_a_directory_that_vanishes_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    """The page says that a directory is missing; engines of the other one are served."""
    clock = FakeClock()
    places = [tmp_path / "a", tmp_path / "b"]
    engines = []
    for rank, place in enumerate(places):
        place.mkdir()
        engines.append(ToyEngine(place, rank=rank, clock=clock))
        engines[-1].run(3)
    sidecar = Sidecar(places, clock=clock)
    settle(sidecar)
    shutil.rmtree(places[0])
    engines[1].run(1)
    settle(sidecar)
    found = series(sidecar)
    assert found["kvmon_directories_missing"] == 1
    assert found['kvmon_steps_total{engine="toy",rank="1"}'] == 4
    places[0].mkdir()
    settle(sidecar)
    found = series(sidecar)
    assert found["kvmon_directories_missing"] == 0
    assert 'kvmon_engine_up{engine="toy",rank="0"}' not in found


def test_a_stream_that_cannot_be_read_is_counted_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A recording of a newer format is one warning and a number on the page; the others are served."""
    clock = FakeClock()
    for rank in range(2):
        ToyEngine(tmp_path, rank=rank, clock=clock).run(1)
    with (tmp_path / "toy-0" / "00000001.seg").open("r+b") as file:
        file.seek(8)
        file.write(b"\x63")
    sidecar = Sidecar([tmp_path], clock=clock)
    for _ in range(3):
        sidecar.poll()
    found = series(sidecar)
    assert found["kvmon_streams_unreadable"] == 1
    assert {name for name in found if name.startswith("kvmon_engine_up")} == {'kvmon_engine_up{engine="toy",rank="1"}'}
    assert len(caplog.records) == 1 and "upgrade kvmon" in caplog.text


def test_a_dead_engine_keeps_up_alone(tmp_path: Path) -> None:
    """Its series vanish; a new life of it begins anew."""
    engine = ToyEngine(tmp_path)
    engine.run(50)
    sidecar = Sidecar([tmp_path])
    settle(sidecar)
    assert len([name for name in series(sidecar) if 'engine="toy"' in name]) > 80
    engine.close()
    settle(sidecar)
    found = {name: value for name, value in series(sidecar).items() if 'engine="toy"' in name}
    assert found == {'kvmon_engine_up{engine="toy",rank="0"}': 0}
    again = ToyEngine(tmp_path, seed=2)
    again.run(7)
    settle(sidecar)
    found = series(sidecar)
    assert found['kvmon_engine_up{engine="toy",rank="0"}'] == 1
    assert found['kvmon_steps_total{engine="toy",rank="0"}'] == 7


def test_a_stalled_engine_keeps_its_last_numbers(tmp_path: Path) -> None:
    """Stalled is said beside the last state, and taken back when the engine goes on."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(20)
    sidecar = Sidecar([tmp_path], stall_seconds=5, clock=clock)
    settle(sidecar)
    before = series(sidecar)
    clock.advance(30)
    settle(sidecar)
    found = series(sidecar)
    assert found['kvmon_engine_stalled{engine="toy",rank="0"}'] == 1
    assert found['kvmon_heartbeat_age_seconds{engine="toy",rank="0"}'] > 29
    active = 'kvmon_memory_bytes{engine="toy",pool="kv",rank="0",state="active"}'
    assert found[active] == before[active] > 0
    engine.run(1)
    settle(sidecar)
    assert series(sidecar)['kvmon_engine_stalled{engine="toy",rank="0"}'] == 0


def test_a_stream_is_absent_until_it_has_been_read_once(tmp_path: Path) -> None:
    """Counters in the middle of the first pass would look like a reset to Prometheus."""
    engine = ToyEngine(tmp_path, budget=4 << 20)
    engine.run(500)
    sidecar = Sidecar([tmp_path])
    seen = []
    while not sidecar.followers.caught_up or not seen:
        sidecar.poll()
        seen.append(series(sidecar).get('kvmon_steps_total{engine="toy",rank="0"}'))
    assert len(seen) > 3 and seen[-1] == 500
    assert set(seen[:-1]) <= {None, 500}


def test_memory_does_not_grow_with_the_length_of_a_stream(tmp_path: Path) -> None:
    """After the first stretch a stream many times as long takes no more memory than the machine's noise."""
    engine = ToyEngine(tmp_path, budget=1 << 20)
    sidecar = Sidecar([tmp_path])

    def stretch(steps: int) -> int:
        for _ in range(steps // 50):
            engine.run(50)
            settle(sidecar)
            sidecar.render(True)
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    first = stretch(1500)
    assert stretch(6000) - first < 4 << 10, "KiB more after four times as many events"


def test_what_was_scraped_is_saved_soon(tmp_path: Path) -> None:
    """The next look after a scrape keeps the numbers, so that a killed exporter never says less than it did."""
    clock = FakeClock()
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(50)
    sidecar = Sidecar([tmp_path], clock=clock)
    settle(sidecar)
    state = tmp_path / "toy-0" / "exporter.json"
    assert not state.exists()
    sidecar.render(False)
    sidecar.poll()
    assert state.exists()
    assert module.StateFiles().load(tmp_path / "toy-0", sidecar.followers.streams[0].header.epoch) is not None  # type: ignore[union-attr]

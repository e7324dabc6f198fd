"""Sweeps: every combination, by processes or by Ray, with the answers of one process whoever dies meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from kvmon.errors import ConfigError, InputError, SystemRefused
from kvmon.replay import sweep as sweeping
from kvmon.replay.changes import WhatIf, parse_what_if
from kvmon.replay.recordings import Recording
from kvmon.replay.sweep import Subject, Task, parse_sweep, run_task, sweep
from kvmon.replay.whatif import Comparison
from kvmon.serving.scenarios import find
from tests.unit.replay.replaying import recording_of

RANGES = "block=16,32 pool=90%..110%:10%"


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    """Two captures."""
    return [recording_of(find(name).setups(0)[0][""]) for name in ("reclaim-failed", "capacity")]


@pytest.fixture(scope="module")
def serial(recordings: list[Recording]) -> list[Comparison]:
    """What one process answers."""
    return sweep(recordings, parse_sweep(RANGES), executor="none")


def test_a_sweep_is_every_combination_the_last_key_fastest() -> None:
    """Lists, ranges, both ends included, and signs kept."""
    assert [one.text for one in parse_sweep(RANGES)] == [
        f"block={block},pool={size}%" for block in (16, 32) for size in (90, 100, 110)
    ]
    assert [one.text for one in parse_sweep("pool=-10%..+10%:10% max-seqs=1..9:4")][:4] == [
        "pool=-10%,max-seqs=1",
        "pool=-10%,max-seqs=5",
        "pool=-10%,max-seqs=9",
        "pool=0%,max-seqs=1",
    ]
    assert [one.text for one in parse_sweep("pool=+0%..+10%:5%")] == ["pool=+0%", "pool=+5%", "pool=+10%"]
    assert [one.text for one in parse_sweep("watermark=0..0.3:0.1")][-1] == "watermark=0.3"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "needs a range"),
        ("block", "is no range: write key=value,value"),
        ("block=16,,32", "empty value"),
        ("pool=80%..120%", "write from..to:step"),
        ("pool=80%..120:10%", "write from..to:step"),
        ("pool=120%..80%:10%", "never arrives"),
        ("pool=80%..120%:0%", "never arrives"),
        ("pool=1%..100%:0.001%", "take larger steps"),
        ("max-seqs=1..101:1 token-budget=1..101:1", "more than 10,000 combinations"),
        ("frobs=1,2", "nothing called 'frobs'"),
    ],
)
def test_an_impossible_sweep_is_one_clear_line(text: str, why: str) -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError) as caught:
        parse_sweep(text)
    assert why in str(caught.value)


def test_what_is_asked_is_checked_before_anything_runs(recordings: list[Recording]) -> None:
    """An unknown executor, no workers, a change that is impossible for one of the recordings."""
    with pytest.raises(ConfigError, match="'threads' is no executor: choose processes, ray, none"):
        sweep(recordings, [], executor="threads")
    with pytest.raises(ConfigError, match="0 workers do nothing"):
        sweep(recordings, [], workers=0)
    with pytest.raises(ConfigError, match="prefix-cache=on cannot be answered"):
        sweep(recordings, [parse_what_if("prefix-cache=on")])


def test_processes_answer_as_one_does(recordings: list[Recording], serial: list[Comparison]) -> None:
    """The same comparisons in the same order, and progress that arrives."""
    seen: list[tuple[int, int]] = []
    found = sweep(recordings, parse_sweep(RANGES), workers=2, progress=lambda *at: seen.append(at))
    assert found == serial
    assert seen == [(done, 12) for done in range(1, 13)]
    assert [len(one.answers) for one in found] == [6, 6]


def test_a_worker_that_is_killed_costs_nothing_but_time(recordings: list[Recording], serial: list[Comparison]) -> None:
    """SIGKILL in the middle: what it had in hand is done by another one, and the answers are the same."""
    killed: list[int] = []

    def progress(done: int, of: int) -> None:
        if not killed:
            worker = multiprocessing.active_children()[0]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker.pid)

    assert sweep(recordings, parse_sweep(RANGES), workers=2, progress=progress) == serial
    assert killed and all(child.pid not in killed for child in multiprocessing.active_children())


def _die(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_keep_dying_end_in_one_line(recordings: list[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    """A what-if that kills whoever has it is not tried for ever."""
    monkeypatch.setattr(sweeping, "_work", _die)
    with pytest.raises(SystemRefused, match="3 workers died one after the other, the last on 'block=16'"):
        sweep(recordings[1:], parse_sweep("block=16,32"), workers=2)


def test_an_error_of_a_worker_is_the_error(recordings: list[Recording]) -> None:
    """It comes through as it is, and nobody is left behind."""
    subject = Subject(recordings[0].demand, sweep(recordings[:1], [], executor="none")[0].clock)
    with pytest.raises(ConfigError, match="impossible"):
        list(sweeping._by_processes([subject], [Task(0, WhatIf("block=7", {"block_size": 7}))] * 2, 2))
    assert not multiprocessing.active_children()


def test_without_ray_one_line_says_what_to_install(
    recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed: pip install 'kvmon\[scale\]'"):
        sweep(recordings, parse_sweep("block=16"), executor="ray", workers=2)


def _slow(subjects: list[Subject], task: Task) -> Any:
    time.sleep(0.4)
    return run_task(subjects, task)


@pytest.mark.slow  # Ray takes ten seconds to start
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_ray_answers_as_one_process_does_and_survives_a_killed_worker(
    recordings: list[Recording], serial: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local Ray, one of whose workers is killed while it works."""
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'kvmon[scale]'")
    monkeypatch.setattr(sweeping, "run_task", _slow)
    killed: list[int] = []
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.is_set() and not killed:
            for pid in _ray_workers():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
            time.sleep(0.05)

    def progress(done: int, of: int) -> None:
        if done == 2:
            threading.Thread(target=kill_one).start()

    try:
        found = sweep(recordings, parse_sweep(RANGES), executor="ray", workers=2, progress=progress)
    finally:
        stop.set()
    assert found == serial and killed
    import ray

    assert not ray.is_initialized()


def _ray_workers() -> list[int]:
    """Workers of a Ray of ours that run a task: their title says which."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                title = file.read()
        except (OSError, ValueError):
            continue
        if entry.isdigit() and title.startswith(b"ray::_slow"):
            found.append(int(entry))
    return found


def test_recordings_that_cannot_be_replayed_stop_a_sweep(recordings: list[Recording]) -> None:
    """The reason is theirs."""
    bare = replace(recordings[0], demand=replace(recordings[0].demand, missing="it holds no request"))
    with pytest.raises(InputError, match="it holds no request"):
        sweep([bare], parse_sweep("block=16"))

"""The parent's side of the demo's engines: a process each, led through the same time in step.

Invariant: the engines are never further apart than one slice of time; the slower one sets the pace where it cannot keep
up. However it ends, the processes end with their `with` block.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmon.cli.demo_pace import Pace
from kvmon.errors import SystemRefused

__all__ = ["EngineProcesses"]

_STOP_SECONDS = 10.0
_SLICE_SECONDS = 0.1  # of real time, at full speed
_LONGEST_SLICE_NS = 500_000_000  # of the engines' time, so that they hear soon that they are wanted no more


class EngineProcesses:
    """The engines `names` of the demo of `scenario`, or of its own traffic, which lasts for `traffic_seconds`.

    `now_ns` is how far all of them are in their time, `copied` the bytes that each has copied, by why. Raises
    SystemRefused where a process cannot run.
    """

    def __init__(
        self, directory: Path, scenario: str | None, seed: int, traffic_seconds: float, names: Sequence[str]
    ) -> None:
        self.now_ns = 0
        self.copied: dict[str, dict[str, int]] = {name: {} for name in names}
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        plan = [str(directory), scenario or "-", str(seed), repr(traffic_seconds)]
        self._processes = {name: _Process([*plan, name]) for name in names}
        self._cold = list(self._processes.values())
        self._cold[0].tell("warm")

    def __enter__(self) -> EngineProcesses:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Wait until all could begin. The first one compiles, the others find what it left."""
        while self._cold:
            first = self._cold.pop(0)
            if first.hear() != "ready":
                raise SystemRefused(first.last_words())
            for process in self._cold[:1]:
                process.tell("warm")

    def go(self, pace: Pace) -> None:
        """Let them begin."""
        self._thread = threading.Thread(target=self._lead, args=(pace,), name="kvmon-demo-engines", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether they are still at it.

        Raises SystemRefused when one failed.
        """
        running = self._thread is not None and self._thread.is_alive()
        if self._failure is not None:  # looked at last: it is there before the thread ends
            raise SystemRefused(self._failure)
        return running

    def stop(self) -> None:
        """End the processes: by the end of their input, and by force if that is not enough."""
        self._stopping.set()
        if self._thread is not None:
            with suppress(RuntimeError):  # a signal came while it was being started: it ends with its engines
                self._thread.join(_STOP_SECONDS)
        for process in self._processes.values():
            process.close_input()
        for process in self._processes.values():
            process.end()

    def _lead(self, pace: Pace) -> None:
        """Give every engine the next slice, hear from every engine, wait for real time to come near."""
        began = time.monotonic()
        serving = dict(self._processes)
        end = round(pace.seconds * 1e9)
        size = max(1, min(_LONGEST_SLICE_NS, round(pace.speed * _SLICE_SECONDS * 1e9)))
        while serving and self.now_ns < end and not self._stopping.is_set():
            until = min(self.now_ns + size, end)
            for process in serving.values():
                process.tell(str(until))
            for name, process in list(serving.items()):
                heard = process.hear()
                if not heard:
                    self._failure = process.last_words()
                    return
                report: dict[str, Any] = json.loads(heard)
                self.copied[name] = report["copied"]
                if report["over"]:
                    del serving[name]
            self.now_ns = until
            ahead = self.now_ns / 1e9 / pace.speed - (time.monotonic() - began)
            if ahead > 0:
                self._stopping.wait(ahead)


class _Process:
    """One engine's process, and the lines to and from it."""

    def __init__(self, arguments: list[str]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "kvmon.cli.demo_engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Write a line; one that has ended does not hear it."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.write(f"{line}\n")
                self._popen.stdin.flush()

    def hear(self) -> str:
        """The next line; empty when it has ended, in the middle of one too."""
        line = "" if self._popen.stdout is None else self._popen.stdout.readline()
        return line.strip() if line.endswith("\n") else ""

    def close_input(self) -> None:
        """Say that nothing more is wanted."""
        if self._popen.stdin is not None:
            with suppress(OSError):
                self._popen.stdin.close()

    def end(self) -> None:
        """Wait for its end, or make it."""
        try:
            self._popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def last_words(self) -> str:
        """Why it ended, in a line."""
        words = "" if self._popen.stderr is None else self._popen.stderr.read().strip()
        return f"an engine of the demo ended: {words.splitlines()[-1] if words else 'no reason was given'}"

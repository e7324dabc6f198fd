"""`kvmon engine` in processes of their own, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai

from tests.servers import fetch, wait_for

ROOT = Path(__file__).parents[2]
#: What an answer is asked for with, so that it is always the same.
SAMPLING: dict[str, Any] = {"max_tokens": 24, "seed": 7, "temperature": 1.0}


class Server:
    """A server that is ready; `root` is its address without a path."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        wait_for(self._ready, f"the server is not ready: {log.read_text()}")
        self.root = self.ready_line().split(" at ")[1].removesuffix("/v1")
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key="none", max_retries=0)

    def ready_line(self) -> str:
        """The line that says where it serves."""
        return next((line for line in self.log.read_text().splitlines() if line.startswith("kvmon: serving")), "")

    def health(self) -> dict[str, Any]:
        """What /health says."""
        return dict(json.loads(fetch(f"{self.root}/health")))

    def until_idle(self) -> None:
        """Wait until nothing runs or waits."""
        wait_for(lambda: (self.health()["running"], self.health()["waiting"]) == (0, 0), f"busy: {self.health()}", 20)

    def end(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Send a signal; the exit code. Raises TimeoutExpired where it does not end."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.ready_line().endswith("/v1")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "KVMON_DIR"}


@contextlib.contextmanager
def engine_server(place: Path, *options: str) -> Iterator[Server]:
    """A server of its own; killed at the end of the block where it still lives."""
    log = place / "server.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvmon", "engine", "serve", "--port", "0", "--threads", "1", *options],
            stderr=stderr,
            cwd=ROOT,
            env=_environment(),
        )
    try:
        yield Server(process, log)
    finally:
        process.kill()
        process.wait()


def engine_run(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run `kvmon engine run`."""
    command = [sys.executable, "-m", "kvmon", "engine", "run", *arguments]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env=_environment()
    )

"""`vllm serve` and kvmon's exporter as processes of their own, as users run them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.engines.tiny_models import write_llama

__all__ = ["completion", "engine_cores", "exporter", "samples", "serve", "wait_for"]

ROOT = Path(__file__).parents[2]
_START_SECONDS = 180.0


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(what: str, done: Any, seconds: float, log: Path) -> None:
    """Until `done()` is true; fails with the end of the log."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if done():
                return
        time.sleep(0.2)
    raise AssertionError(f"no {what} after {seconds} s:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def _process(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        for sign, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)


@contextlib.contextmanager
def serve(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """A server with a tiny model; its address, its log and its process."""
    info = folder / "path" / "vllm-0.32.0+cpu.dist-info"  # what calls the installed build one for CPUs
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n", encoding="utf-8")
    port, log = free_port(), folder / "vllm.log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(write_llama(folder)), "--load-format", "dummy",
        "--skip-tokenizer-init", "--enforce-eager", "--max-model-len", "512", "--block-size", "32", "--port", str(port),
        "--host", "127.0.0.1", "--num-gpu-blocks-override", "24", *options,
    ]  # fmt: skip
    wanted = {
        **os.environ,
        "PYTHONPATH": f"{folder / 'path'}{os.pathsep}{ROOT}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        **environment,
    }
    with _process(command, log, wanted) as process:
        address = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
                return bool(answer.status == 200)

        wait_for("server", ready, _START_SECONDS, log)
        yield address, log, process


@contextlib.contextmanager
def exporter(directory: Path, folder: Path) -> Iterator[str]:
    """The sidecar; the address of its metrics."""
    port, log = free_port(), folder / "exporter.log"
    command = [sys.executable, "-m", "kvmon", "exporter", "--dir", str(directory)]
    command += ["--web.listen-address", f"127.0.0.1:{port}"]
    with _process(command, log, dict(os.environ)):
        address = f"http://127.0.0.1:{port}/metrics"
        wait_for("exporter", lambda: bool(samples(address)), 120, log)
        yield address


def samples(address: str) -> dict[str, float]:
    """Every sample of a scrape, by its name with labels."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}


def completion(address: str, prompt: list[int], tokens: int) -> dict[str, Any]:
    """The answer to a prompt of token ids."""
    with urllib.request.urlopen(f"{address}/v1/models", timeout=10) as answer:
        model = json.loads(answer.read())["data"][0]["id"]
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "detokenize": False, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def engine_cores(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes of this server that hold a scheduler."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                if b"EngineCore" in title and os.getpgid(int(entry.name)) == process.pid:
                    found.append(int(entry.name))
    return sorted(found)

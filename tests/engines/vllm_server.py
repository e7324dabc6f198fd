"""`vllm serve` and kvmon's exporter as processes of their own, as users run them.

    python -m tests.engines.vllm_server fork|spawn FOLDER

prints what an engine answers whose core is another process, forked or spawned.
"""

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

__all__ = ["completion", "engine_cores", "exporter", "holders", "samples", "serve", "wait_for"]

ROOT = Path(__file__).parents[2]
_START_SECONDS = 300.0


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
    except BaseException:
        print(f"{log}:\n{log.read_text(errors='replace')[-3000:]}")  # pytest shows it with the failure
        raise
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


def _processes(of: subprocess.Popen[bytes]) -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == of.pid:
                yield entry


def engine_cores(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes of this server that hold a scheduler."""
    found = []
    for entry in _processes(process):
        with contextlib.suppress(OSError):
            if b"EngineCore" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def holders(process: subprocess.Popen[bytes], directory: Path) -> list[int]:
    """Processes of this server that have a file of this directory open or mapped."""
    found = []
    for entry in _processes(process):
        with contextlib.suppress(OSError):
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]
            if any(f"{directory}/" in held for held in (*links, (entry / "maps").read_text())):
                found.append(int(entry.name))
    return sorted(found)


def main() -> None:
    """Serve some requests at once with greedy sampling."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    config = EngineArgs(
        model=str(write_llama(Path(sys.argv[2]))),
        load_format="dummy",
        skip_tokenizer_init=True,
        enforce_eager=True,
        num_gpu_blocks_override=24,
        max_model_len=512,
        block_size=32,
        max_num_seqs=16,
        seed=1,
    ).create_engine_config()
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = sys.argv[1]  # on a CPU the configuration has just said spawn
    engine = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=True)
    for number in range(24):
        params = SamplingParams(max_tokens=40 + 5 * (number % 7), temperature=0.0, ignore_eos=True, detokenize=False)
        prompt = [(at * 7 + number % 3 * 91) % 500 + 3 for at in range(40 + 9 * (number % 11))]
        engine.add_request(f"r{number}", {"prompt_token_ids": prompt}, params)
    answers = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers[output.request_id] = list(output.outputs[0].token_ids)
    print(json.dumps({"answers": answers}, sort_keys=True), flush=True)


if __name__ == "__main__":
    main()

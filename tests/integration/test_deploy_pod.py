"""The pod of `deploy/kubernetes`, played with processes: an engine and the sidecar as two users that share a group,
each with a read-only root, no home, no capability, and a process id space of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from numba.core.caching import UserProvidedCacheLocator

import kvmon
from tests.servers import fetch, free_port, wait_for
from tests.unit.deploy.dockerfile import ROOT, final_environment, read_stages
from tests.unit.deploy.pod import Pod, container, pod_is_possible

DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"

# The engine of the base's Deployment: its own probe, as the variables of the container say.
ENGINE = """
import functools, os, sys
sys.path.insert(0, sys.argv.pop(1))
from kvmon.adapters.settings import Settings
from tests import toy_engine
settings = Settings.from_environment(os.environ)
toy_engine.StreamProbe = functools.partial(toy_engine.StreamProbe, group_readable=settings.group_readable)
sys.argv[1:] = [str(settings.directory), "toy", "0", "--budget", str(settings.budget)]
toy_engine.main()
"""


def kernels(place: Path) -> dict[str, str]:
    """The variables of the image, and compiled kernels that nobody in the pod can write to."""
    subprocess.run([sys.executable, "-m", "kvmon.exporter.warmup"], check=True, cwd=ROOT)
    for file in Path(kvmon.__file__).parent.rglob("__pycache__/*.nb[ic]"):
        source = file.parents[1] / "any.py"
        target = place / "kernels" / UserProvidedCacheLocator.get_suitable_cache_subpath(str(source))
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return {
        "NUMBA_CACHE_DIR": str(place / "kernels"),
        "NUMBA_CACHE_LOCATOR_CLASSES": "prebuilt_kernels.Prebuilt",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'deploy' / 'docker'}",
        "PATH": "/usr/bin:/bin",
    }


def url(port: int, probe: str) -> str:
    """What the kubelet asks of the sidecar."""
    return f"http://127.0.0.1:{port}{container('kvmon')[probe]['httpGet']['path']}"


def arguments(port: int) -> list[str]:
    """The sidecar's, but on a port of this machine's loopback."""
    return [word.replace(":10490", f"127.0.0.1:{port}") for word in container("kvmon")["args"]]


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    """The volumes, on a file system in memory as the manifest has it."""
    if why := pod_is_possible():
        pytest.skip(f"no pod can be played: {why}")
    place = Path(tempfile.mkdtemp(prefix="kvmon-pod-", dir="/dev/shm"))
    place.chmod(0o755)
    try:
        yield Pod(place)
    finally:
        shutil.rmtree(place)


def samples(port: int) -> dict[str, float]:
    """Every sample of a scrape."""
    lines = fetch(f"http://127.0.0.1:{port}/metrics").decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}


def test_engine_and_sidecar_meet_in_the_group_and_nowhere_else(pod: Pod) -> None:
    """The sidecar reads what the engine records, sees its death across pid spaces, keeps a capture, writes nowhere."""
    image = kernels(pod.place)
    port = free_port()
    program = [sys.executable, "-m", "kvmon"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pod.running("kvmon", [*program, *arguments(port)], **image))
        wait_for(lambda: fetch(url(port, "livenessProbe")) != b"", "it is not alive", 60)
        engine = stack.enter_context(
            pod.running("vllm", [sys.executable, "-c", ENGINE, str(ROOT)], **{**image, "PYTHONPATH": ""})
        )
        wait_for(lambda: "ready" in pod.said("vllm"), "the engine does not record", 60)
        wait_for(lambda: fetch(url(port, "readinessProbe")) != b"", "the sidecar is not ready", 60)
        up = 'kvmon_engine_up{engine="toy",rank="0"}'
        wait_for(lambda: any(name.startswith("kvmon_memory_bytes") for name in samples(port)), "no numbers", 30)
        assert samples(port)[up] == 1

        engine_user, user = (container(name)["securityContext"]["runAsUser"] for name in ("vllm", "kvmon"))
        segment = next(pod.volume("recordings").glob("toy-0/*.seg"))
        assert (segment.stat().st_uid, segment.stat().st_mode & 0o777) == (engine_user, 0o640)
        refused = pod.run("kvmon", ["sh", "-c", "touch /here; touch /run/kvmon/toy-0/here; id -u"], **image)
        assert refused.stdout == f"{user}\n" != f"{engine_user}\n"
        assert refused.stderr.count("Read-only file system") == 1 and refused.stderr.count("Permission denied") == 1

        engine.kill()
        engine.wait()
        wait_for(lambda: [name for name in samples(port) if 'engine="toy"' in name] == [up], "it looks alive", 20)
        assert samples(port)[up] == 0

        kept = pod.run("kvmon", [*program, "capture", "/run/kvmon", "-o", "/var/lib/kvmon/kept.kvmon"], **image)
        assert kept.returncode == 0, kept.stderr
    assert not re.search("warning|error", pod.said("kvmon")), pod.said("kvmon")


def test_the_image_is_ready_in_seconds(pod: Pod) -> None:
    """What the Dockerfile makes starts on its read-only root with the kernels that were compiled into it."""
    made = os.environ.get("KVMON_DEPLOY_IMAGE")
    if not made:
        command = f"python -m tests.unit.deploy.dockerfile {DOCKERFILE.relative_to(ROOT)} FOLDER"
        pytest.skip(
            f"takes minutes to build: '{command}' with an empty FOLDER below /dev/shm, KVMON_DEPLOY_IMAGE=FOLDER"
        )
    place = pod.place / "image"
    place.mkdir(mode=0o755)
    stage = read_stages(DOCKERFILE)[-1]
    image = Pod(place, [Path(made) / "stage-1" / "files", Path(made) / "base"])
    port, variables = free_port(), final_environment(stage)
    began = time.monotonic()
    with image.running("kvmon", [*json.loads(stage.only("ENTRYPOINT")), *arguments(port)], **variables):
        wait_for(lambda: fetch(url(port, "readinessProbe")) != b"", "the sidecar is not ready")
        assert time.monotonic() - began < 10
    probe = image.run("kvmon-probe", container("kvmon-probe")["command"], **variables)
    assert probe.returncode == 0, probe.stderr
    assert (image.volume("kvmon-probe") / "kvmon" / "probe").is_dir()
    assert list(image.volume("kvmon-probe").glob("kvmon-*.dist-info/entry_points.txt"))

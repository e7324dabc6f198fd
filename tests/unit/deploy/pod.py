"""The containers of `deploy/kubernetes/base` as processes here: their users, groups, arguments, variables, a root file
system that is read-only, and a process id space, a mount space and capabilities (none) of their own.

Needs root, and a kernel that lets root mount. What a pod has and this has not: images, limits, a network of its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.unit.deploy.dockerfile import ROOT, base_layer, mounted

__all__ = ["Pod", "container", "pod_is_possible", "pod_spec"]

KUBERNETES = ROOT / "deploy" / "kubernetes"


def pod_spec() -> dict[str, Any]:
    """The pod of the base's Deployment."""
    deployment = yaml.safe_load((KUBERNETES / "base" / "deployment.yaml").read_text(encoding="utf-8"))
    spec = deployment["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container(name: str) -> dict[str, Any]:
    """One of its containers."""
    spec = pod_spec()
    (found,) = [one for one in [*spec["initContainers"], *spec["containers"]] if one["name"] == name]
    assert isinstance(found, dict)
    return found


def pod_is_possible() -> str:
    """Why no pod can be played here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root, to be several users"
    done = subprocess.run(mounted([Path("/dev/shm")], None, ["true"]), capture_output=True, text=True)
    return "" if done.returncode == 0 else f"nobody can mount here: {done.stderr.strip()[-200:]}"


class Pod:
    """Volumes in `place` (on a tmpfs), and containers that run until the end of a block.

    `layers` stand for the images, topmost first; without them everybody sees this machine's root.
    """

    def __init__(self, place: Path, layers: list[Path] | None = None) -> None:
        spec = pod_spec()
        self.place = place
        self.group = int(spec["securityContext"]["fsGroup"])
        for volume in spec["volumes"]:
            # as the kubelet makes an emptyDir with an fsGroup
            path = self.volume(volume["name"])
            path.mkdir(parents=True)
            os.chown(path, 0, self.group)
            path.chmod(0o2777)
        mount_points = place / "mount-points"
        for one in [*spec["initContainers"], *spec["containers"]]:
            for mount in one["volumeMounts"]:
                (mount_points / mount["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.layers = [mount_points, *(layers or [base_layer(place)])]

    def volume(self, name: str) -> Path:
        """Where a volume is on this machine."""
        return self.place / "volumes" / name

    def command(self, name: str, command: list[str], variables: dict[str, str]) -> list[str]:
        """The command line that runs `command` as container `name`, with its variables and more."""
        described, shared = container(name), pod_spec()["securityContext"]
        security = {**shared, **described["securityContext"]}
        mounts = ['mount -t proc proc "$root/proc"']
        for one in described["volumeMounts"]:
            how = "-o ro,bind" if one.get("readOnly") else "--bind"
            mounts.append(f'mount {how} {shlex.quote(str(self.volume(one["name"])))} "$root{one["mountPath"]}"')
        env = {**{one["name"]: one["value"] for one in described.get("env", [])}, "HOSTNAME": "pod-0", **variables}
        user = ["setpriv", f"--reuid={security['runAsUser']}", f"--regid={security['runAsGroup']}"]
        user += [f"--groups={self.group}", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        inner = shlex.join([*user, "env", "-i", *(f"{key}={value}" for key, value in env.items()), *command])
        script = ["bash", "-euc", f'exec chroot "$root" {inner}']
        whole = mounted(self.layers, None, script, "\n".join([*mounts, "export root"]))
        return ["unshare", "--pid", "--fork", "--kill-child", *whole]

    @contextlib.contextmanager
    def running(self, name: str, command: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
        """A container, killed at the end of the block; what it says goes to `NAME.log` in the pod's place."""
        with (self.place / f"{name}.log").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                self.command(name, command, variables), stdout=log, stderr=subprocess.STDOUT, text=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def said(self, name: str) -> str:
        """What a container has said so far."""
        return (self.place / f"{name}.log").read_text(encoding="utf-8")

    def run(self, name: str, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        """A command in a container, to its end, as `kubectl exec` runs it."""
        return subprocess.run(self.command(name, command, variables), capture_output=True, text=True, timeout=120)

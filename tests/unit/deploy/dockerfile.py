"""A Dockerfile, read and carried out where no container engine is: each stage is an overlay over this machine's root.

    python -m tests.unit.deploy.dockerfile deploy/docker/Dockerfile FOLDER

runs every step of every stage as root in a mount namespace of its own and leaves the last stage in FOLDER, which has
to lie on a file system of its own (such as /dev/shm). This machine's root stands for the base image, so a step may use
what the base image lacks: it proves the commands, not the base. Knows the instructions that the Dockerfiles here use.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_ANY_FOLDER = "/media"

__all__ = ["Instruction", "Stage", "build", "final_environment", "is_left_out", "mounted", "read_stages"]

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Instruction:
    """One instruction and its text, continuation lines joined."""

    name: str
    text: str


@dataclass
class Stage:
    """What stands below one FROM."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def only(self, name: str) -> str:
        """The text of the instruction that may stand once."""
        (found,) = [one.text for one in self.instructions if one.name == name]
        return found

    def all(self, name: str) -> list[str]:
        """The texts of an instruction, in order."""
        return [one.text for one in self.instructions if one.name == name]


def read_stages(file: Path) -> list[Stage]:
    """The stages of a Dockerfile, in order."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not re.match(r"\s*(#|$)", line)]
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, text = line.partition(" ")
        if name == "FROM":
            stages.append(Stage(text.partition(" AS ")[2]))
        elif name != "ARG":
            stages[-1].instructions.append(Instruction(name, text.strip()))
    return stages


def final_environment(stage: Stage) -> dict[str, str]:
    """The variables of a stage; PATH goes in front of a usual one."""
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    for text in stage.all("ENV"):
        for word in shlex.split(text):
            name, _, value = word.partition("=")
            variables[name] = value.replace("$PATH", variables["PATH"])
    return variables


def mounted(layers: list[Path], upper: Path | None, command: list[str], mounts: str = "") -> list[str]:
    """A command line that runs `command` with the overlay as its root; without `upper` the root is read-only.

    `mounts` is more shell that may mount things below "$root" first.
    """
    lower = ":".join([*(str(layer) for layer in layers), "/"])
    write = "" if upper is None else f",upperdir={upper / 'files'},workdir={upper / 'work'}"
    script = f"""
        root={_ANY_FOLDER}  # covered in this mount namespace alone
        mount -t overlay overlay -o {shlex.quote(f"lowerdir={lower}{write}")} "$root"
        mount --bind /proc "$root/proc" && mount --rbind /dev "$root/dev"
        {mounts}
        "$@"
    """
    return ["unshare", "--mount", "--propagation", "private", "bash", "-euc", script, "kvmon", *command]


def base_layer(folder: Path) -> Path:
    """What makes this machine's root a base image: `python`, and a way to it and to the checkout for every user."""
    layer = folder / "base"
    links = layer / "usr/local/bin"
    links.mkdir(parents=True)
    interpreter = Path(sys.executable).resolve()
    for name in ("python", "python3"):  # no link: an environment that is made with one does not find its library
        (links / name).write_text(f'#!/bin/sh\nexec {interpreter} "$@"\n', encoding="utf-8")
        (links / name).chmod(0o755)
    for ancestor in (*interpreter.parents, ROOT, *ROOT.parents):
        if ancestor.stat().st_mode & 0o5 != 0o5:
            (layer / ancestor.relative_to("/")).mkdir(parents=True, exist_ok=True)
    return layer


def is_left_out(path: str) -> bool:
    """Whether .dockerignore keeps a path of the checkout out of the context."""
    out = False
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        keeps = pattern.startswith("!")
        if pattern and not pattern.startswith("#"):
            regex = re.escape(pattern.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
            out = not keeps if re.fullmatch(f"{regex}(/.*)?", path) else out
    return out


def _copy(text: str, folder: Path, layer: Path, cwd: str) -> None:
    words = shlex.split(text)
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = folder / words.pop(0).partition("=")[2] / "files"
    *sources, target = words
    into = layer / (target if target.startswith("/") else os.path.join(cwd, target)).lstrip("/")
    for source in sources:
        for found in sorted(source_root.glob(source.lstrip("/"))):
            if source_root == ROOT and is_left_out(str(found.relative_to(ROOT))):
                raise FileNotFoundError(f".dockerignore keeps {found} out of the context")
            place = into / found.name if target.endswith("/") else into
            if found.is_dir():

                def left_out(where: str, names: list[str]) -> set[str]:
                    inside = Path(where)
                    return {
                        name
                        for name in names
                        if inside.is_relative_to(ROOT) and is_left_out(str((inside / name).relative_to(ROOT)))
                    }

                shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=left_out)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, place)


def build(file: Path, folder: Path) -> list[Path]:
    """Carry out every stage; the layers of the last one, topmost first. CalledProcessError where a step fails."""
    base = base_layer(folder)
    layers: list[Path] = []
    for number, stage in enumerate(read_stages(file)):
        upper = folder / (stage.name or f"stage-{number}")
        layer = upper / "files"
        layer.mkdir(parents=True)
        (upper / "work").mkdir()
        shell, cwd, variables = ["/bin/sh", "-c"], "/", {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        variables |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_INDEX", "PIP_CERT"))}
        for one in stage.instructions:
            if one.name == "SHELL":
                shell = json.loads(one.text)
            elif one.name == "WORKDIR":
                cwd = one.text
                (layer / cwd.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif one.name == "ENV":
                variables |= final_environment(Stage("", [one])) | {"PATH": variables["PATH"]}
            elif one.name == "COPY":
                _copy(one.text, folder, layer, cwd)
            elif one.name == "RUN":
                began = time.monotonic()
                set_ = [f"{name}={value}" for name, value in variables.items()]
                step = ["chroot", "$root", "env", "-i", f"--chdir={cwd}", *set_, *shell, one.text]
                run = " ".join('"$root"' if word == "$root" else shlex.quote(word) for word in step)
                subprocess.run(
                    mounted([base], upper, ["bash", "-euc", f"root=$root; {run}"], "export root"), check=True
                )
                print(f"{time.monotonic() - began:6.1f} s  RUN {one.text[:90]}", flush=True)
        layers = [layer, base]
    return layers


if __name__ == "__main__":
    for path in build(Path(sys.argv[1]), Path(sys.argv[2])):
        print(path)

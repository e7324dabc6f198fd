"""The units: systemd takes them, they lock the exporter up, and all files mean the same directory and group."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.adapters.settings import Settings
from tests.unit.deploy.files import SYSTEMD, parsed

UNITS = ["kvmon-exporter.service", "kvmon-textfile.service"]
PROGRAM = "/opt/kvmon/bin/kvmon"


def values(file: Path, key: str) -> list[str]:
    """Every value of a key of a unit."""
    return re.findall(rf"^{key}=(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)


def environment() -> dict[str, str]:
    """What the environment file sets."""
    lines = (SYSTEMD / "kvmon-exporter.env").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies that start a program which is there, with the engine's unit that the drop-in is for."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing: apt-get install systemd")
    for path in (*SYSTEMD.glob("*.service"), *SYSTEMD.glob("*.timer")):
        text = path.read_text(encoding="utf-8").replace(PROGRAM, sys.executable)
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    shutil.copytree(SYSTEMD / "vllm.service.d", tmp_path / "vllm.service.d")
    (tmp_path / "vllm.service").write_text(f"[Service]\nExecStart={sys.executable}\nUser=vllm\n", encoding="utf-8")
    return tmp_path


def test_systemd_takes_every_unit(units: Path) -> None:
    """`systemd-analyze verify` says nothing: no unknown key, no bad value."""
    names = [str(path) for path in units.iterdir() if path.is_file()]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if str(units) in line]) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_units_are_exposed_little(units: Path, name: str) -> None:
    """`systemd-analyze security`: at most 2 of 10, without what a program that compiles and talks cannot give up."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(units / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_units_start_a_command_of_kvmon(name: str) -> None:
    """With the environment file, and without: its options are the exporter's, its directory the engine's."""
    (start,) = values(SYSTEMD / name, "ExecStart")
    (state,) = values(SYSTEMD / name, "StateDirectory")
    for options in (environment()["KVMON_EXPORTER_OPTIONS"], ""):
        line = start.replace("${STATE_DIRECTORY}", f"/var/lib/{state}").replace("$KVMON_EXPORTER_OPTIONS", options)
        program, *words = shlex.split(line)
        assert program == PROGRAM and "$" not in line
        assert parsed(words)["state_dir"] == f"/var/lib/{state}"
    (cache,) = values(SYSTEMD / name, "CacheDirectory")
    assert f"NUMBA_CACHE_DIR=%C/{cache}" in values(SYSTEMD / name, "Environment")[0].split()
    assert values(SYSTEMD / name, "ProtectSystem") == ["strict"] and values(SYSTEMD / name, "MemoryMax")


def test_all_files_mean_one_directory_and_one_group() -> None:
    """tmpfiles.d makes what the engine's drop-in names, for the group that the exporter is in."""
    (made,) = [line.split() for line in (SYSTEMD / "kvmon.conf").read_text("utf-8").splitlines() if line[:2] == "d "]
    kind, directory, mode, user, group, age = made
    assert (kind, mode, user, age) == ("d", "0750", "vllm", "-")
    (said,) = values(SYSTEMD / "vllm.service.d" / "kvmon.conf", "Environment")
    settings = Settings.from_environment(dict(word.split("=", 1) for word in said.split()))
    assert settings is not None and settings.group_readable
    assert str(settings.directory) == directory == environment()["KVMON_DIR"]
    assert all(values(SYSTEMD / name, "SupplementaryGroups") == [group] for name in UNITS)
    assert values(SYSTEMD / "vllm.service.d" / "kvmon.conf", "ReadWritePaths") == [f"-{directory}"]

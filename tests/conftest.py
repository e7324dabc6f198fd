"""What every test may use: hypothesis profiles, the Prometheus binaries, the public request traces."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

# Compiling a kernel takes a second once, so a deadline an example would only report that. CI repeats its examples.
settings.register_profile("kvmon", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "kvmon")


class PrometheusBinaries(NamedTuple):
    """Paths of Debian's `prometheus` and `promtool`."""

    prometheus: Path
    promtool: Path


@pytest.fixture(scope="session")
def prometheus_binaries() -> PrometheusBinaries:
    """The installed or unpacked Prometheus; without it the test skips, and fails where CI is set."""
    unpacked = Path(__file__).parents[1] / ".venv" / "debian" / "usr" / "bin"
    search = os.pathsep.join([os.environ.get("PATH", ""), str(unpacked)])
    prometheus, promtool = (shutil.which(name, path=search) for name in ("prometheus", "promtool"))
    if prometheus is None or promtool is None:
        message = "prometheus and promtool are missing: run 'apt-get install prometheus' or 'make test'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return PrometheusBinaries(Path(prometheus), Path(promtool))


class AlertmanagerBinary(NamedTuple):
    """Path of Debian's Alertmanager, and the folder that it has to be started in."""

    path: Path
    folder: Path


@pytest.fixture(scope="session")
def alertmanager_binary(tmp_path_factory: pytest.TempPathFactory) -> AlertmanagerBinary:
    """The installed or unpacked Alertmanager; without it the test skips, and fails where CI is set."""
    unpacked = Path(__file__).parents[1] / ".venv" / "debian" / "usr"
    search = os.pathsep.join([os.environ.get("PATH", ""), str(unpacked / "bin")])
    found = shutil.which("prometheus-alertmanager", path=search)
    if found is None:
        message = "prometheus-alertmanager is missing: run 'apt-get install prometheus-alertmanager' or 'make test'"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    templates = Path("/usr/share/prometheus/alertmanager")
    if templates.is_dir():
        return AlertmanagerBinary(Path(found), Path.cwd())
    # Debian has put that path into the program. One that is unpacked elsewhere gets another one of the same length,
    # which is the folder that it is started in.
    program, here = Path(found).read_bytes(), b"." + b"/" * (len(str(templates)) - 1)
    copy = tmp_path_factory.mktemp("alertmanager") / "prometheus-alertmanager"
    copy.write_bytes(program.replace(str(templates).encode(), here))
    copy.chmod(0o700)
    return AlertmanagerBinary(copy, unpacked / "share" / "prometheus" / "alertmanager")


@pytest.fixture(scope="session")
def traces() -> Path:
    """The traces folder: KVMON_TRACES, or `shared/traces` beside the checkout; without it the test skips."""
    beside = Path(__file__).parents[2] / "shared" / "traces"
    folder = Path(os.environ.get("KVMON_TRACES", beside))
    if not folder.is_dir():
        pytest.skip("no request traces here: point KVMON_TRACES at a folder that has mooncake/ and azure-llm-2023/")
    return folder

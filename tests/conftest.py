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


@pytest.fixture(scope="session")
def traces() -> Path:
    """The traces folder: KVMON_TRACES, or `shared/traces` beside the checkout; without it the test skips."""
    beside = Path(__file__).parents[2] / "shared" / "traces"
    folder = Path(os.environ.get("KVMON_TRACES", beside))
    if not folder.is_dir():
        pytest.skip("no request traces here: point KVMON_TRACES at a folder that has mooncake/ and azure-llm-2023/")
    return folder

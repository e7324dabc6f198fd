"""Grafana's libraries and a browser; without them a test skips and says how to get them, and fails where CI is set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """The node_modules with what `package.json` beside this file names."""
    packages = ROOT / ".venv" / "npm" / "node_modules"
    if shutil.which("node") is None or not (packages / "@grafana" / "ui").is_dir():
        _without("node and Grafana's libraries are missing: run 'apt-get install npm', then 'make .venv/.npm'")
    return packages


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        _without("a browser is missing: run 'apt-get install chromium'")
    return Path(str(found))


def _without(message: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)

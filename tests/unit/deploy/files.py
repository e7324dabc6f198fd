"""What the tests of `deploy/` share: its YAML, and whether a command line is one that kvmon takes."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvmon.cli.main import VERBS
from tests.unit.deploy.dockerfile import ROOT

__all__ = ["DEPLOY", "DOCKER", "KUBERNETES", "SYSTEMD", "documents", "kustomized", "parsed"]

DEPLOY = ROOT / "deploy"
DOCKER, KUBERNETES, SYSTEMD = DEPLOY / "docker", DEPLOY / "kubernetes", DEPLOY / "systemd"


def documents(file: Path) -> list[Any]:
    """Every document of a YAML file."""
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def parsed(words: list[str]) -> dict[str, Any]:
    """Options and arguments of a command line, verb first. Raises click.UsageError for one that is none of kvmon's."""
    verb, *rest = words
    return VERBS[verb].load().make_context(verb, rest).params


def kustomized(folder: str) -> list[Any]:
    """What `kubectl kustomize` makes of a folder; skips where there is no kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is missing: https://kubernetes.io/docs/tasks/tools")
    return list(yaml.safe_load_all(_kustomize(kubectl, folder)))


@cache
def _kustomize(kubectl: str, folder: str) -> str:
    command = [kubectl, "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout

"""Everything in `deploy/`: it parses, and names only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import kvmon
from kvmon.cli.main import VERBS
from tests.unit.deploy.dockerfile import ROOT
from tests.unit.deploy.files import DEPLOY

FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc")
# What systemd's unit makes of its own environment file, and what a test reads.
OWN_VARIABLES = {"KVMON_EXPORTER_OPTIONS", "KVMON_DEPLOY_IMAGE"}


def name_of(path: Path) -> str:
    """For the list of tests."""
    return str(path.relative_to(DEPLOY))


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix in (".yaml", ".yml")], ids=name_of)
def test_yaml_parses(path: Path) -> None:
    """Each file is YAML, with something in it."""
    assert all(document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_and_variables_exist(path: Path) -> None:
    """Each option that stands behind a verb of kvmon is one of it, and each KVMON_ variable is read by somebody."""
    text = path.read_text(encoding="utf-8")
    known = OWN_VARIABLES | set(re.findall(r"KVMON_[A-Z]+\b", _sources()))
    assert set(re.findall(r"KVMON_[A-Z_]+\b", text)) <= known
    for verb, rest in re.findall(r"\bkvmon (\w+)\b([^|`\n]*)", text):
        if verb in VERBS:
            options = {name for one in VERBS[verb].load().params for name in (*one.opts, *one.secondary_opts)}
            assert set(re.findall(r"(?<!\S)--?[a-z][\w.-]*", rest)) <= options | {"--help"}, f"kvmon {verb}{rest}"


def test_one_version_everywhere() -> None:
    """The image of kvmon has the tag of this version wherever it is named."""
    tags = {tag for path in FILES for tag in re.findall(r"\bkvmon(?:-engine)?:(\d[\w.]*)", path.read_text("utf-8"))}
    tags |= set(re.findall(r"newTag: (\S+)", "".join(path.read_text("utf-8") for path in FILES)))
    assert tags == {kvmon.__version__}


def test_links_lead_somewhere() -> None:
    """Each relative link of the README is a file."""
    for target in re.findall(r"\]\(([^)#:]+)\)", (DEPLOY / "README.md").read_text(encoding="utf-8")):
        assert (DEPLOY / target).exists(), target


def _sources() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kvmon").rglob("*.py"))

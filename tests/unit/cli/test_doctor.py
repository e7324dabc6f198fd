"""`kvmon doctor`: each thing that keeps a recording away has a line that says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmon.adapters.base import Declaration
from kvmon.cli.doctor import command, environment_findings
from tests.toy_engine import ToyEngine


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("KVMON_", "VLLM_"))]:
        monkeypatch.delenv(name)
    yield


def doctor(*arguments: str) -> tuple[int, str]:
    """Exit code and output; no traceback for any input."""
    done = CliRunner().invoke(command, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_a_recording_that_works(tmp_path: Path) -> None:
    """Every line is ok or a note; the engine stands there with its adapter and fidelity."""
    engine = ToyEngine(tmp_path)
    engine.run(50, 0.0)
    engine.close()
    code, output = doctor(str(tmp_path))
    assert code == 0
    assert "toy-0" in output and "ended in order; toy 0.0, exact" in output
    assert "!!" not in output
    assert all(len(line) <= 80 for line in output.splitlines())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist: make it before the engine starts"),
        (lambda path: path.write_text(""), "is no directory"),
    ],
)
def test_a_directory_that_cannot_work(make: object, says: str, tmp_path: Path) -> None:
    """Missing, or a file."""
    assert callable(make)
    make(tmp_path / "kv")
    code, output = doctor(str(tmp_path / "kv"))
    assert code == 1
    assert says in " ".join(output.split())


def test_foreign_files_and_a_reduced_recording(tmp_path: Path) -> None:
    """What is no recording is no engine; what an adapter left out, it says."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "00000001.seg").write_bytes(b"\0" * 100)
    from kvmon.probe import PoolInfo, StreamProbe

    config = {"fidelity": "counts", "adapter": "vllm", "reduced": "the hook of X failed"}
    probe = StreamProbe(tmp_path, "less", config=config)
    probe.attach_pool(PoolInfo("kv", 8, 64, 16))
    probe.tick()
    probe.close()
    code, output = doctor(str(tmp_path))
    assert code == 1
    assert "records less than it could: the hook of X failed" in " ".join(output.split())


def test_a_second_engine_of_one_name(tmp_path: Path) -> None:
    """It was turned away, and the first one's recording says so."""
    first, second = ToyEngine(tmp_path), ToyEngine(tmp_path)
    first.run(5, 0.0)
    second.close()
    first.close()
    _, output = doctor(str(tmp_path))
    assert "set KVMON_ENGINE" in " ".join(output.split())


def test_versions_and_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer, older, excluded by VLLM_PLUGINS, not visible at all."""

    def found(environment: dict[str, str], version: str) -> dict[str, str]:
        monkeypatch.setattr(Declaration, "installed", lambda one: version if one.name == "vllm" else None)
        return {one.about: f"{one.how}: {one.words}" for one in environment_findings(environment)}

    assert found({}, "0.32.0+cpu")["vllm"] == "ok: 0.32.0+cpu: would be recorded exactly"
    assert found({}, "0.99.0")["vllm"].startswith("note: 0.99.0: reduced.")
    assert found({}, "0.9.2")["vllm"].startswith("problem: 0.9.2: refused.")
    plugin = metadata.EntryPoint("kvmon", "kvmon.adapters.vllm.plugin:register", "vllm.general_plugins")
    monkeypatch.setattr("kvmon.cli.doctor.entry_points", lambda group: [plugin])
    assert found({}, "0.32.0")["vllm plugin"].startswith("ok")
    assert "add 'kvmon'" in found({"VLLM_PLUGINS": "other"}, "0.32.0")["vllm plugin"]
    monkeypatch.setattr("kvmon.cli.doctor.entry_points", lambda group: [])
    assert "pip install --no-deps kvmon" in found({}, "0.32.0")["vllm plugin"]
    assert found({"KVMON_DIR": "/kv", "KVMON_CLASS": "x"}, "0.32.0")["settings"].startswith("problem")


def test_json(tmp_path: Path) -> None:
    """A version and the findings."""
    code, output = doctor("--json", str(tmp_path))
    said = json.loads(output)
    assert code == 0 and said["version"] == 1
    assert {"about", "how", "words"} == set(said["findings"][0])

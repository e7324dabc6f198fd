"""`kvmon doctor`: each thing that keeps a recording away has a line that says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmon.adapters.base import Declaration
from kvmon.cli.doctor import command, environment_findings
from tests.toy_engine import FakeClock, ToyEngine

ROOT = Path(__file__).parents[3]


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
    code, output = doctor(str(tmp_path))
    assert code == 1
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


def said(path: Path, about: str) -> str:
    """The mark and the words of the lines about one thing."""
    _, output = doctor("--json", str(path))
    findings = json.loads(output)["findings"]
    return "; ".join(f"{one['how']}: {one['words']}" for one in findings if one["about"] == about)


def test_a_live_engine_and_a_killed_one(tmp_path: Path) -> None:
    """Alive is well; killed is a problem, and what it left can be read."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.toy_engine", str(tmp_path), "toy", "0"], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.2)
        assert said(tmp_path, "toy-0").startswith("ok: alive, last heard of ")
        assert doctor(str(tmp_path))[0] == 0
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert said(tmp_path, "toy-0").startswith("problem: dead, killed or crashed, last heard of ")
    assert doctor(str(tmp_path))[0] == 1


def test_an_engine_that_hangs_with_work(tmp_path: Path) -> None:
    """Its last step had requests and lies long back; without work the same silence is well."""
    clock = FakeClock(time.monotonic_ns() - 60_000_000_000)
    engine = ToyEngine(tmp_path, clock=clock)
    engine.run(20, 0.0)
    assert said(tmp_path, "toy-0").startswith("problem: stalled, has work but records nothing")
    engine.probe.step(clock(), 5_000_000, 0, 0, 0, 0, 0)
    assert said(tmp_path, "toy-0").startswith("ok: alive, last heard of ")
    engine.close()


@pytest.mark.parametrize("name", ["lock", "00000001.seg"])
def test_a_pipe_in_the_way_stops_nobody(name: str, tmp_path: Path) -> None:
    """Opening a pipe would wait for ever."""
    folder = tmp_path / "x-0"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"problem: {name} is no regular file" in said(tmp_path, "x-0")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xa5" * 20_000, "no segment can be read: damaged"),
        (b"KVMONSEG\x63" + bytes(20_000), "upgrade kvmon"),
        (None, "ended before it recorded anything"),
    ],
)
def test_segments_that_cannot_be_read(content: bytes | None, says: str, tmp_path: Path) -> None:
    """Foreign bytes, a format to come, nothing at all."""
    folder = tmp_path / "x-0"
    folder.mkdir()
    (folder / "lock").touch()
    if content is not None:
        (folder / "00000001.seg").write_bytes(content)
    assert said(tmp_path, "x-0").startswith("problem: ") and says in said(tmp_path, "x-0")


def test_a_recording_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's directory that may not be entered is named: it looks like no recording at all."""
    (tmp_path / "vllm-0").mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, *more, **given: "vllm-0" not in str(path) and real(path, *more))
    assert "set KVMON_GROUP" in said(tmp_path, "vllm-0")


def test_what_is_lost_says_why(tmp_path: Path) -> None:
    """The header of the newest segment carries the reasons."""
    from kvmon.probe import Loss

    engine = ToyEngine(tmp_path)
    engine.run(5, 0.0)
    engine.probe.emitter.lose(3, Loss.HOOK)
    engine.close()
    assert "3 events could not be written: a hook failed" in said(tmp_path, "toy-0")


def test_less_than_the_adapter_can_without_a_reason(tmp_path: Path) -> None:
    """An adapter of the registry that sees less than it declares is a finding, whatever it says of itself."""
    from kvmon.probe import PoolInfo, StreamProbe

    probe = StreamProbe(tmp_path, "t", config={"fidelity": "counts", "adapter": "transformers"})
    probe.attach_pool(PoolInfo("kv", 8, 64, 16))
    probe.tick()
    probe.close()
    assert "'counts' and not 'exact'" in said(tmp_path, "t-0")


@pytest.mark.parametrize("name", ["bad\udcff", "red\x1b[31m", "x" * 300])
def test_names_that_no_terminal_should_see(name: str, tmp_path: Path) -> None:
    """Bytes that are no text, escape sequences, and what no file system takes: a line each, and no traceback."""
    if len(name) < 255:
        (tmp_path / name).mkdir()
    _, output = doctor(str(tmp_path / name))
    assert "\x1b" not in output and "directory" in output


def test_room_and_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of the settings counts, and the group has to be let in."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("KVMON_DIR", str(tmp_path))
    monkeypatch.setenv("KVMON_BUDGET", "1000TB")
    monkeypatch.setenv("KVMON_GROUP", "1")
    assert said(tmp_path, "room").startswith("problem: ") and "set a smaller KVMON_BUDGET" in said(tmp_path, "room")
    assert "chmod g+rx" in said(tmp_path, "readers")
    monkeypatch.setenv("KVMON_BUDGET", "1MiB")
    tmp_path.chmod(0o750)
    assert said(tmp_path, "room").startswith("ok: ") and said(tmp_path, "readers").startswith("ok: ")


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine needs it; a sidecar beside one that records does not."""

    def refuse(**given: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert said(tmp_path, "directory").startswith("problem: ")
    engine = ToyEngine(tmp_path)
    engine.run(5, 0.0)
    assert said(tmp_path, "directory").startswith("note: ") and "enough for a sidecar" in said(tmp_path, "directory")
    engine.close()


def test_settings_are_looked_at_without_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one is a finding whether or not anything is recorded; and with nothing to look at, that is one."""
    found = {one.about: f"{one.how}: {one.words}" for one in environment_findings({"KVMON_BUDGET": "lots"})}
    assert found["settings"].startswith("problem: ") and "no size" in found["settings"]
    code, output = doctor()
    assert code == 1 and "name one, or set KVMON_DIR" in output


def test_it_leaves_nothing_and_needs_nothing(tmp_path: Path) -> None:
    """No file is left in the directory, and neither numpy nor an engine is imported: it runs where the probe does."""
    engine = ToyEngine(tmp_path)
    engine.run(5, 0.0)
    engine.close()
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import sys; from kvmon.cli.main import run; run(['doctor', sys.argv[1]]); "
        "print(*[name for name in ('numpy', 'numba', 'torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "", done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == before

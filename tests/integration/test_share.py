"""`kvmon capture --share` from the command line: the list comes first, the findings are those of the original."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.capture.layout import pack_file_header
from kvmon.capture.verification import verify_path
from kvmon.cli.main import run
from kvmon.replay.calibration import calibrate
from kvmon.replay.findings import diagnose_path
from kvmon.replay.recordings import read_recordings
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find, names
from tests.integration.test_capture_verify import kvmon
from tests.unit.capture.traffic import record

# What names the source, the machine and the day; words within a frame move where a text before them got shorter.
DIFFERS = {"engine", "stream", "name", "path", "word", "wall_time", "moment", "workload", "parameters"}
Captured = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    """The capture of a scenario and the bundle of it, made once each."""
    folder, made = tmp_path_factory.mktemp("captured"), {}

    def pair(scenario: str) -> tuple[Path, Path]:
        if scenario not in made:
            source, bundle = folder / f"{scenario}.kvmon", folder / f"{scenario}-shared.kvmon"
            with CaptureWriter(source) as writer:
                setup = next(iter(find(scenario).setups(0)[0].values()))
                facts = StreamFacts("acme", pid=7, boot_id=b"b" * 16, wall_ns=1_763_000_000_000_000_000)
                record_setup(writer.add_stream(facts).write, setup)
            assert run(["capture", str(source), "--share", "-o", str(bundle)]) == 0
            made[scenario] = (source, bundle)
        return made[scenario]

    return pair


def without_names(value: Any) -> Any:
    """The same without the keys of DIFFERS."""
    if isinstance(value, dict):
        return {key: without_names(one) for key, one in value.items() if key not in DIFFERS}
    return [without_names(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("scenario", [name for name in names() if not name.endswith("-healthy")])
def test_findings_and_replays_of_a_bundle_are_those_of_the_original(scenario: str, captured: Captured) -> None:
    """Number for number, and the what-if is as near to it as it was: equal pages have equal names still."""
    source, bundle = captured(scenario)
    (one,), (other,) = read_recordings(source), read_recordings(bundle)
    (found,), (again,) = diagnose_path(source), diagnose_path(bundle)
    assert [without_names(finding.to_json()) for finding in found.findings] == [
        without_names(finding.to_json()) for finding in again.findings
    ]
    assert without_names(calibrate(one).to_json()) == without_names(calibrate(other).to_json())
    assert verify_path(bundle).damage == []
    assert b"acme" not in bundle.read_bytes() and bundle.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("scenario", ["multi-tenant", "cache-thrash", "leak"])
@pytest.mark.parametrize("verb", [["replay"], ["replay", "--at", "worst"], ["why"]])
def test_what_a_verb_says_of_a_bundle_is_what_it_says_of_the_original(
    scenario: str, verb: list[str], captured: Captured, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole report, the state at the worst moment, and the short answer, but for names and dates."""
    said = [kvmon(capsys, verb[0], path, *verb[1:], "--json") for path in captured(scenario)]
    assert said[0][0] == said[1][0] <= 1
    assert without_names(json.loads(said[0][1])) == without_names(json.loads(said[1][1]))


def test_an_engine_that_computes_is_shared_with_its_recording(tmp_path: Path) -> None:
    """The reference engine, recorded by its adapter: the same findings, and a replay that is as near."""
    pytest.importorskip("torch")
    from kvmon.adapters.attach import attach
    from kvmon.engine.drive import build_driver

    setup = next(iter(find("multi-tenant").setups(0)[0].values()))
    driver = build_driver(replace(setup, workload=setup.workload.first(12)), poison=True)
    (tmp_path / "rec").mkdir()
    clock = driver.clock
    recording = attach(driver.engine, tmp_path / "rec", "acme", time_base_ns=1, clock=lambda: 1 + clock.now_ns)
    while not driver.run(clock.now_ns + 1):
        pass
    recording.close()
    assert run(["capture", str(tmp_path / "rec"), "--share", "-o", str(tmp_path / "y.kvmon")]) == 0
    (one,), (other,) = read_recordings(tmp_path / "rec"), read_recordings(tmp_path / "y.kvmon")
    assert calibrate(one).to_json() == calibrate(other).to_json()
    (found,), (again,) = diagnose_path(tmp_path / "rec"), diagnose_path(tmp_path / "y.kvmon")
    assert [without_names(finding.to_json()) for finding in found.findings] == [
        without_names(finding.to_json()) for finding in again.findings
    ]
    assert again.state.config["adapter"] == "reference"


def test_the_list_comes_first_and_fits_a_terminal(captured: Captured, capsys: pytest.CaptureFixture[str]) -> None:
    """What is in it, what went, then the file; no line is wider than 80; no name moves the cursor."""
    source, _ = captured("multi-tenant")
    odd = source.with_name("odd.kvmon")
    with CaptureWriter(odd, force=True) as writer:
        setup = next(iter(find("server-failures").setups(0)[0].values()))
        record_setup(writer.add_stream(StreamFacts("\x1b[2J" + "a" * 90)).write, setup)
    for path in (source, odd):
        code, out, err = kvmon(capsys, "capture", path, "--share", "-o", source.with_name("y"), "--force")
        assert (code, err) == (0, "") and "\x1b" not in out
        assert max(len(line) for line in out.splitlines() if str(source.parent) not in line) <= 80
        places = [
            out.index(part) for part in ("contains:", "Taken out", "Never recorded", f"{source.with_name('y')}: ")
        ]
        assert places == sorted(places)
    _, out, _ = kvmon(capsys, "capture", source, "--share", "-o", source.with_name("y"), "--force")
    for part in ("engine1-0 (here: acme-0): ", " frames, ", "wall clock", "workload", "process number", "for you"):
        assert part in out
    _, out, _ = kvmon(capsys, "capture", source.with_name("y"), "--share", "-o", source.with_name("z"))
    assert "process" not in out and "here:" not in out and "for you" not in out


def test_a_recording_is_listed_without_being_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run says what would be there; --json says it to machines."""
    (tmp_path / "rec").mkdir()
    record(tmp_path / "rec", 60, name="acme")
    arguments = ["capture", tmp_path / "rec", "--share", "-o", tmp_path / "y.kvmon"]
    code, out, _ = kvmon(capsys, *arguments, "--dry-run")
    assert code == 0 and "60 step" in out and "Nothing was written" in out
    assert kvmon(capsys, "capture", tmp_path / "rec", "--share", "--dry-run")[1] == out
    assert [path.name for path in tmp_path.iterdir()] == ["rec"]
    code, out, _ = kvmon(capsys, *arguments, "--json", "--keep-names", "--keep-time", "--stream", "acme-0")
    said = json.loads(out)
    assert code == 0 and said["shared"]["records"]["step"] == 60
    assert said["streams"][0]["engine"] == "acme" and said["streams"][0]["wall_ns"] > 0
    assert "name of an engine" not in said["shared"]["removed"] and said["shared"]["streams"][0]["was"] == "acme-0"
    assert said["bytes"] == (tmp_path / "y.kvmon").stat().st_size


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["rec", "--keep-names", "-o", "y.kvmon"], 2, "belongs to --share"),
        (["rec", "--dry-run", "-o", "y.kvmon"], 2, "belongs to --share"),
        (["x.kvmon", "--share", "--last", "5s", "-o", "y.kvmon"], 2, "is shared whole"),
        (["x.kvmon", "--share", "--force", "-o", "x.kvmon"], 2, "is what is read"),
        (["x.kvmon", "--share", "-o", "taken.kvmon"], 3, "exists"),
        (["rec", "--share"], 2, "--output X.kvmon"),
        (["rec", "--share", "--stream", "other-0", "-o", "y.kvmon"], 3, "other-0"),
        (["rec", "--share", "-o", "no/where/y.kvmon"], 3, "no directory"),
        (["rec", "--share", "-o", "rec"], 2, "is what is read"),
        (["none", "--share", "-o", "y.kvmon"], 3, "none"),
        (["empty", "--share", "-o", "y.kvmon"], 3, "holds no stream"),
        (["empty.kvmon", "--share", "-o", "y.kvmon"], 3, "is empty"),
        (["newer.kvmon", "--share", "-o", "y.kvmon"], 3, "upgrade kvmon"),
        (["junk", "--share", "-o", "y.kvmon"], 3, "no kvmon capture"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What cannot be shared, and where it cannot be put."""
    monkeypatch.chdir(tmp_path)
    Path("rec").mkdir()
    record(Path("rec"), 20)
    assert kvmon(capsys, "capture", "rec", "-o", "x.kvmon")[0] == 0
    Path("taken.kvmon").write_text("mine")
    Path("junk").write_text("no capture at all")
    Path("empty").mkdir()
    Path("empty.kvmon").touch()
    head = bytearray(pack_file_header(0)[:-4])
    head[8] = 99
    Path("newer.kvmon").write_bytes(head + zlib.crc32(head).to_bytes(4, "little"))
    before = sorted(Path().rglob("*"))
    ended, out, err = kvmon(capsys, "capture", *arguments)
    assert (ended, out) == (code, "") and says in err and err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("left", [0.3, 0.9])
def test_a_capture_that_was_cut_off_is_shared_as_far_as_it_is_sound(
    left: float, tmp_path: Path, captured: Captured, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is sound itself."""
    data = captured("leak")[0].read_bytes()
    (tmp_path / "x.kvmon").write_bytes(data[: int(len(data) * left)])
    code, out, err = kvmon(capsys, "capture", tmp_path / "x.kvmon", "--share", "-o", tmp_path / "y.kvmon")
    assert (code, err) == (0, "") and "engine1-0" in out
    assert verify_path(tmp_path / "y.kvmon").damage == []

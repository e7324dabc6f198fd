"""`kvmon alerts`: what it lists, what it writes and what it refuses to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kvmon.alerts import runbooks
from kvmon.cli.main import run

FILES = ["kvmon-alerts.yml", "kvmon-rules.yml"]


def alerts(*arguments: object) -> int:
    """The exit code of `kvmon alerts` with these arguments."""
    return run(["alerts", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which it refuses."""
    code = alerts(*arguments)
    said = capsys.readouterr()
    assert code and said.out == "" and said.err.startswith("kvmon: ") and said.err.count("\n") == 1
    return f"{code} {said.err[7:-1]}"


def test_it_lists_every_alert(capsys: pytest.CaptureFixture[str]) -> None:
    """Name, severity, `for`, and what it is for."""
    assert alerts() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "KvmonEngineDown              critical   1m  the engine's process is gone, with requests in it" in lines
    assert {line.split()[0] for line in lines} == set(runbooks())


def test_it_lists_them_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """Alerts, recording rules, and thresholds with their ranges."""
    assert alerts("--json") == 0
    body = json.loads(capsys.readouterr().out)
    assert {"name", "severity", "for", "expr", "verdict", "command"} <= set(body["alerts"][0])
    assert body["recording_rules"][0]["record"] == "pool_verdict:kvmon_verdict:held_ratio"
    assert {"name", "value", "unit", "least", "most", "because", "why"} <= set(body["thresholds"][0])
    assert body["files"] == []


def test_it_writes_the_files_that_are_committed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rules and alerts, readable by Prometheus' own user, and nothing else."""
    assert alerts("-o", tmp_path / "made") == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == FILES
    for name in FILES:
        made = tmp_path / "made" / name
        assert made.read_text() == (Path(__file__).parents[3] / "alerts" / name).read_text()
        assert made.stat().st_mode & 0o777 == 0o644
    assert str(tmp_path / "made" / "kvmon-rules.yml") in capsys.readouterr().out


def test_it_writes_the_runbooks_and_points_to_them(tmp_path: Path) -> None:
    """A prefix of the user's own, with or without a slash at its end."""
    assert alerts("-o", tmp_path, "--runbooks", "--runbook-url", "https://wiki.example/kvmon/") == 0
    found = {path.stem: path.read_text() for path in (tmp_path / "runbooks").iterdir()}
    assert found == runbooks()
    rules = yaml.safe_load((tmp_path / "kvmon-alerts.yml").read_text())
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for group in rules["groups"] for rule in group["rules"]}
    assert urls == {name: f"https://wiki.example/kvmon/{name}" for name in found}


def test_it_writes_an_object_for_the_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, with the thresholds of another one."""
    (tmp_path / "mine.yml").write_text("engine_down_for: 7m\n", encoding="ascii")
    assert alerts("-o", tmp_path, "--format", "prometheusrule", "--thresholds", tmp_path / "mine.yml", "--json") == 0
    made = tmp_path / "kvmon-prometheusrule.yml"
    assert json.loads(capsys.readouterr().out)["files"] == [str(made)]
    assert yaml.safe_load(made.read_text())["kind"] == "PrometheusRule" and "for: 7m" in made.read_text()


def test_it_replaces_nothing_unless_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where one file is another one, none is written; the same again is no conflict."""
    assert alerts("-o", tmp_path) == 0 and alerts("-o", tmp_path) == 0
    capsys.readouterr()
    (tmp_path / "kvmon-alerts.yml").unlink()
    (tmp_path / "kvmon-rules.yml").write_text("mine\n", encoding="ascii")
    assert refused(capsys, "-o", tmp_path).startswith("3 ")
    assert [path.name for path in tmp_path.iterdir()] == ["kvmon-rules.yml"]
    assert (tmp_path / "kvmon-rules.yml").read_text() == "mine\n"
    assert alerts("-o", tmp_path, "--force") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_threshold_out_of_range_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with file and key, exit code 2."""
    (tmp_path / "mine.yml").write_text("verdict_share: 7\n", encoding="ascii")
    said = refused(capsys, "-o", tmp_path / "made", "--thresholds", tmp_path / "mine.yml")
    assert said.startswith("2 ") and "mine.yml: verdict_share is 7: give 0.05 to 1, because" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--force",), "2 --force is about files: it goes with -o DIR"),
        (("--format", "prometheus"), "2 --format is about files: it goes with -o DIR"),
        (("--runbooks",), "2 --runbooks is about files: it goes with -o DIR"),
        (("--runbook-url", "https://x.example"), "2 --runbook-url is about files: it goes with -o DIR"),
        (("--json", "--markdown"), "2 --markdown and --json exclude each other: give one of them"),
        (("KvmonLeek",), "2 there is no alert 'KvmonLeek': did you mean KvmonLeak"),
        (("Nothing",), "2 there is no alert 'Nothing': 'kvmon alerts' lists them all"),
        (("KvmonLeak", "--json"), "2 a runbook is printed as it is: give 'KvmonLeak' without options"),
        (("-o", "made", "--runbook-url", "wiki"), "2 --runbook-url is 'wiki': give an address that begins with"),
        (("-o", "made", "--runbook-url", "https://x\ny"), "2 --runbook-url has a character that no address has"),
        (("-o", "made", "--runbook-url", "https://"), "2 --runbook-url is 'https://': give an address"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is said, and stays."""
    (tmp_path / "file").write_text("mine", encoding="ascii")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is no folder: give another one with -o" in refused(capsys, "-o", folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_it_prints_a_runbook(capsys: pytest.CaptureFixture[str]) -> None:
    """By the name of the alert, in any case."""
    assert alerts("kvmonleak") == 0
    assert capsys.readouterr().out == runbooks()["KvmonLeak"]


def test_the_page_of_the_docs_has_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/alerts.md is written around what `kvmon alerts --markdown` prints."""
    assert alerts("--markdown") == 0
    page = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in page, (
        "docs/alerts.md has old tables: put in what 'kvmon alerts --markdown' prints"
    )

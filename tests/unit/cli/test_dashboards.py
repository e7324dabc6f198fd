"""`kvmon dashboards`: what it lists and writes, and what it does not replace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from kvmon.cli.main import run
from kvmon.dashboards import NAMES, text

FILES = [f"{name}.json" for name in NAMES]


def test_a_list_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a dashboard, in the order of an incident, and the same for machines."""
    assert run(["dashboards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert run(["dashboards", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["uid"] for row in rows] == list(NAMES)
    assert all(row["panels"] > 10 and row["description"] and row["title"] for row in rows)


def test_what_is_written_is_what_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, into a folder that is made, readable by Grafana's own user; a second time nothing is to do."""
    folder = tmp_path / "deploy" / "grafana"
    assert run(["dashboards", "-o", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{folder / name} written" for name in FILES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in NAMES:
        assert (folder / f"{name}.json").read_text(encoding="utf-8") == text(name)
        assert (folder / f"{name}.json").stat().st_mode & 0o777 == 0o644
    assert run(["dashboards", "-o", str(folder), "--json"]) == 0
    assert [row["written"] for row in json.loads(capsys.readouterr().out)] == [False] * len(NAMES)


def test_another_file_is_replaced_only_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --force it stays, and so does everything else; with it, it goes."""
    mine = tmp_path / "kvmon-pool.json"
    mine.write_text("mine")
    assert run(["dashboards", "-o", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "kvmon-pool.json exists" in error and "--force" in error
    assert [path.name for path in tmp_path.iterdir()] == ["kvmon-pool.json"]
    assert mine.read_text() == "mine"
    assert run(["dashboards", "-o", str(tmp_path), "--force"]) == 0
    assert mine.read_text(encoding="utf-8") == text("kvmon-pool")


@pytest.mark.parametrize("path", [None, "/srv/a b'\"c"])
def test_a_provider_tells_grafana_where_the_files_are(tmp_path: Path, path: str | None) -> None:
    """The file for Grafana's provisioning names the folder as Grafana sees it, whatever its name holds."""
    options = ["--provisioning", *([] if path is None else ["--grafana-path", path])]
    assert run(["dashboards", "-o", str(tmp_path), *options]) == 0
    provider = yaml.safe_load((tmp_path / "kvmon-provider.yaml").read_text(encoding="utf-8"))
    assert provider["apiVersion"] == 1
    (entry,) = provider["providers"]
    assert entry["type"] == "file"
    assert entry["options"]["path"] == (path or "/etc/grafana/provisioning/dashboards")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--force"], 2, "give a folder with -o"),
        (["--provisioning"], 2, "give a folder with -o"),
        (["-o", "{}", "--grafana-path", "/x"], 2, "--provisioning"),
        (["-o", "{}", "--provisioning", "--grafana-path", "x"], 2, "no absolute path"),
        (["-o", "{}/file"], 3, "is no folder"),
        (["-o", "{}/file/below"], 3, "is no folder"),
    ],
)
def test_what_cannot_work_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """With the exit code of its kind, and nothing written."""
    (tmp_path / "file").write_text("")
    assert run(["dashboards", *(argument.replace("{}", str(tmp_path)) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_is_not_written_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link in the place of a file could lead anywhere."""
    target = tmp_path / "elsewhere"
    target.write_text("kept")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "kvmon-pool.json").symlink_to(target)
    assert run(["dashboards", "-o", str(folder), "--force"]) == 3
    assert "is a link" in capsys.readouterr().err
    assert target.read_text() == "kept"

"""`kvmon workload` as a person or a script uses it."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmon.cli.main import run
from kvmon.serving.traces import read_trace
from kvmon.serving.workloads import ARRIVALS, DISTRIBUTIONS, KINDS, LENGTHS

FULL = [
    "workload", "--kind", "chats", "--lengths", "alpaca", "--arrivals", "closed-loop", "--clients", "5", "--think", "2",
    "--requests", "80", "--seed", "7", "--steps", "uniform:2-4", "--pause", "3", "--prefixes", "3", "--prefix-tokens",
    "64", "--zipf", "0.5", "--prefix-share", "0.9", "--class-by-prefix", "--abort-share", "0.2", "--patience", "4",
    "--max-tokens", "1500", "--limit", "300",
]  # fmt: skip


def test_a_file_that_simulate_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option ends up in the trace; the summary is one line; the file is private."""
    path = tmp_path / "x.csv"
    assert run([*FULL, "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{path}: 80 requests") and said.count("\n") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    workload = read_trace(path)
    assert len(workload) == 80
    assert workload.independent.sum() == 5
    assert set(workload.class_id.tolist()) <= {0, 1, 2, 3}
    assert workload.token_limit.max() == 300
    assert 0 < (workload.abort_ns > 0).sum() < 40
    assert workload.prompt_tokens.max() <= 1499


def test_without_a_file_it_goes_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes, and nothing else."""
    assert run([*FULL, "-o", str(tmp_path / "x.csv")]) == 0
    capsys.readouterr()
    assert run(FULL) == 0
    assert capsys.readouterr().out == (tmp_path / "x.csv").read_text()


def test_nothing_is_overwritten_by_accident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there stays unless --force is given, and then it is replaced as a whole."""
    path = tmp_path / "x.csv"
    path.write_text("mine")
    assert run(["workload", "--requests", "3", "-o", str(path)]) == 3
    assert "--force" in capsys.readouterr().err and path.read_text() == "mine"
    assert run(["workload", "--requests", "3", "-o", str(path), "--force"]) == 0
    assert len(read_trace(path)) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.csv"]


@pytest.mark.parametrize(
    ("place", "says"), [("absent/x.csv", "no directory"), (".", "no file"), ("/dev/null", "no file")]
)
def test_places_where_no_file_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, says: str) -> None:
    """A missing directory, a directory and a device are named, also with --force."""
    assert run(["workload", "--requests", "3", "--force", "-o", str(tmp_path / place)]) == 3
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_the_list_has_every_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each name that an option takes, and more where a terminal has no room."""
    assert run(["workload", "--list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    lines = [line for line in shown if not line.startswith("   ")]
    for name in [*KINDS, *LENGTHS, *DISTRIBUTIONS, *ARRIVALS]:
        assert sum(line.split()[0].partition(":")[0] == name for line in lines) == 1, name
    assert max(map(len, shown)) <= 80


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--requests", "0"], "number of requests is 0"),
        (["--rate", "0"], "rate a second is 0"),
        (["--rate", "nan"], "rate a second is nan"),
        (["--rate", "inf"], "rate a second is inf"),
        (["--kind", "chatz"], "did you mean chats"),
        (["--lengths", "sharegtp"], "did you mean sharegpt"),
        (["--arrivals", "poison"], "did you mean poisson"),
        (["--arrivals", "bursty"], "need their --cv"),
        (["--arrivals", "bursty", "--cv", "-1"], "coefficient of variation is -1"),
        (["--arrivals", "bursty", "--cv", "nan"], "coefficient of variation is nan"),
        (["--cv", "3"], "--cv belongs to --arrivals bursty"),
        (["--arrivals", "at-once", "--rate", "3"], "--rate belongs to --arrivals poisson or bursty"),
        (["--clients", "3"], "--clients belongs to --arrivals closed-loop"),
        (["--think", "3"], "--think belongs to --arrivals closed-loop"),
        (["--arrivals", "closed-loop"], "needs its --clients"),
        (["--arrivals", "closed-loop", "--clients", "0"], "number of clients is 0"),
        (["--arrivals", "closed-loop", "--clients", "2", "--think", "-1"], "think time is -1"),
        (["--prefixes", "3"], "--prefix-tokens"),
        (["--zipf", "1"], "--prefixes"),
        (["--prefixes", "3", "--prefix-tokens", "64", "--prefix-share", "1.5"], "share from 0 to 1"),
        (["--abort-share", "2", "--patience", "1"], "share from 0 to 1"),
        (["--abort-share", "0.5"], "--patience"),
        (["--abort-share", "0.5", "--patience", "0"], "more than 0"),
        (["--steps", "fixed:3"], "choose chats or agents"),
        (["--kind", "chats", "--steps", "three"], "no distribution"),
        (["--seed", "-4"], "seed is -4"),
        (["--force"], "goes with -o"),
        (["--requests", "x"], "not a valid integer"),
    ],
)
def test_what_cannot_work_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    """Each impossible parameter ends with one line on stderr and exit code 2."""
    assert run(["workload", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.strip().count("\n") == 0


def test_it_takes_little_more_than_its_imports() -> None:
    """A thousand requests and the start of the interpreter, in turns with one that imports the compiler alone: the
    machine is shared, and a slow second says nothing.
    """

    def seconds(*arguments: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    pairs = [(seconds("-m", "kvmon", "workload"), seconds("-c", "import numba")) for _ in range(4)]
    assert min(ours for ours, _ in pairs) < 2.5 * min(imports for _, imports in pairs), pairs

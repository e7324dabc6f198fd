"""Questions that cannot be answered and places that cannot be written to: one line, and what was there stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.capture.layout import ChunkKind
from tests.integration.bad_captures import Inputs
from tests.integration.verbs_asked import PATIENCE_S, READS, WRITES, ask, command

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All inputs by name."""
    return Inputs(tmp_path_factory.mktemp("inputs"))


AT = {
    "+5h": "is outside of what was recorded: give ",
    "-5h": "is outside of what was recorded: give ",
    "1": "is outside of what was recorded: give ",
    "garbage": "names no moment: write ",
    "": "names no moment: write ",
    "+-3s": "names no moment: write ",
    "99999999999999999999": "names no moment: write ",
    f"{'9' * 400}s": "is beyond every clock",
    "failure:99": "there is none: sim-0 has ",
    "failure:-99": "there is none: sim-0 has ",
    "failure:0": "count from 1, or from -1 at the end",
    "failure:x": "names no moment: write ",
    "2026-13-45T99:99:99Z": "is no date and time",
    "0001-01-01T00:00:00+14:00": "is no date and time",
    "9999-12-31T23:59:59-14:00": "is no date and time",
    "2026-11-23T08:45:04": "has no zone",
}
WHAT_IFS = {
    "nokey=3": "there is nothing called 'nokey': choose of ",
    "pol=3": "did you mean pool?",
    "pool": "is no change: write key=value",
    "": "is no change: write key=value",
    "block=16,": "is no change: write key=value",
    "block=16,block=32": "said twice",
    "block=x": "is no whole number",
    "block=0": "is impossible: ",
    "prefix-cache=maybe": "is neither on nor off",
    "prefix-cache=on": "cannot be answered: the recording names no pages",
    "allocator=foo": "is no allocator: choose ",
    "watermark=nan": "is impossible: ",
    "acceptance=0.5": "is impossible: ",
    "retain=3": "is impossible: ",
    "quota=a/b": "write CLASS=VALUE",
    "pool=-5": "is no size: write ",
    "pool=-200%": "leaves no memory",
    "pool=nan%": "is no size: write ",
    "pool=inf%": "is no size: write ",
    "pool=99999999999999": "more than the 2147483646 that can be numbered",
    "pool=40000000000": "more than the 2147483646 that can be numbered",
    "pool=30000000000": "numbers at most ",
    "pool=1": "smaller than one block",
}
SWEEPS = {
    "": "needs a range",
    "block": "is no range: write ",
    "block=1..5": "is no range: write ",
    "block=5..1:1": "never arrives",
    "block=1..5:0": "never arrives",
    "block=16,,32": "an empty value",
    "block=1..1000000:1": "take larger steps",
    "block=1..200:1 pool=1..200:1": "more than 10,000 combinations",
    "nokey=1,2": "there is nothing called 'nokey'",
    "block=16 block=32": "said twice",
    "pool=0..10:5": "leaves no memory",
}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        (option, value, why)
        for option, rows in (("--at", AT), ("--what-if", WHAT_IFS), ("--sweep", SWEEPS))
        for value, why in rows.items()
    ],
)
def test_what_cannot_be_asked_is_one_line(inputs: Inputs, option: str, value: str, why: str) -> None:
    """Exit code 2, what is wrong with it and what could be written instead."""
    said = ask(command("replay", "PATH", option, value), inputs["sound"])
    assert said.code == 2 and said.one_line and not said.out and why in said.err, said


def test_the_report_is_not_begun_where_the_what_if_is_impossible(inputs: Inputs) -> None:
    """Nor the other way round: what is there stays."""
    said = ask(command("replay", "PATH", "--html", "OUT/x.html", "--what-if", "block=0"), inputs["sound"])
    assert said.code == 2 and said.one_line and not said.left


def test_the_range_that_is_told_can_be_asked_for(inputs: Inputs) -> None:
    """Its ends, as they are written, are within."""
    said = ask(command("replay", "PATH", "--at", "+5h"), inputs["sound"])
    for when in re.findall(r"\d{4}-\d\d-\d\dT[\d:.]+Z", said.err):
        assert ask(command("replay", "PATH", "--at", when), inputs["sound"]).code == 0, when


def test_a_moment_in_a_gap(inputs: Inputs) -> None:
    """It says why nothing is known, from when to when; before the gap the answer is there."""
    assert ask(command("replay", "PATH", "--at", "+0s"), inputs["a hole"]).code == 0
    chunk = inputs.first(ChunkKind.FRAMES, 4)
    within = str((chunk.first_time_ns + chunk.last_time_ns) // 2)
    said = ask(command("replay", "PATH", "--at", within), inputs["a hole"])
    assert said.code == 3 and said.one_line and "nothing is known of sim-0 at " in said.err and " to +" in said.err


@pytest.mark.parametrize("verb", WRITES)
def test_where_it_cannot_be_written_nothing_changes(inputs: Inputs, tmp_path: Path, verb: str) -> None:
    """What exists, the input itself, a link, a pipe, a device, a missing place: code 2 or 3; what was there stays."""
    source, before = inputs["sound"], inputs["sound"].read_bytes()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "pipe")
    os.link(source, tmp_path / "again")
    names = sorted(file.name for file in tmp_path.iterdir())
    bad = [tmp_path / "mine", tmp_path / "folder", tmp_path / "link", tmp_path / "pipe", tmp_path / "missing" / "x"]
    bad += [Path("/dev/null"), tmp_path / ("x" * 300), source, tmp_path / "again", Path("-"), Path("")]
    bad.append(tmp_path / "mine" / "x")
    for path in bad:
        said = ask(lambda source, out, path=path: WRITES[verb](source, path), source)
        assert said.code in (2, 3) and said.one_line and not said.out, (path, said)
    for path in (source, tmp_path / "again", tmp_path / "link", tmp_path / "pipe", Path("/dev/null")):
        said = ask(lambda source, out, path=path: WRITES[verb](source, path), source, "--force")
        assert said.code in (2, 3) and said.one_line and not said.out, (path, said)
    assert source.read_bytes() == before and (tmp_path / "mine").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == names and not list((tmp_path / "folder").iterdir())


FULL = """
import json, os, resource, sys
from pathlib import Path
from kvmon.cli.main import run
commands = json.loads(sys.argv[1])
for place, arguments in enumerate(commands):  # so that no kernel is left to be compiled and kept
    run([*arguments, f"{sys.argv[2]}/warm{place}"])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
for arguments in commands:
    print(json.dumps(["code", run([*arguments, sys.argv[2] + "/full"])]), file=sys.stderr, flush=True)
"""


def test_a_full_disk(inputs: Inputs, tmp_path: Path) -> None:
    """Exit code 4, one line, and no file of whatever name. A process of its own may write 100 bytes a file."""
    commands = [write(inputs["sound"], Path())[:-1] for write in WRITES.values()]
    done = subprocess.run(
        [sys.executable, "-c", FULL, json.dumps(commands), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    codes = [place for place, line in enumerate(lines) if line.startswith('["code"')]
    assert [json.loads(lines[place]) for place in codes] == [["code", 4]] * len(commands), done.stderr
    for place in codes:
        assert re.search("^kvmon: cannot write ", lines[place - 1]), done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"warm{place}" for place in range(len(commands))]


def test_a_process_that_is_given_a_pipe_ends(inputs: Inputs) -> None:
    """Nobody writes to it, and nobody waits. Standard output stays empty, standard error is one line."""
    for verb in ("verify", "fit"):
        done = subprocess.run(
            [sys.executable, "-m", "kvmon", verb, str(inputs["a pipe"])],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=ROOT,
        )
        assert done.returncode == 3 and done.stdout == "" and done.stderr.count("\n") == 1, done
        assert "neither a capture nor a directory" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_without_permission(inputs: Inputs, tmp_path: Path) -> None:
    """Exit code 4 and a line that says whose permission it is."""
    path = shutil.copy(inputs["sound"], tmp_path / "x.kvmon")
    path.chmod(0)
    for read in READS.values():
        said = ask(read, path)
        assert said.code == 4 and said.one_line and "permission" in said.err.lower() and not said.left, said
    (tmp_path / "closed").mkdir(mode=0o500)
    for write in WRITES.values():
        said = ask(lambda source, out, write=write: write(source, tmp_path / "closed" / "x"), inputs["sound"])
        assert said.code == 4 and said.one_line and not list((tmp_path / "closed").iterdir()), said

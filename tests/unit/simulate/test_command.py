"""`kvmon simulate` as a person or a script uses it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvmon.cli.main import run
from kvmon.serving.scenarios import SCENARIOS
from kvmon.serving.step_time import StepTime, write_step_time


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A small trace in the plain format."""
    path = tmp_path / "small.csv"
    rows = [f"{i * 0.01:.2f},{100 + 37 * (i % 5)},{20 + i % 7}" for i in range(40)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return str(path)


def test_json_holds_the_numbers(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints one object with every figure, and nothing else."""
    assert run(["simulate", trace, "--capacity-tokens", "4000", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["requests"] == result["completed"] == 40
    assert result["capacity_units"] == 250
    for name in ("allocation_failures", "preemptions", "evictions", "tail_waste_ratio", "wall_seconds", "ttft_p99_s"):
        assert name in result


def test_the_table_ends_with_a_sentence(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """People get the numbers that matter and what they mean."""
    assert run(["simulate", trace, "--capacity-tokens", "40000"]) == 0
    assert "Memory never kept a request waiting." in capsys.readouterr().out
    chunks = ["--allocator", "first-fit", "--reserve", "chunk:8", "--capacity-tokens", "1500"]
    assert run(["simulate", trace, *chunks]) == 0
    assert "Fragmentation kept requests waiting" in capsys.readouterr().out
    assert (
        run(["simulate", trace, "--allocator", "first-fit", "--capacity-tokens", "900", "--max-model-len", "400"]) == 0
    )
    assert "reserved and never written" in " ".join(capsys.readouterr().out.split())
    assert run(["simulate", trace, "--capacity-tokens", "1024", "--block-size", "128"]) == 0
    assert "unfilled rest of pages" in capsys.readouterr().out
    two = ["--limit", "2", "--on-growth-failure", "wait", "--capacity-tokens", "256", "--token-budget", "1000"]
    assert run(["simulate", trace, *two]) == 0
    assert "Deadlock: 2 requests" in capsys.readouterr().out


def test_a_size_in_bytes_needs_the_model(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes and model shape give tokens; a known model's name does too."""
    for shape in ("32,8,128,2", "Llama-3.1-8B"):
        arguments = ["--capacity-bytes", "1GiB", "--model-shape", shape, "--json", "--limit", "3"]
        assert run(["simulate", trace, *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["capacity_units"] == 8192 // 16
    for size, tokens in (("1GB", 10**9 // 131_072), ("1024M", 8192)):
        arguments = ["--capacity-bytes", size, "--model-shape", "32,8,128,2", "--json", "--block-size", "1"]
        assert run(["simulate", trace, *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["capacity_units"] == tokens


def test_bytes_are_shown_where_a_token_has_some(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The pool and the most that was held, in bytes; nothing of it without a model."""
    arguments = ["simulate", trace, "--capacity-tokens", "8192"]
    assert run([*arguments, "--model-shape", "llama-3.1-8b"]) == 0
    text = capsys.readouterr().out
    assert "1.0 GiB, 8,192 tokens of 131,072 B" in text
    held = re.search(r"that requests held +(\d+) of 512 \(.* %\), (.*) MiB", text)
    assert held is not None and float(held[2]) == pytest.approx(int(held[1]) * 2, abs=0.1)
    assert run(arguments) == 0
    assert "iB" not in capsys.readouterr().out


def test_the_known_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """What a token weighs, and what a window adds."""
    assert run(["simulate", "--shapes"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"llama-3.1-8b +131,072", text) and re.search(r"gemma-3-27b +81,920 +425,984 of the last", text)
    assert run(["simulate", "--shapes", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models["deepseek-v3"]["layer_elements"] == 576 and "llama-3.1-8b" in models


CONCLUSIONS = {
    "leak": "The allocator leaks",
    "double-free": "units back twice",
    "not-kv": "died of an error, and not for want of KV memory",
    "stranded": "transfers never ended",
    "never-fits": "a request that can never fit waits before them",
    "pool-starved": "the window group's own pool is too small",
    "deadlock": "with memory, 20 waiting, none can go on; allow preemption",
    "preemption-storm": "Requests preempted each other",
    "server-failures": "Fragmentation made 1 request fail",
    "reservation": "reserved and never written",
    "tail-waste": "unfilled rest of pages",
    "partition": "A quota kept requests waiting",
    "pinned": "Pinned content kept requests waiting",
    "reclaim-failed": "because nobody evicted it",
    "warm-cache": "Memory never kept a request waiting",
}


@pytest.mark.parametrize("name", CONCLUSIONS)
def test_the_last_line_says_what_the_totals_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Faults and what holds for ever come before waits; a twin is labelled by what it may show."""
    assert run(["simulate", "--scenario", name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert CONCLUSIONS[name] in shown
    assert f"stands for {SCENARIOS[name].verdict} " in shown
    assert run(["simulate", "--scenario", f"{name}-healthy"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"with the cure {SCENARIOS[name].avoids} may show {' or '.join(SCENARIOS[name].healthy)} " in shown
    assert "operator sees" not in shown


def test_a_result_explains_itself(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What ran stands beside what happened, every field is in the docs, and units sum to the pool."""
    assert run(["simulate", trace, "--capacity-tokens", "4000", "--evict", "fifo", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["trace"], result["allocator"]["evict"], result["scheduler"]["max_sequences"]) == (
        "small.csv",
        "fifo",
        256,
    )
    assert sum(result["units_at_end"].values()) == result["capacity_units"]
    assert result["units_at_end"]["active"] == 0 < result["units_at_end"]["cached"]
    page = (Path(__file__).parents[3] / "docs" / "laboratory.md").read_text()
    assert [name for name in result if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--capacity-tokens"),
        (["--capacity-tokens", "8"], 2, "smaller than one block"),
        (["--capacity-tokens", "800", "--block-size", "0"], 2, "block size of at least 1"),
        (["--capacity-tokens", "800", "--capacity-bytes", "1G"], 2, "needs one size"),
        (["--capacity-tokens", "800", "--lookahead", "4"], 2, "add --acceptance"),
        (["--capacity-tokens", "800", "--window-tokens", "64", "--window-pool-tokens", "15"], 2, "holds no page of 16"),
        (["--capacity-tokens", "800", "--pin-share", "1%", "--pin-after", str(2**63)], 2, "choose 1 to"),
        (["--capacity-tokens", "800", "--max-seqs", str(2**31)], 2, "choose 1 to"),
        (["--capacity-tokens", "800", "--evict", ""], 2, "choose lru"),
        (["--capacity-tokens", "800", "--host-tokens", str(2**63)], 2, "choose 1 to"),
        (["--capacity-tokens", "800", "--transfer-seconds", "1"], 2, "transfers need both"),
        (["--capacity-tokens", "800", "--quota", f"{'9' * 5000}=5%"], 2, "names no class"),
        (["--capacity-tokens", "800", "--quota", "0=1_0%"], 2, "write 40% or 0.4"),
        (["--capacity-tokens", "800", "--allocator", "buddy", "--reserve", f"chunk:{'9' * 5000}"], 2, "no reservation"),
        (["--capacity-bytes", "9" * 5000, "--model-shape", "32,8,128,2"], 2, "is no size"),
        (["--capacity-bytes", "1G", "--model-shape", f"{'9' * 5000},1,1,1"], 2, "no model shape"),
        (["--capacity-tokens", "800", "--format", "xml"], 2, "no trace format"),
        (["--capacity-bytes", "1G"], 2, "--model-shape"),
        (["--capacity-bytes", "1G", "--model-shape", "gpt-9"], 2, "no model shape"),
        (["--capacity-bytes", "lots", "--model-shape", "32,8,128,2"], 2, "no size"),
        (["--capacity-tokens", "800", "--allocator", "slab"], 2, "no allocator"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--reserve", "chunk:900"], 2, "larger than the pool"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--reserve", "half"], 2, "no reservation policy"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--prefix-cache"], 2, "belongs to paged"),
        (["--capacity-tokens", "800", "--reserve", "max"], 2, "belongs to contiguous blocks"),
        (["--capacity-tokens", "800", "--allocator", "buddy", "--compaction"], 2, "cannot be slid"),
        (["--capacity-tokens", "800", "--allocator", "best-fit", "--evict", "lru"], 2, "--evict belongs to paged"),
        (["--capacity-tokens", "800", "--evict", "random"], 2, "choose lru, lfu or fifo"),
        (["--capacity-tokens", "800", "--pin-after", "2"], 2, "pins need both"),
        (["--capacity-tokens", "800", "--pin-after", "2", "--pin-share", "150%"], 2, "no share of the pool"),
        (["--capacity-tokens", "800", "--quota", "2=120%"], 2, "at most 1 (100 %)"),
        (["--capacity-tokens", "800", "--quota", "2=0"], 2, "more than 0"),
        (["--capacity-tokens", "800", "--quota", "2=nan"], 2, "more than 0"),
        (["--capacity-tokens", "800", "--quota", "2=a lot"], 2, "write 40% or 0.4"),
        (["--capacity-tokens", "800", "--quota", "2"], 2, "CLASS=VALUE"),
        (["--capacity-tokens", "800", "--quota", "2=40%", "--quota", "2=50%"], 2, "two quotas"),
        (["--capacity-tokens", "800", "--priority", "2=high"], 2, "no whole number"),
        (["--capacity-tokens", "800", "--window-tokens", "64", "--prefix-cache"], 2, "switch the prefix cache off"),
        (["--capacity-tokens", "800", "--window-pool-tokens", "64"], 2, "needs a window"),
        (["--capacity-tokens", "800", "--host-tokens", "-5"], 2, "host tier"),
        (["--capacity-tokens", "800", "--acceptance", "0.5"], 2, "without draft tokens"),
        (["--capacity-tokens", "800", "--transfer-share", "0.5"], 2, "transfers need both"),
        (["--capacity-tokens", "800", "--transfer-seconds", "nan", "--transfer-share", "1"], 2, "choose a nanosecond"),
        (["--capacity-tokens", "800", "--admit-by", "luck"], 2, "unknown"),
        (["--capacity-tokens", "800", "--step-time", "nowhere.json"], 3, "nowhere.json"),
        (["--capacity-tokens", "800", "--scenario", "leak"], 2, "one thing to do"),
        (["--capacity-tokens", "800", "--seed", "3"], 2, "goes with --scenario"),
        (["--capacity-tokens", "800", "--force"], 2, "goes with --out"),
        (
            ["--capacity-tokens", "500000000", "--block-size", "1", "--out", "nowhere.kvmon"],
            2,
            "numbers at most 134217727 units",
        ),
        (["--capacity-tokens", "800", "--format", "azure"], 3, "header TIMESTAMP"),
        (["--capacity-tokens", "800", "--limit", "0"], 2, "at least 1"),
        (["--capacity-tokens", "800", "--watermark", "2"], 2, "share of the pool"),
        (["--capacity-tokens", "800", "--on-no-fit", "drop"], 2, "unknown"),
    ],
)
def test_what_cannot_work_is_one_line(
    trace: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    """Each bad option ends with one line on stderr that says what to do, and its exit code."""
    assert run(["simulate", trace, *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.strip().count("\n") == 0


def test_what_is_read_is_not_written(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--force replaces a file, but not the one that the run is about."""
    before = Path(trace).read_bytes()
    assert run(["simulate", trace, "--capacity-tokens", "800", "--out", trace, "--force"]) == 2
    assert "is what is read" in capsys.readouterr().err
    assert Path(trace).read_bytes() == before


def test_memory_that_is_not_there_is_one_line(trace: str) -> None:
    """A pool that the machine cannot hold is the machine's refusal."""
    arguments = [trace, "--capacity-tokens", "2147483646"]
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2); "
        "from kvmon.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "simulate", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4 and done.stderr.count("\n") == 1
    assert "the machine refused" in done.stderr and "take a smaller pool" in done.stderr


def test_a_long_run_can_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C is heard within a run that would take hours."""
    path = tmp_path / "long.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1073741824\n")
    size = ["--capacity-tokens", "1073741840", "--block-size", "1024"]
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        assert run(["simulate", str(path), *size]) == 130
    finally:
        timer.cancel()


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there, and a folder, are named."""
    for path in (tmp_path / "absent.csv", tmp_path):
        assert run(["simulate", str(path), "--capacity-tokens", "800"]) == 3
        assert str(path) in capsys.readouterr().err


def test_one_thing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a trace, a scenario or a list there is nothing to run; a scenario takes no engine."""
    assert run(["simulate"]) == 2
    assert "a TRACE, --scenario NAME, --list, or --shapes" in capsys.readouterr().err
    for arguments in (["--evict", "lfu"], ["--capacity-tokens", "5"], ["--limit", "3"], ["--format", "csv"]):
        assert run(["simulate", "--scenario", "leak", *arguments]) == 2
        assert f"{arguments[0]} does not go here" in capsys.readouterr().err
    assert run(["simulate", "--scenario", "leak", "--seed", "-1"]) == 2
    assert "choose 0 or more" in capsys.readouterr().err


def test_an_unknown_scenario_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest names, exit code 2, nothing else."""
    assert run(["simulate", "--scenario", "preemtion-storm"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "did you mean preemption-storm" in captured.err


def test_the_catalogue_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """--list names every scenario; --json has what a script needs."""
    assert run(["simulate", "--list"]) == 0
    text = capsys.readouterr().out
    assert "NAME-healthy" in text
    assert run(["simulate", "--list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["scenarios"]
    assert len(rows) >= 30
    for row in rows:
        assert row["name"] in text and row["verdict"] and row["traffic"] and row["avoids"]
        assert row["healthy"]["name"] == f"{row['name']}-healthy" and row["healthy"]["verdicts"]


def test_figure_2_is_printed_as_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """`rows` of policy, token, reserved, internal, external in per cent and batch, beside the published figures."""
    assert run(["simulate", "--scenario", "paged-vs-standard", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in printed["rows"]] == ["max", "pow2", "oracle", "paged"]
    for row in printed["rows"]:
        assert sum(row[name] for name in ("token", "reserved", "internal", "external")) == pytest.approx(100, abs=0.1)
        assert row["batch"] > 5
    assert run(["simulate", "--scenario", "paged-vs-standard"]) == 0
    text = capsys.readouterr().out
    assert text.count("published") == 4 and "57.3 %" in text


def test_a_scenario_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The capture holds the run, its scenario, seed and parameters; the same seed gives the same bytes."""
    first, again, other = (tmp_path / f"{name}.kvmon" for name in ("first", "again", "other"))
    for path, seed in ((first, "3"), (again, "3"), (other, "4")):
        assert run(["simulate", "--scenario", "server-failures", "--seed", seed, "--out", str(path), "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["allocation_failures"] == {"no_contiguous_run": 1}
        assert (printed["scenario"], printed["verdict"]) == ("server-failures", "fragmentation")
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    assert run(["verify", str(first)]) == 0
    assert run(["simulate", "--scenario", "server-failures", "--out", str(first)]) == 3
    assert "--force" in capsys.readouterr().err


def test_scenarios_that_are_compared_are_streams_of_one_capture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each policy is a stream with its name."""
    path = tmp_path / "figure.kvmon"
    assert run(["simulate", "--scenario", "paged-vs-standard", "--out", str(path), "--json"]) == 0
    capsys.readouterr()
    assert run(["verify", str(path)]) == 0
    text = capsys.readouterr().out
    assert all(f"{policy}-0" in text for policy in ("max", "pow2", "oracle", "paged"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--allocator", "best-fit", "--reserve", "chunk:16", "--compaction"],
        ["--allocator", "buddy", "--reserve", "pow2"],
        ["--allocator", "first-fit", "--reserve", "oracle", "--quota", "0=50%"],
        ["--evict", "lfu", "--pin-after", "1", "--pin-share", "10%"],
        ["--evict", "fifo", "--reclaim", "idle"],
        ["--window-tokens", "64", "--window-pool-tokens", "600"],
        ["--lookahead", "3", "--acceptance", "0.7"],
        ["--host-tokens", "500", "--admit-by", "chunk"],
        ["--transfer-share", "0.5", "--transfer-seconds", "0.1", "--priority", "0=1"],
        ["--admit-by", "full", "--on-never-fits", "wait"],
    ],
)
def test_every_option_runs_and_is_recorded(
    trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """What is asked for is done, recorded, and clean."""
    out = tmp_path / "run.kvmon"
    assert run(["simulate", trace, "--capacity-tokens", "1200", *arguments, "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 40
    assert run(["verify", str(out)]) == 0


def test_a_step_time_file_sets_the_clock(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Constants from a file change the simulated time."""
    path = tmp_path / "slow.json"
    write_step_time(path, StepTime(base_ns=60e6))
    seconds = []
    for arguments in ([], ["--step-time", str(path)]):
        assert run(["simulate", trace, "--capacity-tokens", "40000", "--json", *arguments]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["duration_s"])
    assert seconds[1] > 3 * seconds[0]


def test_a_clock_that_runs_over_is_one_line(trace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of weeks lead beyond what a recording can say: an error, and no numbers."""
    write_step_time(tmp_path / "slow.json", StepTime(1e14, 9e14, 9e14, 9e14))
    assert run(["simulate", trace, "--capacity-tokens", "40000", "--step-time", str(tmp_path / "slow.json")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "146 years" in said.err and said.err.count("\n") == 1


def test_the_help_page_has_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """Options stand under what they are about."""
    assert run(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    headings = ["Traffic:", "Output:", "The pool:", "Pages and their cache:", "The scheduler:"]
    assert [text.index(heading) for heading in headings] == sorted(text.index(heading) for heading in headings)

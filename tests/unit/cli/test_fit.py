"""`kvmon fit` as a person or a script uses it: from a simulated run to the clock it ran on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kvmon.adapters.described import engine_config, pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.allocators import PagedConfig
from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.cli.main import run
from kvmon.serving import SchedulerConfig, StepTime, Workload
from kvmon.serving.step_time import read_step_time
from kvmon.simulate import simulate
from tests.unit.capture.traffic import record

TRUE = StepTime(3_500_000, 21_000, 12_000, 33)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of 300 requests on a clock of known constants."""
    random = np.random.default_rng(7)
    n = 300
    workload = Workload(
        arrival_ns=np.cumsum(random.integers(0, 40_000_000, n)),
        prompt_tokens=random.integers(1, 1500, n).astype(np.int32),
        output_tokens=random.integers(1, 120, n).astype(np.int32),
        token_limit=np.full(n, 120, np.int32),
        class_id=np.zeros(n, np.int32),
    )
    allocator, scheduler = PagedConfig(4096, 16), SchedulerConfig()
    path = tmp_path_factory.mktemp("fit") / "run.kvmon"
    with CaptureWriter(path) as writer:
        words = JournalWords(
            writer.add_stream(StreamFacts("simulator")).write,
            json.dumps(engine_config(allocator, scheduler)),
            pool_info(allocator, 0),
            requests=n,
            offsets=workload.hash_offsets,
            hashes=workload.hashes,
            hash_tokens=0,
        )
        simulate(workload, allocator, scheduler, TRUE, journal_sink=words)
        words.close()
    return path


def test_a_simulated_run_gives_its_clock_back(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every constant within 1 %, in the file and in --json, with the origin beside them."""
    out = tmp_path / "step-time.json"
    said = ["--model", "llama-3.1-8b", "--device", "H100"]
    assert run(["fit", str(simulated), "-o", str(out), *said, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    times = read_step_time(out)
    for found in (times, StepTime(*printed["constants_ns"].values())):
        assert found.base_ns == pytest.approx(TRUE.base_ns, rel=0.01)
        assert found.prefill_token_ns == pytest.approx(TRUE.prefill_token_ns, rel=0.01)
        assert found.decode_sequence_ns == pytest.approx(TRUE.decode_sequence_ns, rel=0.01)
        assert found.context_token_ns == pytest.approx(TRUE.context_token_ns, rel=0.01)
    assert printed["steps_used"] > 100 and printed["not_determined"] == {}
    kept = json.loads(out.read_text())
    assert kept["origin"] == {"model": "llama-3.1-8b", "device": "H100", "source": "run.kvmon (simulator)"}
    assert kept["fit"]["r_squared"] == printed["r_squared"] == pytest.approx(1)


def test_the_table_names_constants_quality_and_the_file(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """People get a line a constant, the errors, what was set aside and where the file is; without -o none is kept."""
    assert run(["fit", str(simulated)]) == 0
    shown = capsys.readouterr().out
    for part in ("simulator: ", "base", "3.5 ms", "21 us", "33 ns", "R^2 1.0000", "p95 0.0 %", "set aside: 0 far"):
        assert part in shown
    assert "written" not in shown
    out = tmp_path / "clock.json"
    assert run(["fit", str(simulated), "-o", str(out)]) == 0
    assert f"written to {out}" in capsys.readouterr().out


def test_steps_that_are_all_alike_determine_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy engine times every step alike, with 16 tokens and a context of 100: the table says what that leaves."""
    record(tmp_path, 100)
    assert run(["fit", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefill token 0 ns not determined: it cannot be told apart from base" in shown
    assert "context token 0 ns not determined: it cannot be told apart from base" in shown
    assert "base 5 ms" in shown and "R^2 -" in shown


def test_a_capture_that_was_cut_off_says_so(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there is fitted, with a word about the rest; nothing is written over the capture."""
    cut = tmp_path / "cut.kvmon"
    cut.write_bytes(simulated.read_bytes()[:-64])
    assert run(["fit", str(cut)]) == 0
    said = capsys.readouterr()
    assert "the part that can be read" in said.err and said.err.count("\n") == 1 and "steps fitted" in said.out
    assert run(["fit", str(cut), "-o", str(cut), "--force"]) == 2
    assert "is what is read" in capsys.readouterr().err


def test_what_cannot_be_fitted_is_one_line(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No steps, too few, several engines, an unknown one, no source, a file that is there: one line and the way on."""
    few, many, empty = tmp_path / "few", tmp_path / "many", tmp_path / "empty.kvmon"
    few.mkdir()
    many.mkdir()
    record(few, 5)
    for name in ("one", "two"):
        record(many, 30, name=name)
    with CaptureWriter(empty) as writer:
        writer.add_stream(StreamFacts("silent"))
    there = tmp_path / "there.json"
    there.write_text("mine")
    cases = [
        ([str(few)], 3, "too few to fit 4 constants"),
        ([str(empty)], 3, "holds no step"),
        ([str(many)], 3, "one, two: choose one with --engine"),
        ([str(many), "--engine", "three"], 3, "no engine 'three'"),
        ([str(tmp_path / "absent.kvmon")], 3, "absent.kvmon"),
        ([str(simulated), "-o", str(there)], 3, "--force"),
        ([str(simulated), "--force"], 2, "goes with --output"),
        ([str(simulated), "-o", str(tmp_path / "no" / "clock.json")], 3, "no directory"),
    ]
    for arguments, code, says in cases:
        assert run(["fit", *arguments]) == code, arguments
        captured = capsys.readouterr()
        assert captured.out == "" and says in captured.err and captured.err.strip().count("\n") == 0
    assert there.read_text() == "mine"
    assert run(["fit", str(many), "--engine", "two", "-o", str(there), "--force"]) == 0
    assert read_step_time(there).base_ns == pytest.approx(5_000_000)

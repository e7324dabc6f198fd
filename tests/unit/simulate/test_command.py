"""`kvmon simulate` as a person or a script uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmon.cli.main import run


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


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--capacity-tokens"),
        (["--capacity-tokens", "8"], 2, "smaller than one block"),
        (["--capacity-tokens", "800", "--block-size", "0"], 2, "block size of at least 1"),
        (["--capacity-tokens", "800", "--capacity-bytes", "1G"], 2, "needs one size"),
        (["--capacity-tokens", "800", "--model-shape", "32,8,128,2"], 2, "leave it out"),
        (["--capacity-bytes", "1G"], 2, "--model-shape"),
        (["--capacity-bytes", "1G", "--model-shape", "gpt-9"], 2, "no model shape"),
        (["--capacity-bytes", "lots", "--model-shape", "32,8,128,2"], 2, "no size"),
        (["--capacity-tokens", "800", "--allocator", "slab"], 2, "no allocator"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--reserve", "chunk:900"], 2, "larger than the pool"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--reserve", "half"], 2, "no reservation policy"),
        (["--capacity-tokens", "800", "--allocator", "first-fit", "--prefix-cache"], 2, "belongs to paged"),
        (["--capacity-tokens", "800", "--reserve", "max"], 2, "belongs to first-fit"),
        (["--capacity-tokens", "800", "--force"], 2, "goes with --out"),
        (
            ["--capacity-tokens", "500000000", "--block-size", "1", "--out", "nowhere.kvmon"],
            2,
            "numbers at most 134217727 units",
        ),
        (["--capacity-tokens", "800", "--format", "xml"], 3, "no trace format"),
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


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is not there, and a folder, are named."""
    for path in (tmp_path / "absent.csv", tmp_path):
        assert run(["simulate", str(path), "--capacity-tokens", "800"]) == 3
        assert str(path) in capsys.readouterr().err

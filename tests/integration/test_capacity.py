"""`kvmon capacity` from the command line: what it says in words and for machines, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmon.cli.main import run
from tests.integration.test_capture_verify import kvmon

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "hidden_size": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_model_alone_is_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a pool: what a token and a page weigh, and nothing else."""
    code, out, err = kvmon(capsys, "capacity", "--model-shape", "llama-3.1-8b", "--kv-dtype", "fp8")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "llama-3.1-8b-fp8: 32 layers, 65,536 bytes a token"
    assert "pages" not in out and "16  1.0 MiB" in out


def test_a_pool_with_lengths_in_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Every column at once stays within the terminal; the numbers are those of the object."""
    arguments = ["capacity", "--model-shape", "llama-3.1-8b", "--capacity-bytes", "30GiB", "--lengths", "sharegpt"]
    arguments += ["--prefix", "220", "--length", "8192", "--block-size", "16,64,256"]
    _, out, _ = kvmon(capsys, *arguments)
    assert max(len(line) for line in out.splitlines()) <= 80
    _, text, _ = kvmon(capsys, *arguments, "--json")
    said = json.loads(text)
    assert [row["prefix_hit_tokens"] for row in said["pages"]] == [208, 192, 0]
    assert [row["requests_at_length"] for row in said["pages"]] == [30, 30, 30]
    for row in said["pages"]:
        assert f"{row['requests_at_p95']:,}" in out and f"{row['tail_waste_ratio'] * 100:.1f} %" in out


def test_a_trace_is_run_through_every_page_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too much at once for a small pool: it preempts or waits, and never holds more than there is."""
    trace = tmp_path / "x.csv"
    assert run(["workload", "--requests", "60", "--arrivals", "at-once", "--max-tokens", "900", "-o", str(trace)]) == 0
    arguments = ["capacity", trace, "--model-shape", "llama-3.1-8b", "--capacity-bytes", "512MiB"]
    code, text, _ = kvmon(capsys, *arguments, "--block-size", "16,128", "--json")
    assert code == 0
    for row in json.loads(text)["pages"]:
        ran = row["run"]
        assert 1 <= ran["most_running"] < 60 and ran["mean_running"] <= ran["most_running"]
        assert ran["result"]["capacity_units"] == row["pages"] and ran["result"]["completed"] == 60
        assert sum(ran["result"]["allocation_failures"].values()) > 0
    _, out, _ = kvmon(capsys, *arguments, "--max-seqs", "3")
    assert "as it arrived, at most 3 at once" in out and "--max-seqs, not memory" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_pool_is_what_a_gpu_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model's files the weights are known; what the engine alone knows is said, not guessed."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    arguments = [
        "capacity",
        "--config",
        tmp_path,
        "--gpu-memory",
        "1GiB",
        "--weights",
        "auto",
        "--tensor-parallel",
        "2",
    ]
    _, text, _ = kvmon(capsys, *arguments, "--json")
    said = json.loads(text)
    assert said["gpu_memory"]["weights_bytes"] == 1 << 19 and "not taken off" in said["gpu_memory"]["unknown"]
    assert said["bytes_per_token_a_gpu"] == 65_536
    _, out, _ = kvmon(capsys, *arguments)
    assert "pool: at most 921.1 MiB on each GPU" in out and "upper bound" in out
    _, out, _ = kvmon(capsys, *arguments, "--other", "100MiB", "--utilization", "0.5")
    assert "upper bound" not in out and "x 0.5 - weights 512.0 KiB - other 100.0 MiB" in " ".join(out.split())


def test_layers_that_slide_share_the_pool(capsys: pytest.CaptureFixture[str]) -> None:
    """No number of pages, because there is none; a model that only slides takes any length."""
    _, out, _ = kvmon(capsys, "capacity", "--model-shape", "gemma-3-27b", "--capacity-bytes", "40GiB")
    assert "52 layers slide" in out and "depends" in out
    _, out, _ = kvmon(capsys, "capacity", "--model-shape", "mistral-7b-v0.1", "--capacity-bytes", "40GiB")
    assert " any" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "one description"),
        (["--model-shape", "llama-3.1-8b", "--config", "x"], 2, "one description"),
        (["--model-shape", "mamba-2.8b"], 2, "no model shape"),
        (["--model-shape", "llama-3.1-8b", "--kv-dtype", "fp4"], 2, "no type"),
        (["--model-shape", "llama-3.1-8b", "--capacity-bytes", "1GiB", "--gpu-memory", "1GiB"], 2, "one size"),
        (["--model-shape", "llama-3.1-8b", "--capacity-bytes", "1MiB"], 2, "holds no page"),
        (["--model-shape", "llama-3.1-8b", "--capacity-bytes", "much"], 2, "no size"),
        (["--model-shape", "llama-3.1-8b", "--gpu-memory", "80GiB"], 2, "--weights"),
        (["--model-shape", "llama-3.1-8b", "--gpu-memory", "80GiB", "--weights", "auto"], 2, "--config"),
        (["--model-shape", "llama-3.1-8b", "--gpu-memory", "8GiB", "--weights", "15GiB"], 2, "leave nothing"),
        (["--model-shape", "llama-3.1-8b", "--weights", "8GiB"], 2, "belongs to --gpu-memory"),
        (["--model-shape", "llama-3.1-8b", "--tensor-parallel", "3"], 2, "cannot share evenly"),
        (["--model-shape", "llama-3.1-8b", "--block-size", "16,x"], 2, "no list"),
        (["--model-shape", "llama-3.1-8b", "--prefix", "0"], 2, "at least 1"),
        (["--model-shape", "llama-3.1-8b", "--lengths", "cats"], 2, "cats"),
        (["--model-shape", "llama-3.1-8b", "--limit", "5"], 2, "belongs to a trace"),
        (["nowhere.csv", "--model-shape", "llama-3.1-8b"], 2, "runs through a pool"),
        (["nowhere.csv", "--model-shape", "llama-3.1-8b", "--capacity-bytes", "1GiB"], 3, "nowhere.csv"),
        (["--config", "nowhere.json"], 3, "cannot read"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every wish that cannot be met: its exit code, and one line that says what to do."""
    monkeypatch.chdir(tmp_path)
    ended, out, err = kvmon(capsys, "capacity", *arguments)
    assert (ended, out) == (code, "") and says in err and err.count("\n") == 1


def test_an_architecture_without_a_formula_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, never with the formula of another."""
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "architectures": ["MambaForCausalLM"]}))
    code, _, err = kvmon(capsys, "capacity", "--config", tmp_path)
    assert code == 3 and "MambaForCausalLM has no formula" in err

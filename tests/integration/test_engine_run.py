"""`kvmon engine run`, and what the options of both verbs refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmon.cli.main import run
from tests.integration.engine_server import ROOT, SAMPLING, engine_run


def test_a_file_of_requests_gets_a_line_each(tmp_path: Path) -> None:
    """In order, named as their author did, an error object where one cannot be answered, and exit code 1 for those."""
    requests: list[object] = [
        {"custom_id": "first", "prompt": "x", "n": 2, **SAMPLING},
        "no object",
        {"id": 7, "messages": [{"role": "user", "content": "hi"}], **SAMPLING},
        {"custom_id": "long", "prompt": "x", "max_tokens": 10**9},
        {"custom_id": "streamed", "prompt": "x", "stream": True},
    ]
    output = tmp_path / "out.jsonl"
    given = "\n".join(json.dumps(one) for one in requests)
    done = engine_run("-", "-o", str(output), given=given)
    assert (done.returncode, done.stderr) == (1, "kvmon: 3 of 5 requests failed: see their error objects\n")
    first, broken, chat, long, stream = [json.loads(line) for line in output.read_text().splitlines()]
    assert first["custom_id"] == "first"
    assert len(first["choices"]) == 2
    assert broken["error"]["code"] == "invalid_json"
    assert (chat["id"], chat["object"], chat["choices"][0]["message"]["role"]) == (7, "chat.completion", "assistant")
    assert (long["custom_id"], long["error"]["code"]) == ("long", "context_length_exceeded")
    assert stream["error"]["param"] == "stream"
    again = engine_run("-", "-o", str(output), given="")
    assert again.returncode == 3
    assert "--force" in again.stderr


def test_odd_lines_are_answered_in_their_place() -> None:
    """Half a surrogate pair, numbers that are none, endless nesting: an error object or an answer, never less."""
    lines = [
        '{"custom_id": "\\ud800", "prompt": "a", "max_tokens": 2}',
        '{"\\ud800": 1, "prompt": "a"}',
        '{"custom_id": 1e999, "prompt": "a"}',
        '{"prompt": ' + "[" * 900 + "1" + "]" * 900 + "}",
        '{"prompt": "a", "max_tokens": 2, "temperature": 1e-310}',
    ]
    done = engine_run("-", given="\n".join(lines))
    assert (done.returncode, done.stderr) == (1, "kvmon: 3 of 5 requests failed: see their error objects\n")
    named, key, number, deep, cold = [json.loads(line) for line in done.stdout.splitlines()]
    assert named["custom_id"] == "\ud800" and "choices" in named and "choices" in cold
    assert key["error"]["code"] == "unknown_parameter" and number["error"]["code"] == "invalid_json"
    assert deep["error"]["param"] in ("prompt", None)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_answers_that_cannot_be_written_are_an_error(unbuffered: str, tmp_path: Path) -> None:
    """A full disk, a reader that went away, a closed output: never exit code 0."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n')
    command = f"{sys.executable} -m kvmon engine run {tmp_path / 'in.jsonl'} --threads 1"
    for ending, code in (("> /dev/full", 4), (">&-", 4), ("| (exec <&-; sleep 20)", 141)):
        script = f"set -o pipefail; {command} {ending}"
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, timeout=60)
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--layout", "paged", "--reserve", "max"), 2, "--reserve belongs to contiguous"),
        (("--layout", "contiguous", "--no-prefix-cache"), 2, "--no-prefix-cache belongs to paged"),
        (("--layout", "round"), 2, "no layout"),
        (("--layout", "contiguous", "--reserve", "oracle"), 2, "max, pow2 or chunk:N"),
        (("--device", "tpu"), 2, "auto, cpu or cuda"),
        (("--seed", "-1"), 2, "seed of -1"),
        (("--capacity-tokens", "64", "--memory-share", "0.5"), 2, "one size"),
        (("--max-waiting", "3"), 2, "--overload refuse"),
        (("--threads", "0"), 2, "0 threads"),
        (("--model", "/nowhere"), 3, "/nowhere"),
        (("--dir", "/nowhere/rec"), 4, "/nowhere/rec"),
        (("--host", "192.0.2.1"), 4, "cannot listen on 192.0.2.1"),
    ],
)
def test_options_that_cannot_work_are_one_line(
    options: tuple[str, ...], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is built, with the exit code of their kind."""
    assert run(["engine", "serve", "--port", "0", *options]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1

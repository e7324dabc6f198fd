"""Trace readers: what they take, and the line they name when they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmon.errors import TraceError
from kvmon.serving.traces import TRACE_FORMATS, read_trace

MOONCAKE = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
PLAIN = "arrival_s,prompt_tokens,output_tokens"


def write(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mooncake(tmp_path: Path) -> None:
    """Milliseconds become nanoseconds from the first arrival, ids count from 1, the longest output is the limit."""
    rows = [MOONCAKE | {"timestamp": 500}, MOONCAKE | {"timestamp": 1500, "output_length": 9, "hash_ids": [0, 2]}]
    workload = read_trace(write(tmp_path / "x", *map(json.dumps, rows)))
    assert workload.arrival_ns.tolist() == [0, 1_000_000_000]
    assert workload.prompt_tokens.tolist() == [700, 700]
    assert workload.token_limit.tolist() == [9, 9]
    assert (workload.hashes.tolist(), workload.hash_offsets.tolist()) == ([1, 2, 1, 3], [0, 2, 4])
    assert workload.hash_tokens == 512
    assert workload.covered_tokens().tolist() == [700, 700]


def test_azure(tmp_path: Path) -> None:
    """Seven decimals of a second are kept, lines end as on Windows, and nothing is known of prefixes."""
    path = tmp_path / "x"
    path.write_bytes(f"{AZURE}\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109".encode())
    workload = read_trace(path)
    assert workload.arrival_ns.tolist() == [0, 4_314_579_000]
    assert workload.output_tokens.tolist() == [44, 109]
    assert workload.hashes.size == 0


def test_plain(tmp_path: Path) -> None:
    """All columns: classes, limits, and a shared prefix in identities of 16 tokens."""
    header = PLAIN + ",class,limit,prefix_id,prefix_tokens"
    workload = read_trace(write(tmp_path / "x", header, "1.5,100,5,2,50,7,40", "2,90,6,,,7,33", "2,90,6,,,,"))
    assert workload.arrival_ns.tolist() == [0, 500_000_000, 500_000_000]
    assert workload.class_id.tolist() == [2, 0, 0]
    assert workload.token_limit.tolist() == [50, 6, 6]
    first, second = workload.hashes[:2].tolist(), workload.hashes[2:4].tolist()
    assert first == second and len(set(first)) == 2
    assert workload.hash_offsets.tolist() == [0, 2, 4, 4]


def bad(line: str, header: str) -> tuple[str, ...]:
    """A good line and a bad one behind the header."""
    good = {"": json.dumps(MOONCAKE), AZURE: "2023-11-16 18:15:46.1,3,4", PLAIN: "1,3,4"}[header]
    return (header, good, line) if header else (good, line)


@pytest.mark.parametrize(
    ("lines", "line", "says"),
    [
        (bad("{", ""), 2, "not JSON"),
        (bad("[1]", ""), 2, "JSON object"),
        (bad('{"timestamp": 1}', ""), 2, "JSON object"),
        (bad(json.dumps(MOONCAKE | {"input_length": 0}), ""), 2, "at least 1 token"),
        (bad(json.dumps(MOONCAKE | {"output_length": -1}), ""), 2, "from 0"),
        (bad(json.dumps(MOONCAKE | {"output_length": "x"}), ""), 2, "whole number"),
        (bad(json.dumps(MOONCAKE | {"input_length": True}), ""), 2, "whole number"),
        (bad('{"timestamp": NaN, "input_length": 1, "output_length": 1, "hash_ids": []}', ""), 2, "timestamp"),
        (bad(json.dumps(MOONCAKE | {"hash_ids": [1, 2, 3]}), ""), 2, "at most one"),
        (bad(json.dumps(MOONCAKE | {"hash_ids": [1.5]}), ""), 2, "whole numbers"),
        ((json.dumps(MOONCAKE | {"timestamp": 5}), json.dumps(MOONCAKE)), 2, "before the line above"),
        (bad("2023-11-16 18:15:45.9,3,4", AZURE), 3, "before the line above"),
        (bad("yesterday,3,4", AZURE), 3, "a date like"),
        (bad("2023-11-16 18:15:47.1,3", AZURE), 3, "2 columns"),
        (bad("2023-11-16 18:15:47.1,3.5,4", AZURE), 3, "whole number"),
        (bad("nan,3,4", PLAIN), 3, "number of seconds"),
        (bad("inf,3,4", PLAIN), 3, "number of seconds"),
        (bad("0,3,4", PLAIN), 3, "before the line above"),
        (bad("1,3", PLAIN), 3, "2 columns"),
        (bad("1,nan,4", PLAIN), 3, "whole number"),
        (bad("1,3,99999999999", PLAIN), 3, "from 0"),
        ((PLAIN + ",colour", "1,2,3,red"), 1, "unknown or repeated colour"),
        ((PLAIN + ",prefix_id,prefix_tokens", "1,20,3,1,"), 2, "go together"),
        ((PLAIN + ",prefix_id,prefix_tokens", "1,20,3,1,21"), 2, "no longer than its prompt"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, lines: tuple[str, ...], line: int, says: str) -> None:
    """The message holds the file, the line and what is wrong, in one line."""
    path = write(tmp_path / "trace", *lines)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert f"{path}, line {line}:" in message and says in message
    assert "\n" not in message


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    """Unknown content, nothing at all, only a header, bytes, an absent file and an unknown format are told apart."""
    for lines, says in ((("a,b", "1,2"), "no known format"), (("",), "empty"), ((PLAIN,), "no request")):
        with pytest.raises(TraceError, match=says):
            read_trace(write(tmp_path / "x", *lines))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="no text file"):
        read_trace(tmp_path / "bytes")
    with pytest.raises(TraceError, match="cannot read"):
        read_trace(tmp_path / "absent")
    with pytest.raises(TraceError, match=", ".join(TRACE_FORMATS)):
        read_trace(tmp_path / "x", "parquet")


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    """A named format is read as such, and complains in its own words when it is another."""
    path = write(tmp_path / "x", PLAIN, "1,2,3")
    assert len(read_trace(path, "csv")) == 1
    with pytest.raises(TraceError, match="header TIMESTAMP"):
        read_trace(path, "azure")
    with pytest.raises(TraceError, match="not JSON"):
        read_trace(path, "mooncake")

"""Trace readers: what they take, the line they name when they refuse, and what is written is read back."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmon.errors import ConfigError, TraceError
from kvmon.serving import Workload
from kvmon.serving.traces import TRACE_FORMATS, read_trace
from kvmon.serving.traces.identities import Names, named, names_of
from kvmon.serving.traces.writing import write_plain
from kvmon.serving.workloads import chat_and_agents

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


def test_plain_conversations(tmp_path: Path) -> None:
    """A chat is named to the end of what it generates, behind the shared prefix; pauses and patience are kept."""
    header = PLAIN + ",prefix_id,prefix_tokens,follows,abort_s,chat_id"
    rows = ("9,50,40,7,40,,,3", "0.25,100,28,7,40,1,1.5,3", "9,100,28,7,40,,,4")
    workload = read_trace(write(tmp_path / "x", header, *rows))
    assert workload.follows.tolist() == [0, 1, 0]
    assert workload.arrival_ns.tolist() == [0, 250_000_000, 0]
    assert workload.abort_ns.tolist() == [0, 1_500_000_000, 0]
    first, second, other = np.split(workload.hashes, workload.hash_offsets[1:-1])
    assert len(first) == (50 + 40) // 16 and len(second) == len(other) == (100 + 28) // 16
    assert second[: len(first)].tolist() == first.tolist()
    assert other[:2].tolist() == first[:2].tolist() and not set(other[2:].tolist()) & set(second.tolist())
    assert workload.covered_tokens().tolist() == [80, 128, 128]


def test_a_chat_is_named_no_further_than_its_limit(tmp_path: Path) -> None:
    """What the limit cuts off is never generated, so it has no name."""
    workload = read_trace(write(tmp_path / "x", PLAIN + ",limit,chat_id", "0,64,160,32,1"))
    assert workload.covered_tokens().tolist() == [96]


@pytest.mark.parametrize("seconds", ["1700000000.123456789", "1e-9", "0.1", "4000000000.999999999", "-5.000000001"])
def test_seconds_are_exact(tmp_path: Path, seconds: str) -> None:
    """Every digit that a nanosecond has is kept, also of times since 1970."""
    whole = int(Decimal(seconds) * 10**9)
    workload = read_trace(write(tmp_path / "x", PLAIN, "-6,1,1", f"{seconds},1,1"))
    assert workload.arrival_ns.tolist() == [0, whole + 6 * 10**9]


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Any workload that starts at 0 and whose identities are those of the plain format."""
    n = draw(st.integers(1, 12))

    def column(least: int, most: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(least, most), min_size=n, max_size=n)), np.int64)

    follows = np.minimum(column(0, n) * column(0, 1), np.arange(n))
    pauses = column(0, 2**58)
    alone = follows == 0
    arrivals = np.sort(pauses[alone])
    pauses[alone] = arrivals - arrivals[0]
    prompt = column(1, 500)
    chat = column(0, 3)
    prefix = np.where(chat > 0, chat % 2, column(0, 3))
    common = np.where(prefix > 0, np.where(chat > 0, 16, column(1, 100)), 0)
    plain = Workload(
        arrival_ns=pauses,
        prompt_tokens=np.maximum(prompt, common).astype(np.int32),
        output_tokens=column(1, 2**30 if not chat.any() else 300).astype(np.int32),
        token_limit=column(1, 2**30).astype(np.int32),
        class_id=column(0, 2**30).astype(np.int32),
        follows=follows.astype(np.int32),
        abort_ns=column(0, 2**60) * column(0, 1),
    )
    return named(plain, Names(prefix, common, chat))


def assert_same(one: Workload, other: Workload) -> None:
    """Every array and the step of the identities agree; names may differ."""
    for field in fields(Workload):
        if field.name != "name":
            assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


@given(workload=workloads())
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back(workload: Workload, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every time to the nanosecond, every length, class, limit, identity, every follower and every abort."""
    path = tmp_path_factory.mktemp("round") / "x.csv"
    write_plain(workload, path)
    assert_same(read_trace(path), workload)


def test_writing_counts_arrivals_from_the_first(tmp_path: Path) -> None:
    """A workload that starts later is read back as one that starts at 0; pauses stay as they are."""
    late = replace(
        chat_and_agents(5, 3),
        arrival_ns=np.array([2_000_000_000, 700_000_000, 2_000_000_001], np.int64),
        follows=np.array([0, 1, 0], np.int32),
    )
    write_plain(late, tmp_path / "x")
    assert_same(read_trace(tmp_path / "x"), replace(late, arrival_ns=np.array([0, 700_000_000, 1], np.int64)))


def test_identities_of_another_format_are_not_written(tmp_path: Path) -> None:
    """A trace of Mooncake, identities that nobody shares by column, and a chat with two headers have no columns."""
    base = chat_and_agents(5, 3, shared_prefix_tokens=0)
    foreign = read_trace(write(tmp_path / "x", json.dumps(MOONCAKE)))
    odd = replace(base, hash_offsets=np.array([0, 1, 1, 1]), hashes=np.array([2**40 + 7], np.uint64), hash_tokens=16)
    columns = (np.array([1, 2, 0]), np.array([16, 16, 0]), np.array([4, 4, 0]))
    for workload in (foreign, odd, replace(base, hash_offsets=odd.hash_offsets, hashes=odd.hashes, hash_tokens=8)):
        with pytest.raises(TraceError, match="not those of a CSV trace"):
            write_plain(workload, tmp_path / "y")
    with pytest.raises(TraceError, match="not those of a CSV trace"):
        names_of(named(base, Names(*columns)))
    assert not (tmp_path / "y").exists()


def test_too_many_identities_are_refused(tmp_path: Path) -> None:
    """A file of a few bytes does not fill the memory."""
    rows = [f"0,{2**30},1,1,{2**30}"] * 3
    with pytest.raises(TraceError, match="fewer or shorter"):
        read_trace(write(tmp_path / "x", PLAIN + ",prefix_id,prefix_tokens", *rows))


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
        (bad("-inf,3,4", PLAIN), 3, "number of seconds"),
        (bad("1e9999999,3,4", PLAIN), 3, "number of seconds"),
        (bad("snan,3,4", PLAIN), 3, "number of seconds"),
        (bad("1,-3,4", PLAIN), 3, "from 0"),
        (bad("1,3,-4", PLAIN), 3, "from 0"),
        (bad("1,3,0", PLAIN), 3, "at least 1 token"),
        (bad("1,1_0,4", PLAIN), 3, "whole number"),
        (bad("1,\u0663,4", PLAIN), 3, "whole number"),
        (bad("[" * 100_000, ""), 2, "not JSON"),
        (bad(json.dumps(MOONCAKE | {"timestamp": 10**400}), ""), 2, "140 years"),
        (bad(json.dumps(MOONCAKE | {"timestamp": 1e308}), ""), 2, "140 years"),
        (bad(json.dumps(MOONCAKE | {"input_length": 10**400}), ""), 2, "whole number"),
        (bad(json.dumps(MOONCAKE | {"hash_ids": [2**64 - 1]}), ""), 2, "below 2**63"),
        (bad("9999-12-31 23:59:59,3,4", AZURE), 3, "140 years"),
        (bad("1,3," + "4" * 200_000, PLAIN), 3, "no row of a CSV"),
        (bad("2023-11-16 18:15:47.1,3," + "4" * 200_000, AZURE), 3, "no row of a CSV"),
        ((PLAIN + ",follows", "1,20,3,", "1,20,3,2"), 3, "this is row 2 and follows row 2"),
        ((PLAIN + ",follows", "1,20,3,2", "1,20,3,"), 2, "this is row 1 and follows row 2"),
        ((PLAIN + ",follows", "1,20,3,", "1,20,3,-1"), 3, "from 0"),
        ((PLAIN + ",follows", "1,20,3,", "1,20,3,0.5"), 3, "whole number"),
        ((PLAIN + ",follows", "1,20,3,", "-1,20,3,1"), 3, "pause after row 1 is negative"),
        ((PLAIN + ",follows", "5,20,3,", "1,20,3,1", "4,20,3,"), 4, "before the line above"),
        ((PLAIN + ",abort_s", "1,20,3,0"), 2, "leave it empty for never"),
        ((PLAIN + ",abort_s", "1,20,3,-1"), 2, "more than 0"),
        ((PLAIN + ",abort_s", "1,20,3,nan"), 2, "number of seconds"),
        ((PLAIN + ",chat_id", "1,20,3,x"), 2, "whole number"),
        ((PLAIN + ",prefix_id,prefix_tokens,chat_id", "1,90,3,1,32,5", "1,90,3,1,48,5"), 3, "another shared prefix"),
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
    with pytest.raises(TraceError, match="is a directory"):
        read_trace(tmp_path)
    with pytest.raises(ConfigError, match=", ".join(TRACE_FORMATS)):
        read_trace(tmp_path / "x", "parquet")


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """A trace may come from another program: it is recognised without a second look."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(f"{PLAIN}\n0,1,2\n",))
    writer.start()
    assert len(read_trace(pipe)) == 1
    writer.join()


def test_a_format_can_be_forced(tmp_path: Path) -> None:
    """A named format is read as such, and complains in its own words when it is another."""
    path = write(tmp_path / "x", PLAIN, "1,2,3")
    assert len(read_trace(path, "csv")) == 1
    with pytest.raises(TraceError, match="header TIMESTAMP"):
        read_trace(path, "azure")
    with pytest.raises(TraceError, match="not JSON"):
        read_trace(path, "mooncake")

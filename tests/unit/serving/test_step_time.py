"""The file that keeps the constants of the step-time model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.errors import InputError, NewerFormatError
from kvmon.serving.step_time import Origin, StepTime, read_step_time, write_step_time

GOOD: dict[str, Any] = {
    "format": "kvmon step-time",
    "version": 1,
    "constants_ns": {"base": 5e6, "prefill_token": 3e4, "decode_sequence": 0, "context_token": 40},
}


@given(
    base=st.floats(1, 1e14),
    others=st.tuples(*[st.floats(0, 1e14)] * 3),
)
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, base: float, others: tuple[float, float, float]
) -> None:
    """Every clock that can exist survives its file to the last bit."""
    path = tmp_path_factory.getbasetemp() / "clock.json"
    times = StepTime(base, *others)
    write_step_time(path, times, force=True)
    assert read_step_time(path) == times


def test_the_file_says_where_its_constants_came_from(tmp_path: Path) -> None:
    """People read the model, the device and the quality of the fit in it; a program needs none of them."""
    path = tmp_path / "clock.json"
    write_step_time(path, StepTime(), Origin("llama-3.1-8b", "H100", "run.kvmon", {"r_squared": 0.99}))
    found = json.loads(path.read_text())
    assert found["origin"] == {"model": "llama-3.1-8b", "device": "H100", "source": "run.kvmon"}
    assert found["fit"] == {"r_squared": 0.99}
    path.write_text(json.dumps(GOOD))
    assert read_step_time(path) == StepTime(5e6, 3e4, 0, 40)


def test_a_file_is_replaced_on_demand_only(tmp_path: Path) -> None:
    """What is there stays without `force`, and a directory that is not there is the machine's refusal."""
    path = tmp_path / "clock.json"
    write_step_time(path, StepTime())
    with pytest.raises(InputError, match="--force"):
        write_step_time(path, StepTime(1))
    assert read_step_time(path) == StepTime()
    write_step_time(path, StepTime(1), force=True)
    assert read_step_time(path) == StepTime(1)
    with pytest.raises(InputError, match="no directory"):
        write_step_time(tmp_path / "absent" / "clock.json", StepTime())
    assert [entry.name for entry in tmp_path.iterdir()] == ["clock.json"]


def with_constants(**changes: object) -> dict[str, object]:
    """The good document with other constants; None leaves one out."""
    constants = {**GOOD["constants_ns"], **changes}
    return {**GOOD, "constants_ns": {name: value for name, value in constants.items() if value is not None}}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([], "does not say"),
        ({"version": 1}, "does not say"),
        ({**GOOD, "version": None}, "version None"),
        ({**GOOD, "version": 0}, "version 0"),
        ({**GOOD, "version": True}, "version True"),
        ({**GOOD, "constants_ns": [1]}, "no constants_ns"),
        (with_constants(base=None), "base is missing"),
        (with_constants(context_token=-1), "context_token is -1"),
        (with_constants(context_token=float("nan")), "context_token is nan"),
        (with_constants(prefill_token="30000"), "prefill_token is '30000'"),
        (with_constants(prefill_token=True), "prefill_token is True"),
        (with_constants(base=0), "base of at least 1 ns"),
        (with_constants(base=1e300), "from 0 to 1e15"),
        (with_constants(draft_token=3), "unknown draft_token"),
    ],
)
def test_a_file_that_is_not_usable_is_one_line(tmp_path: Path, document: object, says: str) -> None:
    """Each flaw is an input error of one line that names the file."""
    path = tmp_path / "clock.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(InputError, match=says) as refused:
        read_step_time(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_newer_file_and_one_that_is_not_there(tmp_path: Path) -> None:
    """A newer version asks for a newer kvmon; a path without a file, with a folder or with bytes is named."""
    path = tmp_path / "clock.json"
    path.write_text(json.dumps({**GOOD, "version": 2}))
    with pytest.raises(NewerFormatError, match="upgrade"):
        read_step_time(path)
    path.write_bytes(b"\xff\xfe\x00")
    for wrong in (tmp_path / "absent.json", tmp_path, path):
        with pytest.raises(InputError, match=wrong.name):
            read_step_time(wrong)

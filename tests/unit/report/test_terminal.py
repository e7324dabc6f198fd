"""The drawing: it fits every window, says everything where there is room, and stays true without colour."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvmon.report import Screen, StreamView
from kvmon.report.terminal import render


def drawn(screen: Screen, width: int, height: int | None = None, *, ascii_only: bool = False) -> list[str]:
    """The lines that a terminal without colour would show."""
    console = Console(file=io.StringIO(), width=width, no_color=True, color_system=None, legacy_windows=False)
    console.print(render(screen, width, height, ascii_only=ascii_only, hint="q quits"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(40, 260), st.integers(11, 90), st.integers(1, 3), st.booleans())
def test_it_fits_every_window(screen: Screen, width: int, height: int, streams: int, trouble: bool) -> None:
    """No line is longer than the window is wide, and there are no more lines than it has."""
    problems = ("cannot read the stream x-0: gone",) if trouble and height > 12 else ()
    lines = drawn(replace(screen, streams=screen.streams[:streams], problems=problems), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("kvmon /recordings")
    assert any("toy/0 kv" in line for line in lines)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 12))
def test_a_window_too_small_to_read_is_no_error(screen: Screen, width: int, height: int) -> None:
    """Whatever somebody does to the window, something is drawn."""
    assert drawn(screen, width, height)


def test_what_cannot_be_read_is_said_above_what_can(screen: Screen) -> None:
    """A problem with one stream leaves the others in view."""
    lines = drawn(replace(screen, problems=("y-0/00000001.seg has format 9",)), 100)
    assert lines[1] == "! y-0/00000001.seg has format 9"
    assert any("toy/0 kv" in line for line in lines)


def test_everything_is_said_where_there_is_room(stream: StreamView) -> None:
    """All numbers of the view stand in one frame of 100 columns."""
    text = "\n".join(drawn(Screen("/r", 1, (stream,)), 100))
    for words in (
        "toy/0 kv alive",
        "active 45.0 %",
        "cached 10.0 %",
        "pinned 5.0 %",
        "deferred 5.0 %",
        "free 35.0 %",
        "35  70.0 KiB",
        "12  largest free block",
        "15  at the head: fits",
        "fragmentation 1-L/F 65.7 %",
        "lost(15) 50.0 %",
        "written 83.3 %",
        "tail 5.6 %",
        "reserved 11.1 %",
        "running 12",
        "waiting 3",
        "preempted 4",
        "prefix hits 25.0 %",
        "steps/s 61.2",
        "tokens/s 4,000",
        "last step 16 ms",
        "GPU 60.0 GiB of 80.0 GiB",
        "kv pool 30.0 GiB",
        "torch slack 7.0 GiB",
        "rest -1.0 GiB",
        "largest free 2.0 GiB",
        "failures 9  no_contiguous_run 7  exhausted 2",
        "last, 2.5 s ago: request 17 needed 15 adjacent units",
        "3 active units have no live owner",
    ):
        assert words in text
    assert [line.split()[1:7] for line in text.splitlines() if line.startswith("│        4")] == [
        ["4", "1", "30", "30.0", "%", "12"]
    ]


def test_what_cannot_be_granted_is_called_so(stream: StreamView) -> None:
    """A need above the largest block after eviction has no room."""
    assert any("at the head: no room" in line for line in drawn(Screen("/r", 1, (replace(stream, head_need=21),)), 100))


def test_what_is_not_known_is_not_drawn(stream: StreamView) -> None:
    """Absent numbers leave no line, and no zero."""
    (pool,) = stream.pools
    bare = replace(
        stream,
        running=None,
        waiting=None,
        head_need=None,
        steps_per_second=None,
        tokens_per_second=None,
        step_seconds=None,
        counters=None,
        devices=(),
        pools=(replace(pool, slots=None, failures=None, last_failure=None, holders=(), unowned=None, lost=None),),
    )
    text = "\n".join(drawn(Screen("/r", 1, (bare,)), 100))
    for words in ("running", "needed", "slots", "failures", "request", "lost", "steps/s", "owner", "GPU"):
        assert words not in text


def test_ascii_windows_get_ascii(screen: Screen) -> None:
    """Every character is ASCII, frames included."""
    assert all(line.isascii() for line in drawn(screen, 100, ascii_only=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"converged": False, "pools": ()}, "converging: read from the middle"),
        ({"last_event_wall_ns": None, "pools": ()}, "no pool is attached yet"),
        ({"condition": "dead"}, "dead since 2026-01-02 03:04:05 UTC, last state"),
        ({"notes": ("5 records were lost by the probe",)}, "! 5 records were lost by the probe"),
    ],
)
def test_what_is_wrong_is_said(stream: StreamView, changes: dict[str, object], words: str) -> None:
    """Converging, empty, dead and incomplete streams say so."""
    shown = replace(stream, **changes)  # type: ignore[arg-type]
    assert any(words in line for line in drawn(Screen("/r", 1, (shown,)), 100))


def test_an_empty_directory_is_said_to_be_empty() -> None:
    """Without a stream the screen says that none has recorded yet."""
    assert "no engine has recorded here yet" in drawn(Screen("/r", 1, ()), 80)[-1]


def test_panels_that_do_not_fit_are_counted(screen: Screen) -> None:
    """A window too small for all pools says how many are left out."""
    assert "2 more: enlarge the window" in drawn(screen, 80, 16)[-1]


def test_panels_side_by_side_have_the_same_scale(screen: Screen) -> None:
    """Beside each other the maps of equal pools have the same number of lines, whatever else is said of them."""
    one, two, _ = screen.streams
    (pool,) = two.pools
    quiet = replace(two, pools=(replace(pool, failures={}, last_failure=None, holders=()),))
    lines = drawn(replace(screen, streams=(one, quiet)), 160, 30)
    assert all(line.count("states") in (0, 2) for line in lines)
    assert sum("states" in line for line in lines) == 1


def test_json_is_plain_data(screen: Screen) -> None:
    """The JSON of a screen has everything, survives a round trip and bounds the map."""
    data = json.loads(json.dumps(screen.as_json()))
    (pool,) = data["streams"][0]["pools"]
    assert data["streams"][0]["prefix_hit_ratio"] == 0.25
    assert pool["largest_free"] == 12
    assert len(pool["map"]["cells"]) == 100
    assert sum(map(sum, pool["map"]["cells"])) == 100

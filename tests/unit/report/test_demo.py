"""The demo's words: the numbers of the run, and commands that fit what was kept."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kvmon.report import Screen, StreamView
from kvmon.report.demo import DemoFacts, Ticker, closing, demo_screen, progress_line

FACTS = DemoFacts(1, 30, 5, 600, 64, "/tmp/x", "http://127.0.0.1:10490/metrics")


@pytest.fixture
def both(stream: StreamView) -> Screen:
    """A contiguous engine in trouble and a paged one that is fine."""
    (pool,) = stream.pools
    fine = replace(pool, layout="paged", contiguity="none", failures={}, last_failure=None, lost=None)
    return Screen(
        "/tmp/x", 1, (replace(stream, engine="contiguous"), replace(stream, engine="paged", waiting=0, pools=(fine,)))
    )


def test_the_closing_words_have_the_numbers_of_the_run(both: Screen) -> None:
    """Failures, how many of them were fragmentation, hits, preemptions and who still waits are told."""
    text = "\n".join(closing(both, FACTS, kept=True, whole=True))
    assert "seed 1, 150 s" in text
    assert "9 allocations failed; 7 of them had enough memory free, but in pieces: that is fragmentation." in text
    assert "preempted requests 4 times and lost 70 computed tokens by it; 3 requests wait at the end." in text
    assert "paged: pages of 16 tokens anywhere, shared prefixes stored once. No allocation failed. 25.0 %" in text
    assert "kvmon capture /tmp/x -o demo.kvmon" in text


def test_a_run_without_failures_is_told_as_it_was(both: Screen) -> None:
    """Where the contiguous pool failed nothing, nothing is claimed; where the paged one failed, it is said why."""
    one, two = both.streams
    calm = replace(one, pools=(replace(one.pools[0], failures={}, last_failure=None),))
    full = replace(two, pools=(replace(two.pools[0], failures={"exhausted": 1}),))
    text = "\n".join(closing(replace(both, streams=(calm, full)), FACTS, kept=False, whole=False))
    assert "No allocation failed this time" in text
    assert "fragmentation" not in text
    assert "1 allocation failed: exhausted." in text
    assert "as much as you watched" in text
    assert "kvmon demo --keep" in text
    assert "/tmp/x" not in text


def test_nothing_is_claimed_of_engines_that_did_not_record() -> None:
    """Without both pools only the commands are left."""
    text = list(closing(Screen("/tmp/x", 1, ()), FACTS, kept=True, whole=True))
    assert not any(line.startswith(("contiguous", "paged")) for line in text)


def test_the_ticker_shows_each_new_failure_once(both: Screen) -> None:
    """The same screen twice is one line; another failure of the same words is a new one."""
    ticker = Ticker()
    ticker.note(both)
    ticker.note(both)
    assert [line.plain for line in ticker.lines(80, 5)] == ["contiguous: request 17 needed 15 adjacent units"]
    one, two = both.streams
    more = replace(one, pools=(replace(one.pools[0], failures={"no_contiguous_run": 8}),))
    ticker.note(replace(both, streams=(more, two)))
    assert len(ticker.lines(80, 5)) == 2
    assert len(ticker.lines(80, 1)) == 1


def test_a_line_for_pipes_names_both_pools(both: Screen) -> None:
    """Free memory, the largest free block where it matters, the queue and the failures."""
    assert progress_line(both, 4.0) == (
        "  4.0 s  |  contiguous: free 35.0 %, largest free block 12.0 %, waiting 3, failures 9"
        "  |  paged: free 35.0 %, cached 10.0 %, waiting 0, failures 0"
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 16)])
@pytest.mark.parametrize("empty", [False, True])
def test_the_live_screen_fits(both: Screen, width: int, height: int, empty: bool) -> None:
    """Both maps, the last failures and the score fit the window, from the first frame on."""
    ticker = Ticker()
    screen = replace(both, streams=()) if empty else both
    ticker.note(screen)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(demo_screen(screen, ticker, FACTS, 12.0, width, height, ascii_only=False))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "12 of 30 s at 5x" in lines[0]
    assert empty or any("contiguous 9   paged 0" in line for line in lines)

"""The demo's words: the numbers of the run, the verdicts, and commands that fit what was kept."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from kvmon.diagnosis import Finding, Holds
from kvmon.report import Screen, StreamView
from kvmon.report.demo import DemoFacts, Ticker, demo_screen, progress_line
from kvmon.report.demo_closing import closing

ABOUT = {"contiguous": "every sequence is one block", "paged": "pages of 16 tokens, anywhere"}
FACTS = DemoFacts(None, 1, 120.0, "chats and agents", ABOUT, "/tmp/x", "http://127.0.0.1:10490/metrics")
SENTENCE = "a request needed 15 units in one piece with 35 free, and the largest block was 12"
VERDICTS = {"contiguous": {"fragmentation": Holds("certain", SENTENCE, ())}, "paged": {}}
FOUND = {
    "contiguous": [Finding("fragmentation", 1, "kv", 1, 2, "certain", SENTENCE, (), (), "pages", "restart")],
    "paged": [],
}
COPIED: dict[str, dict[str, int]] = {"contiguous": {"relocation": 3 << 20}, "paged": {}}


@pytest.fixture
def both(stream: StreamView) -> Screen:
    """A contiguous engine in trouble and a paged one that is fine."""
    (pool,) = stream.pools
    fine = replace(pool, layout="paged", contiguity="none", failures={}, last_failure=None, lost=None)
    ended = {"stop": 5, "length": 4, "abort": 1, "error": 3, "refused": 2}
    return Screen(
        "/tmp/x",
        1,
        (
            replace(stream, engine="paged", waiting=0, pools=(fine,), finished={**ended, "error": 0, "refused": 0}),
            replace(stream, engine="contiguous", finished=ended),
        ),
    )


def said(
    screen: Screen,
    facts: DemoFacts = FACTS,
    found: Mapping[str, list[Finding]] = FOUND,
    *,
    whole: bool = True,
    width: int = 100,
) -> list[str]:
    """The closing, line by line."""
    return list(closing(screen, found, COPIED, facts, 60.0, width, whole=whole))


def test_the_closing_begins_with_the_result_and_has_the_numbers_of_the_run(both: Screen) -> None:
    """The verdict of each engine first; then requests, tokens, failures, preemptions, copies, engine by engine."""
    lines = said(both, replace(FACTS, kept=True), width=1000)
    assert lines[0] == "contiguous: fragmentation, 5 requests lost. paged: healthy, no request lost."
    text = " ".join(" ".join(lines).split())
    assert "(seed 1) for 120 s of their time: chats and agents." in text
    assert f"verdict fragmentation (certain): {SENTENCE}" in text and "avoided by pages" in text
    assert "9 of 20 served, 5 lost for want of memory, 1 hung up, 5 not finished at the end" in text
    assert "refused 9 allocations: no_contiguous_run 7, exhausted 2" in text
    assert "preempted 4 times; 70 computed tokens were lost by it" in text
    assert "copied keys and values: 3.0 MiB to move blocks that had to grow" in text
    assert "verdict healthy: nothing was found" in text and "25.0 % of the prompt tokens were found" in text
    assert "kvmon capture /tmp/x -o demo.kvmon" in text and "kvmon explain fragmentation" in text


def test_who_stops_it_is_told_how_far_it_came_and_that_nothing_is_kept(both: Screen) -> None:
    """No directory is named that is gone, and the length is what was seen."""
    text = " ".join(" ".join(said(both, whole=False)).split())
    assert "for 60 of 120 s of their time, then you stopped them" in text
    assert "kvmon demo --keep" in text and "/tmp/x" not in text


def test_a_scenario_names_itself_in_the_commands(both: Screen) -> None:
    """The same again is the same scenario."""
    assert any("kvmon demo leak --keep" in line for line in said(both, replace(FACTS, scenario="leak")))


def test_nothing_is_claimed_of_engines_that_did_not_record() -> None:
    """Without streams only the commands are left."""
    lines = said(Screen("/tmp/x", 1, ()), found={})
    assert not any(line.startswith(("contiguous", "paged", "Two engines")) for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_closing_fits_the_terminal(both: Screen, width: int) -> None:
    """Sentences are wrapped, and not beyond what is pleasant to read; commands stay whole."""
    assert all(len(line) <= min(width, 100) for line in said(both, width=width) if not line.startswith("    kvmon"))


def test_the_ticker_shows_each_new_failure_once(both: Screen) -> None:
    """The same screen twice is one line; another failure of the same words is a new one."""
    ticker = Ticker()
    ticker.note(both)
    ticker.note(both)
    assert [line.plain for line in ticker.lines(80, 5)] == ["contiguous: request 17 needed 15 adjacent units"]
    paged, contiguous = both.streams
    more = replace(contiguous, pools=(replace(contiguous.pools[0], failures={"no_contiguous_run": 8}),))
    ticker.note(replace(both, streams=(paged, more)))
    assert len(ticker.lines(80, 5)) == 2
    assert len(ticker.lines(80, 1)) == 1


def test_a_line_for_pipes_names_both_engines_with_their_verdicts(both: Screen) -> None:
    """In the demo's order: verdict, free memory, the largest free block where it matters, queue, failures, losses."""
    assert progress_line(both, VERDICTS, FACTS, 4.0) == (
        "4 of 120 s  |  contiguous: fragmentation, free 35.0 %, largest free block 12.0 %, waiting 3, failures 9, "
        "requests lost 5  |  paged: healthy, free 35.0 %, cached 10.0 %, waiting 0, failures 0"
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 16)])
@pytest.mark.parametrize("empty", [False, True])
def test_the_live_screen_fits(both: Screen, width: int, height: int, empty: bool) -> None:
    """Both maps, a verdict each, the last failures and the score fit the window, from the first frame on."""
    ticker = Ticker()
    screen = replace(both, streams=()) if empty else both
    ticker.note(screen)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(demo_screen(screen, VERDICTS, ticker, FACTS, 12.0, width, height, ascii_only=False))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "12 of 120 s" in lines[0]
    assert empty or any(line.startswith("contiguous  fragmentation: a request needed 15") for line in lines)
    assert empty or any("contiguous 9   paged 0" in line for line in lines)

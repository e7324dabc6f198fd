"""What-ifs in words, as the terminal and the page have them."""

from __future__ import annotations

from html import unescape

import pytest

from kvmon.capture.pieces import StreamFacts
from kvmon.replay.asked import Answered, avoided, compared
from kvmon.replay.changes import parse_what_if
from kvmon.replay.recordings import Recording
from kvmon.report.html.what_if import what_if_section
from kvmon.report.what_if import comparison_text
from kvmon.serving.scenarios import find
from tests.unit.replay.replaying import recording_of


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Fragmentation that loses requests."""
    return recording_of(find("post-incident").setups(3)[0][""])


def test_what_was_tried_is_compared_and_what_avoids_a_finding_pointed_at(recording: Recording) -> None:
    """Each change once, with its letter; the cells are those of the runs."""
    (answered,) = avoided([recording])
    said = comparison_text(answered)
    assert said.calibrated.startswith("the same in all ") and not said.asked and not said.doubts
    assert [(one.verdict, one.avoids) for one in said.proposed] == [("fragmentation", True), ("cache_thrash", False)]
    tried = list(dict.fromkeys(one.what_if.text for proposal in answered.proposals for one in proposal.tried))
    assert [run.name for run in said.runs] == ["recorded", *tried]
    assert [run.heading for run in said.runs[1:]] == list("ABCDEFGH")[: len(tried)]
    helps = answered.proposals[0].helps
    assert helps is not None
    pointed = [run for run in said.runs if run.points_at]
    assert [(run.text, run.points_at) for run in pointed] == [(helps.what_if.text, "avoids fragmentation")]
    lost = next(one for one in said.measures if one.label == "requests lost")
    assert lost.cells[0] == f"{recording.outcome.lost:,}"  # type: ignore[union-attr]
    assert lost.cells[said.runs.index(pointed[0])] == f"{helps.most.lost:,}"


def test_of_those_asked_for_the_best_is_pointed_at(recording: Recording) -> None:
    """Most requests served, then least waiting; none where no change is as good."""
    changes = ("pool=60%", "pool=+100%", "allocator=paged,pool=+25%", "pool=+300%")
    (answered,) = compared([recording], [parse_what_if(text) for text in changes])
    said = comparison_text(answered)
    assert said.asked and not said.long
    assert {run.text for run in said.runs if run.points_at} == {"allocator=paged,pool=+25%", "pool=+300%"}
    (worse,) = compared([recording], [parse_what_if("pool=60%")])
    assert not comparison_text(worse).best and not any(run.points_at for run in comparison_text(worse).runs)


def test_many_are_a_line_each(recording: Recording) -> None:
    """With fewer columns, and the same cells."""
    changes = [parse_what_if(f"pool={100 + 5 * step}%") for step in range(9)]
    said = comparison_text(compared([recording], changes)[0])
    headings, lines = said.lines()
    assert said.long and len(lines) == 10 and headings[0] == "what-if"
    cells = {one.short: one.cells for one in said.measures if one.short}
    for place, line in enumerate(lines):
        assert line == (said.runs[place].name, *(cells[heading][place] for heading in headings[1:]))


def test_rows_that_say_nothing_are_left_out_of_what_is_shown(recording: Recording) -> None:
    """Nobody preempts in a recording that never preempts; what was lost is always there."""
    said = comparison_text(compared([recording], [parse_what_if("pool=+300%")])[0])
    labels = [one.label for one in said.rows([1])]
    assert "requests lost" in labels and "verdict" in labels
    assert "preemptions" not in labels and "refused allocations" not in labels


def test_what_is_missing_is_said_and_cannot_break_out_of_the_page() -> None:
    """One line in place of the table."""
    facts = StreamFacts("<b>engine</b>")
    page = what_if_section([comparison_text(Answered(facts, missing="it holds no request: </section><script>"))] * 2)
    assert "<script>" not in page and "<b>engine" not in page and "<table" not in page
    assert "it holds no request: </section><script>." in unescape(page)

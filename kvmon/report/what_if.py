"""What-ifs in words: the lines, columns and cells that the terminal and the page draw alike.

Invariant: every number is an outcome's; nothing is computed here but which of the runs to point at. What is not known
is a dash, never 0. Nothing here reads, replays or draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kvmon.units import format_duration, format_ratio

if TYPE_CHECKING:
    from kvmon.replay.asked import Answered
    from kvmon.replay.calibration import Calibration
    from kvmon.replay.outcome import Outcome
    from kvmon.replay.whatif import Answer, Comparison

__all__ = ["ComparisonText", "Measure", "Proposed", "Run", "comparison_text"]

_LETTERS = "ABCDEFGH"
_DASH = "-"
_NOTHING = (_DASH, "0")
_ALWAYS = ("requests lost", "verdict")
_BEST = "most requests served, then least waiting for memory"

Pair = tuple["Outcome", "Outcome"]
Say = Callable[["Outcome"], str]


@dataclass(frozen=True)
class Run:
    """One column: the recording, its replays without a change, or a what-if.

    heading     "recorded", "replayed", "no change" or a letter; empty for what-ifs where letters would not do
    text        the what-if; empty for the others
    points_at   why to look at this one, such as "avoids fragmentation"; empty where there is no reason to
    """

    heading: str
    text: str = ""
    points_at: str = ""

    @property
    def name(self) -> str:
        """The what-if, or what the run is without one."""
        return self.text or self.heading


@dataclass(frozen=True)
class Measure:
    """One row: a cell for each run. `part`: of the measure above it. `short`: its heading where runs are rows; empty
    where it is left out there."""

    label: str
    cells: tuple[str, ...]
    part: bool = False
    short: str = ""


@dataclass(frozen=True)
class Proposed:
    """What was tried against one verdict, in a sentence, and whether it avoids it."""

    verdict: str
    said: str
    avoids: bool


@dataclass(frozen=True)
class ComparisonText:
    """Of one stream: what was compared, or in `missing` why it cannot be replayed.

    calibrated      how far the replay without a change is from the recording
    doubts          why the rest is to be taken with care
    runs, measures  columns and rows; the runs are those asked for (`asked`), else those that were tried
    best            what the runs that are pointed at are best in; empty where each says so itself
    assumed, ranges what every answer takes for granted; why some are a range
    """

    name: str
    missing: str = ""
    calibrated: str = ""
    doubts: tuple[str, ...] = ()
    proposed: tuple[Proposed, ...] = ()
    asked: bool = False
    runs: tuple[Run, ...] = ()
    measures: tuple[Measure, ...] = ()
    best: str = ""
    assumed: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()

    @property
    def long(self) -> bool:
        """Whether there are so many what-ifs that each is to be a line."""
        return any(not run.heading for run in self.runs)

    def rows(self, places: Sequence[int]) -> list[Measure]:
        """The measures of the runs at these places, without those that say nothing about any of them."""
        chosen = (
            Measure(one.label, tuple(one.cells[place] for place in places), one.part, one.short)
            for one in self.measures
        )
        return [one for one in chosen if one.label in _ALWAYS or any(cell not in _NOTHING for cell in one.cells)]

    def lines(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """A heading for each column and a line for each run: its name, and the measures that have a short heading."""
        chosen = [one for one in self.measures if one.short]
        lines = [(run.name, *(one.cells[place] for one in chosen)) for place, run in enumerate(self.runs)]
        return ("what-if", *(one.short for one in chosen)), lines


def comparison_text(answered: Answered) -> ComparisonText:
    """The answer of one stream in words."""
    comparison = answered.comparison
    if comparison is None:
        return ComparisonText(answered.name, answered.missing)
    asked = bool(comparison.answers)
    tried = {one.what_if.text: one for proposal in answered.proposals for one in proposal.tried}
    answers = comparison.answers or tuple(tried.values())
    outcomes: list[tuple[Run, Pair]] = _without_change(comparison) if answers else []
    avoided = _avoided(answered)
    best = _best(comparison.unchanged, answers) if asked else set()
    for place, one in enumerate(answers):
        heading = _LETTERS[place] if len(answers) <= len(_LETTERS) else ""
        points_at = "best" if place in best else avoided.get(one.what_if.text, "")
        outcomes.append((Run(heading, one.what_if.text, points_at), (one.least, one.most)))
    return ComparisonText(
        name=answered.name,
        calibrated=_calibrated(comparison.calibration),
        doubts=comparison.doubts,
        proposed=tuple(Proposed(one.verdict, one.said, one.helps is not None) for one in answered.proposals),
        asked=asked,
        runs=tuple(run for run, _ in outcomes),
        measures=tuple(_measures([pair for _, pair in outcomes])),
        best=_BEST if best else "",
        assumed=tuple(dict.fromkeys(comparison.assumptions)),
        ranges=tuple(dict.fromkeys(line for one in (comparison.unchanged, *answers) for line in one.ranges)),
    )


def _calibrated(calibration: Calibration) -> str:
    if calibration.exact:
        return f"the same in all {calibration.steps:,} steps"
    if calibration.curve_mean_ratio is None:
        return calibration.quality
    if calibration.other_memory_steps == 0:
        return f"{calibration.quality}, the same memory in all {calibration.steps:,} steps"
    return f"{calibration.quality}, memory in use {calibration.curve_mean_ratio:.1%} of the pool off on average"


def _without_change(comparison: Comparison) -> list[tuple[Run, Pair]]:
    """The recording and its replays without a change, those that differ."""
    found: list[tuple[Run, Pair]] = [(Run("recorded"), (comparison.recorded, comparison.recorded))]
    replayed = comparison.calibration.replayed
    for name, pair in (
        ("replayed", (replayed, replayed)),
        (comparison.unchanged.what_if.text, (comparison.unchanged.least, comparison.unchanged.most)),
    ):
        if pair != found[-1][1]:
            found.append((Run(name), pair))
    return found


def _avoided(answered: Answered) -> dict[str, str]:
    """Texts of the what-ifs that avoid a finding, with which ones."""
    found: dict[str, list[str]] = {}
    for proposal in answered.proposals:
        if proposal.helps is not None:
            found.setdefault(proposal.helps.what_if.text, []).append(proposal.verdict)
    return {text: f"avoids {', '.join(verdicts)}" for text, verdicts in found.items()}


def _best(unchanged: Answer, answers: Sequence[Answer]) -> set[int]:
    """Places of the what-ifs with which, in the worse case, most requests are served, and those wait least; none where
    no change is as good."""
    ranks = [_rank(one) for one in answers]
    best = min(ranks)
    return {place for place, rank in enumerate(ranks) if rank == best} if best < _rank(unchanged) else set()


def _rank(one: Answer) -> tuple[int, float]:
    return -min(one.least.finished, one.most.finished), max(one.least.wait_s, one.most.wait_s)


def _measures(pairs: Sequence[Pair]) -> Iterator[Measure]:
    reasons = sorted({reason for pair in pairs for outcome in pair for reason in outcome.failures})
    says: list[tuple[str, str, Say]] = [
        ("requests lost", "lost", lambda one: f"{one.lost:,}"),
        ("  hung up", "", lambda one: f"{one.hung_up:,}"),
        ("  not ended", "", lambda one: f"{one.unfinished:,}" + (" (cut)" if one.cut_short else "")),
        ("refused allocations", "refused", lambda one: f"{one.refused_allocations:,}"),
        *((f"  {reason}", "", partial(_refused_for, reason)) for reason in reasons),
        ("memory, peak", "peak", lambda one: _ratio(one.peak_ratio)),
        ("memory, mean", "", lambda one: _ratio(one.mean_ratio)),
        ("waited for memory", "waited", lambda one: _seconds(one.wait_s)),
        ("  95 % of waits", "", lambda one: _seconds(one.wait_p95_s)),
        ("preemptions", "preempted", lambda one: f"{one.preemptions:,}"),
        ("tokens recomputed", "", lambda one: f"{one.recomputed_tokens:,}"),
        ("prefix hits", "hits", lambda one: _ratio(one.hit_ratio)),
        ("free, fragmented", "", lambda one: _ratio(one.free_at_fragmentation_ratio)),
        ("  largest of it", "", lambda one: _ratio(one.largest_at_fragmentation_ratio)),
        ("done after", "", lambda one: _seconds(one.duration_s)),
        ("tokens a second", "", lambda one: _DASH if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}"),
        ("verdict", "verdict", lambda one: one.verdict.replace("_", " ")),
    ]
    for label, short, say in says:
        cells = tuple(_cell(say(low), say(high)) for low, high in pairs)
        yield Measure(label.strip(), cells, label.startswith(" "), short)


def _refused_for(reason: str, one: Outcome) -> str:
    return f"{one.failures.get(reason, 0):,}"


def _cell(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _ratio(value: float | None) -> str:
    return _DASH if value is None else format_ratio(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return _DASH
    return "0" if value == 0 else format_duration(value)

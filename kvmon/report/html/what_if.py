"""The part of the page that says what a change would have done: sentences, a table, what its numbers stand on.

It is text alone: a run that is pointed at is so in words, its colour comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kvmon.report.what_if import ComparisonText, Run
from kvmon.units import counted

__all__ = ["what_if_section"]

_BESTS = 3  # named above a table of many lines


def what_if_section(compared: Sequence[ComparisonText]) -> str:
    """What was compared, stream by stream."""
    parts = []
    for number, said in enumerate(compared, start=1):
        heading = f"<h3>{escape(said.name)}</h3>\n" if len(compared) > 1 else ""
        parts.append(heading + (_missing(said) if said.missing else _compared(said, number)))
    body = "\n".join(parts)
    return f"""<section id="what-if">
<h2>What would have avoided it</h2>
<p class="soft">The recorded requests, replayed through the simulator's scheduler and allocators with a change. Every
number is measured on a run.</p>
{body}
</section>"""


def _missing(said: ComparisonText) -> str:
    return f'<p class="note">Not replayed: {escape(said.missing)}.</p>'


def _compared(said: ComparisonText, number: int) -> str:
    doubts = "".join(f'<p class="note"><b>Take with care:</b> {escape(doubt)}.</p>' for doubt in said.doubts)
    proposed = "".join(
        f'<li class="{"good" if one.avoids else "bad"}"><b>{escape(one.verdict)}</b> '
        f"<i>{'avoided' if one.avoids else 'not avoided'}</i> <span>{escape(one.said)}</span></li>"
        for one in said.proposed
    )
    parts = [
        f"<p>Without a change: <b>{escape(said.calibrated)}</b>.</p>",
        doubts,
        f'<ul class="proposed">{proposed}</ul>' if proposed else "",
        _table(said, number) if said.runs else "",
        _notes(said) if said.runs else "",
    ]
    return "\n".join(part for part in parts if part)


def _table(said: ComparisonText, number: int) -> str:
    caption = f"what-if-{number}"
    head, rows = _long_table(said) if said.long else _wide_table(said)
    tall = " tall" if said.long else ""
    return (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-labelledby="{caption}">'
        f'<table class="runs"><caption id="{caption}"><span>{_caption(said)}</span></caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )


def _caption(said: ComparisonText) -> str:
    """What the lines are, and which of them to look at."""
    tried = [run for run in said.runs if run.text]
    text = counted(len(tried), "what-if") if said.asked else f"{counted(len(tried), 'change')} tried"
    found = [run for run in tried if run.points_at]
    if said.best:
        names = ", ".join(run.text if said.long else run.heading for run in found[:_BESTS])
        more = f" and {len(found) - _BESTS:,} more" if len(found) > _BESTS else ""
        text += f"; best: {names}{more}, with {said.best}"
    return escape(text)


def _wide_table(said: ComparisonText) -> tuple[str, str]:
    """Measures down, runs across."""
    head = '<td class="corner"></td>' + "".join(
        f'<th scope="col" class="number{_kind(run)}">{_heading(run)}</th>' for run in said.runs
    )
    rows = []
    for measure in said.rows(range(len(said.runs))):
        label = f'<th scope="row"{" class=part" if measure.part else ""}>{escape(measure.label)}</th>'
        cells = "".join(
            f'<td class="number{_kind(run)}">{escape(cell)}</td>'
            for run, cell in zip(said.runs, measure.cells, strict=True)
        )
        rows.append(f"<tr>{label}{cells}</tr>")
    return head, "\n".join(rows)


def _long_table(said: ComparisonText) -> tuple[str, str]:
    """A line for each run; the last cell is its verdict."""
    headings, lines = said.lines()
    last = len(headings) - 1
    head = "".join(
        f'<th scope="col"{" class=number" if 0 < i < last else ""}>{escape(text)}</th>'
        for i, text in enumerate(headings)
    )
    rows = []
    for run, (_, *cells) in zip(said.runs, lines, strict=True):
        name = f'<th scope="row">{_broken(run.text) if run.text else run.heading}{_pointer(run)}</th>'
        numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells[:-1])
        kind = ' class="best"' if run.points_at else ""
        rows.append(f"<tr{kind}>{name}{numbers}<td>{escape(cells[-1])}</td></tr>")
    return head, "\n".join(rows)


def _kind(run: Run) -> str:
    return " best" if run.points_at else ""


def _heading(run: Run) -> str:
    change = f'<span class="change">{_broken(run.text)}</span>' if run.text else ""
    return f"{escape(run.heading)}{change}{_pointer(run)}"


def _pointer(run: Run) -> str:
    return f' <span class="pointer">{escape(run.points_at)}</span>' if run.points_at else ""


def _broken(text: str) -> str:
    """A change, which may go on in the next line behind a comma and nowhere else."""
    *parts, last = escape(text).split(",")
    return "".join(f"<code>{part},</code><wbr>" for part in parts) + f"<code>{last}</code>"


def _notes(said: ComparisonText) -> str:
    rows = "".join(
        f"<dt>{label}</dt>{''.join(f'<dd>{escape(line)}</dd>' for line in lines)}"
        for label, lines in (("assumed", said.assumed), ("range", said.ranges))
        if lines
    )
    return f'<dl class="notes">{rows}</dl>' if rows else ""

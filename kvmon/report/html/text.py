"""The parts of the page that are text: they say everything important without a script, to a screen reader too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from kvmon.report.incident import Chart, FindingText, Line, Pool, Report, Stream, Table
from kvmon.report.memory_map import MAP_STATES
from kvmon.units import counted, format_bytes, format_clock, format_duration, format_ratio

__all__ = ["answer_section", "glossary_section", "stream_section"]

_HEALTHY = "healthy"


def answer_section(report: Report) -> str:
    """The verdict and the sentence behind it, first of all."""
    kind = " healthy" if report.verdict == _HEALTHY else ""
    return f"""<section id="answer" class="answer{kind}" aria-label="The answer">
<h1>{escape(report.verdict)}</h1>
<p>{escape(report.sentence)}</p>
</section>"""


def stream_section(stream: Stream, *, alone: bool) -> str:
    """One life of one engine: facts, findings, curves, pools, completeness."""
    number = stream.number
    head = "" if alone else f"<h2>{escape(stream.name)}: {escape(stream.verdict)}</h2>\n"
    charts = [_figure(chart, f'data-stream-chart="{i}"') for i, chart in enumerate(stream.charts)]
    known = "".join(f"<p>{escape(sentence)}</p>" for sentence in stream.known.sentences)
    return f"""<section id="stream-{number}">
{head}<p class="soft">{escape(stream.name)}: {escape(stream.summary)}</p>
{_facts(stream.facts)}
<section id="findings-{number}"><h2>Findings</h2>
{_findings(stream.findings)}
</section>
<section id="time-{number}"><h2>Over time</h2>
{_zoom_bar() if stream.pools or charts else "<p>Nothing was recorded that could be drawn.</p>"}
{_overview(stream)}
{"".join(_pool(stream, pool) for pool in stream.pools)}
{"".join(charts)}
</section>
<section id="known-{number}"><h2>How complete the evidence is</h2>
{known}
</section>
</section>"""


def glossary_section(report: Report) -> str:
    """The terms of the field that the page uses."""
    rows = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in report.glossary)
    return f'<section id="glossary">\n<h2>Glossary</h2>\n<dl>{rows}</dl>\n</section>'


def _table(table: Table) -> str:
    """A table with its caption, scrollable where it is wide."""
    head = "".join(_cell("th", text, i in table.numeric, ' scope="col"') for i, text in enumerate(table.head))
    rows = "".join(
        f"<tr>{''.join(_cell('td', text, i in table.numeric) for i, text in enumerate(row))}</tr>" for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _cell(name: str, text: str, numeric: bool, scope: str = "") -> str:
    kind = ' class="number"' if numeric else ""
    return f"<{name}{scope}{kind}>{escape(text)}</{name}>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    rows = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in facts)
    return f'<dl class="facts">{rows}</dl>'


def _findings(findings: Sequence[FindingText]) -> str:
    if not findings:
        return "<p>Nothing was found.</p>"
    return f'<div class="cards">{"".join(_finding(finding) for finding in findings)}</div>'


def _finding(finding: FindingText) -> str:
    where = f"pool {escape(finding.pool)}, " if finding.pool else ""
    margin = max((finding.end - finding.start) * 0.05, 0.5)
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in finding.rows)
    span = f"{format_clock(finding.start)} to {format_clock(finding.end)}"
    return f"""<article class="finding">
<h3>{escape(finding.verdict)}</h3>
<p class="soft">{where}{escape(finding.confidence)}, {span}
<button type="button" data-from="{finding.start - margin:.6g}" data-to="{finding.end + margin:.6g}">Show</button></p>
<dl>{rows}</dl>
</article>"""


def _zoom_bar() -> str:
    buttons = (("in", "Zoom in"), ("out", "Zoom out"), ("left", "Earlier"), ("right", "Later"), ("reset", "All"))
    made = "".join(f'<button type="button" data-act="{act}">{text}</button>' for act, text in buttons)
    return (
        f'<div class="zoom" role="group" aria-label="Range of time">{made}<output aria-live="polite"></output></div>'
        '<p class="soft">Drag over a chart or the map to zoom; with a chart in focus plus and minus zoom, arrow keys '
        "move, 0 shows all. Shaded: a finding holds. Red ticks: refused allocations. Grey: not known.</p>"
    )


def _overview(stream: Stream) -> str:
    if stream.overview is None:
        return ""
    return f"<details><summary>The same as a table</summary>{_table(stream.overview)}</details>"


def _pool(stream: Stream, pool: Pool) -> str:
    charts = "".join(_figure(chart, f'data-chart="{i}"') for i, chart in enumerate(pool.charts))
    memory = "" if charts or pool.memory is not None else "<p>Nothing of it is known.</p>"
    if pool.memory is not None:
        per_row = -(-pool.memory.capacity // pool.memory.rows)
        said = (
            "each column a moment, a refused allocation where there was one; each row "
            f"{counted(per_row, 'unit')}, the lowest address at the top; paler where less is in use"
        )
        key = "".join(_key(state, state) for state in (*MAP_STATES[1:], "free", "unknown"))
        memory = _drawn("Map of the pool over time", said, key, '<div class="map"></div>')
    return f"""<section id="pool-{stream.number}-{pool.number}"><h3>Pool {escape(pool.name)}</h3>
{_facts(pool.facts)}
{charts}
{memory}
{_failures(pool)}
</section>
"""


def _failures(pool: Pool) -> str:
    reasons = "" if pool.reasons is None else _table(pool.reasons)
    if not pool.failures:
        return f"<h4>Refused allocations</h4><p>{'None.' if not pool.refused else ''}</p>{reasons}"
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in pool.failure_head)
    rows = "".join(
        f'<tr tabindex="{-1 if i else 0}" aria-selected="false">'
        + "".join(f"<td>{escape(text)}</td>" for text in failure.cells)
        + "</tr>"
        for i, failure in enumerate(pool.failures)
    )
    shown = f"{len(pool.failures):,} of {pool.refused:,}" if len(pool.failures) < pool.refused else f"{pool.refused:,}"
    caption = f"{shown}; choose one with the mouse or the arrow keys to see the memory just before it"
    return f"""<h4>Refused allocations</h4>
{reasons}
<div class="failures"><div class="scroll"><table class="pick"><caption>{caption}</caption>
<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>
<div class="detail" aria-live="polite"></div></div>"""


def _figure(chart: Chart, place: str) -> str:
    key = "".join(_key(line.colour, line.label) for line in chart.lines)
    said = ". ".join(filter(None, (_said(line, chart.unit) for line in chart.lines)))
    label = escape(f"{chart.title}. {said}", quote=True)
    plot = f'<div class="plot" {place} tabindex="0" role="img" aria-label="{label}"></div>'
    return _drawn(chart.title, chart.description, key, plot)


def _drawn(title: str, description: str, key: str, drawing: str) -> str:
    return f"""<figure><figcaption><b>{escape(title)}</b> <span class="soft">{escape(description)}</span>
<ul class="key">{key}</ul></figcaption>{drawing}</figure>
"""


def _key(colour: str, label: str) -> str:
    return f'<li><i style="background:var(--{colour})"></i>{escape(label)}</li>'


_SAID: dict[str, Callable[[float], str]] = {
    "bytes": format_bytes,
    "seconds": format_duration,
    "ratio": format_ratio,
    "count": lambda value: f"{value:,.4g}",
}


def _said(line: Line, unit: str) -> str:
    """A curve in words: its lowest, its highest, its last known value."""
    lows = [value for value in (line.low or line.last or line.high or ()) if value is not None]
    highs = [value for value in (line.high or line.last or ()) if value is not None]
    if not lows or not highs:
        return f"{line.label}: not known"
    return f"{line.label}: {_SAID[unit](min(lows))} to {_SAID[unit](max(highs))}"

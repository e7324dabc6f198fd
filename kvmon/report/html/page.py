"""The whole page: text that is readable without a script, and the data and scripts that bring the charts to life.

Invariant: everything is inside; the page's own policy forbids whatever would be fetched. The same report gives the
same bytes. uPlot draws the curves (its license is in the page); the rest of the scripts is kvmon's.
"""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import Any

from kvmon.report.html.data import page_data
from kvmon.report.html.text import answer_section, glossary_section, stream_section
from kvmon.report.html.what_if import what_if_section
from kvmon.report.incident import Report

__all__ = ["render_html"]

_STYLES = ("uplot.min.css", "report.css")
_SCRIPTS = ("uplot.min.js", "core.js", "charts.js", "map.js", "failures.js", "page.js")
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)


def render_html(report: Report) -> str:
    """The page of a report."""
    title = f"{report.verdict}: {report.source}"
    sections = [answer_section(report)]
    sections += [stream_section(stream, alone=len(report.streams) == 1) for stream in report.streams]
    if report.what_if:
        sections.append(what_if_section(report.what_if))
    sections.append(glossary_section(report))
    styles = "\n".join(_asset(name) for name in _STYLES)
    scripts = "\n".join(f"<script>\n{_asset(name)}\n</script>" for name in _SCRIPTS)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="kvmon {escape(report.version)}">
<title>{escape(title)}</title>
<style>
{styles}
</style>
</head>
<body>
<a class="skip" href="#answer">Skip to the answer</a>
<header>
<strong>kvmon replay</strong> <span class="mono">{escape(report.source)}</span>
<span class="spring"></span>
<span>kvmon {escape(report.version)}</span>
<button type="button" id="theme" hidden>Dark</button>
</header>
{_navigation(report)}
<main>
{chr(10).join(sections)}
</main>
<footer>Made by <code>kvmon replay --html</code>. Charts by uPlot, MIT license:
<details><summary>its text</summary><pre>{escape(_asset("uplot.LICENSE"))}</pre></details></footer>
<script type="application/json" id="data">{_json(page_data(report))}</script>
{scripts}
</body>
</html>
"""


def _navigation(report: Report) -> str:
    links = [("answer", "Answer")]
    for stream in report.streams:
        if len(report.streams) > 1:
            links.append((f"stream-{stream.number}", stream.name))
            continue
        links += [(f"findings-{stream.number}", "Findings"), (f"time-{stream.number}", "Over time")]
        links += [(f"pool-{stream.number}-{pool.number}", f"Pool {pool.name}") for pool in stream.pools]
        links.append((f"known-{stream.number}", "Completeness"))
    if report.what_if:
        links.append(("what-if", "What if"))
    links.append(("glossary", "Glossary"))
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _asset(name: str) -> str:
    return files("kvmon.report.html").joinpath(f"assets/{name}").read_text(encoding="utf-8").strip()


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c")

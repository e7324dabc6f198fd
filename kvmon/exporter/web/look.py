"""How the exporter's own pages look: one frame, in light and dark, without a script, a font or a file from anywhere."""

from __future__ import annotations

import base64
import hashlib
import html

__all__ = ["HTML_HEADERS", "page"]

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f7f9; --line: #d5d9e0; --ink: #16191f; --soft: #565d6b; --accent: #0b5cad;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171c; --raised: #1d2128; --line: #363c47; --ink: #e8eaee; --soft: #a3abba; --accent: #7db8f0;
} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
header, main, footer { max-width: 46rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.5rem; color: var(--soft); font-size: .92rem; }
footer { padding-top: 1rem; padding-bottom: 2rem; color: var(--soft); font-size: .92rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 1rem 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
.lead { color: var(--soft); margin: 0 0 1.5rem; }
.links { list-style: none; margin: 0; padding: 0; border-top: 1px solid var(--line); }
.links li { display: grid; grid-template-columns: 15rem 1fr; gap: .1rem 1.25rem; padding: .55rem 0;
  border-bottom: 1px solid var(--line); }
.links span { color: var(--soft); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
code { background: var(--raised); padding: .1em .3em; border-radius: .2rem; overflow-wrap: anywhere; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: .3rem; padding: .7rem .9rem;
  overflow-x: auto; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: .3rem solid var(--line); color: var(--soft); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
@media (max-width: 30rem) { .links li { grid-template-columns: 1fr; } }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HTML_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of a page: nothing but its own style is loaded or run."""


def page(title: str, body: str, version: str, *, above: str = "") -> str:
    """A whole page around `body`; `above` stands over it. Both are HTML, the others are text."""
    header = f"<header>{above}</header>\n" if above else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{header}<main>
{body}
</main>
<footer>Version {html.escape(version)}</footer>
</body>
</html>
"""

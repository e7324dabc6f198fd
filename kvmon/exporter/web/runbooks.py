"""The runbooks of kvmon's alerts, as pages: a folder of Markdown files in the package, one for each alert.

Invariant: a name is looked up among those that were there at the start; no path is ever made of what a client sends.
"""

from __future__ import annotations

import html
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import unquote

from kvmon.exporter.web.look import page

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["RUNBOOKS_PATH", "Runbooks"]

RUNBOOKS_PATH = "/runbooks/"
_MARKDOWN = ".md"


class Runbooks:
    """The runbooks in `folder`, by default those that the package has."""

    def __init__(self, version: str, folder: Traversable | None = None) -> None:
        folder = folder if folder is not None else files("kvmon") / "alerts" / "runbooks"
        found = [file for file in folder.iterdir() if file.name.endswith(_MARKDOWN)] if folder.is_dir() else []
        self._files = {file.name.removesuffix(_MARKDOWN): file for file in sorted(found, key=lambda file: file.name)}
        self._version = version
        self._page = lru_cache(maxsize=None)(self._make_page)

    def index(self) -> str:
        """The list of them."""
        rows = "\n".join(
            f'<li><a href="{html.escape(name)}">{html.escape(name)}</a> <span>{html.escape(_title(file))}</span></li>'
            for name, file in self._files.items()
        )
        listed = f'<ul class="links">\n{rows}\n</ul>' if rows else "<p>This build of kvmon has no runbooks.</p>"
        body = f'<h1>Runbooks</h1>\n<p class="lead">What to do when an alert of kvmon fires.</p>\n{listed}'
        return page("Runbooks of kvmon", body, self._version, above='<a href="../">kvmon exporter</a>')

    def page(self, name: str) -> str | None:
        """The runbook of an alert; None where there is none."""
        return self._page(name) if name in self._files else None

    def _make_page(self, name: str) -> str:
        above = '<a href="../">kvmon exporter</a> / <a href="./">Runbooks</a>'
        return page(f"{name}, runbook of kvmon", self._html(name), self._version, above=above)

    def _html(self, name: str) -> str:
        from markdown_it import MarkdownIt

        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        tokens = markdown.parse(self._files[name].read_text(encoding="utf-8"))
        for token in chain.from_iterable(block.children or () for block in tokens):
            target = unquote(str(token.attrGet("href") or "")).removesuffix(_MARKDOWN)
            if token.type == "link_open" and target in self._files:
                token.attrSet("href", target)
        return str(markdown.renderer.render(tokens, markdown.options, {}))


def _title(file: Traversable) -> str:
    """What the heading of a runbook says behind the name of its alert."""
    first = file.read_text(encoding="utf-8").lstrip().partition("\n")[0]
    title = first.lstrip("# ").strip() if first.startswith("#") else ""
    return title.removeprefix(file.name.removesuffix(_MARKDOWN)).removeprefix(": ")

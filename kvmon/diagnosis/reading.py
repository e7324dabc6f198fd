"""The page of each verdict: Markdown files in `pages/`, also in the documentation.

Invariant: a page has a title line `# name: meaning`, and every verdict has one.
"""

from __future__ import annotations

from importlib.resources import files

from kvmon.diagnosis.catalogue import HEALTHY, VERDICTS

__all__ = ["first_line", "page", "pages"]


def pages() -> list[str]:
    """Names of all verdicts, healthy first."""
    return [HEALTHY, *VERDICTS]


def page(name: str) -> str:
    """The page of a verdict. Raises FileNotFoundError for a name that is none."""
    return (files("kvmon.diagnosis.pages") / f"{name}.md").read_text(encoding="utf-8")


def first_line(name: str) -> str:
    """What a verdict means, in a line."""
    return page(name).splitlines()[0].partition(": ")[2]

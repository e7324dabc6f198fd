"""The pages of runbooks: those that are there, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.exporter.web.runbooks import Runbooks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runbooks, and beside them what is none."""
    folder = tmp_path / "runbooks"
    folder.mkdir()
    text = """# KvmonLeak

Memory is <script>alert(1)</script> lost; see [the other](KvmonStall.md) and [outside](https://example.org/a.md).

| lever | cost |
| --- | --- |
| restart | high |

    kvmon why
"""
    (folder / "KvmonLeak.md").write_text(text, encoding="utf-8")
    (folder / "KvmonStall.md").write_text("# An engine & its stall\n\n[bad](javascript:alert(1))\n", encoding="utf-8")
    (folder / "notes.txt").write_text("secret", encoding="ascii")
    (tmp_path / "outside.md").write_text("secret", encoding="ascii")
    return folder


def test_a_runbook_is_rendered(folder: Path) -> None:
    """Tables and code too; HTML in it is text; links to its neighbours lead to their pages."""
    page = Runbooks("1.2.3", folder).page("KvmonLeak")
    assert page is not None
    for text in (
        "<h1>KvmonLeak</h1>",
        "&lt;script&gt;",
        '<a href="KvmonStall">the other</a>',
        '<a href="https://example.org/a.md">outside</a>',
        "<td>restart</td>",
        "<pre><code>kvmon why",
        "Version 1.2.3",
        "prefers-color-scheme: dark",
    ):
        assert text in page
    assert "javascript:" not in (Runbooks("1", folder).page("KvmonStall") or "").replace("[bad](javascript", "")


def test_the_index_lists_them_with_their_titles(folder: Path) -> None:
    """A title that is the alert's name is not said twice."""
    index = Runbooks("1", folder).index()
    assert '<a href="KvmonLeak">KvmonLeak</a> <span></span>' in index
    assert '<a href="KvmonStall">KvmonStall</a> <span>An engine &amp; its stall</span>' in index
    assert "notes" not in index


def test_the_index_does_not_say_a_name_twice() -> None:
    """The shipped runbooks begin with the name of their alert."""
    index = Runbooks("1").index()
    assert '<a href="KvmonLeak">KvmonLeak</a> <span>' in index
    assert "<span>Kvmon" not in index


def test_without_runbooks_the_index_says_so(tmp_path: Path) -> None:
    """A folder that is missing is no error."""
    assert "has no runbooks" in Runbooks("1", tmp_path / "none").index()


@given(st.one_of(st.text(), st.sampled_from(["..", "../outside", "notes.txt", "KvmonLeak.md", "./KvmonLeak", "", "."])))
def test_no_other_name_is_found(name: str) -> None:
    """A name is one of a list, whatever it looks like."""
    runbooks = Runbooks("1")
    runbooks._files = {"KvmonLeak": Path(__file__)}
    assert (runbooks.page(name) is None) == (name != "KvmonLeak")


def test_those_that_are_shipped_are_rendered() -> None:
    """Each has a heading, and its links among them lead somewhere; there may be none in a build."""
    runbooks = Runbooks("1")
    for name in runbooks._files:
        page = runbooks.page(name)
        assert page is not None and "<h1>" in page
        for target in re.findall(r'href="([A-Za-z]+)(?:\.md)?"', page):
            assert runbooks.page(target) is not None, f"{name} links {target}"

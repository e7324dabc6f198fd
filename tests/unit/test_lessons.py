"""The lessons say what their commands print today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["server-failures", "prefix-mixed"])
def test_a_page_is_up_to_date(name: str) -> None:
    """Two that are quick; `make docs` writes all of them."""
    made = subprocess.run(
        [sys.executable, str(DOCS / "lessons.py"), "--page", name], cwd=DOCS.parent, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout == (DOCS / "lessons" / f"{name}.md").read_text(encoding="utf-8")


def test_every_lesson_has_its_page_and_picture() -> None:
    """And nothing else is there."""
    listed = subprocess.run(
        [sys.executable, str(DOCS / "lessons.py"), "--list"],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    expected = {"README.md", *(f"{name}.{kind}" for name in listed for kind in ("md", "svg"))}
    assert {path.name for path in (DOCS / "lessons").iterdir()} == expected

"""What-ifs in the HTML report, in a real browser: every kind of table, by keyboard, narrow, in both themes."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmon.cli.main import run
from tests.browser import visit_file

SWEEP = "allocator=paged block=16,32,64 pool=80%..140%:20%"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one incident with what was tried, with two changes, with a sweep, and with none."""
    where = tmp_path_factory.mktemp("what-if")
    capture = where / "incident.kvmon"
    assert run(["simulate", "--scenario", "post-incident", "--seed", "3", "--out", str(capture), "--json"]) == 0
    made = {}
    for name, options in {
        "tried": [],
        "asked": ["--what-if", "allocator=paged", "--what-if", "retain=0"],
        "sweep": ["--sweep", SWEEP, "--executor", "none"],
        "none": ["--no-what-if"],
    }.items():
        made[name] = where / f"{name}.html"
        assert run(["replay", str(capture), "--html", str(made[name]), *options]) == 1
    return made


def test_a_finding_says_what_avoids_it_and_the_table_compares(pages: dict[str, Path]) -> None:
    """Beside the finding and in its own section: what was run, which of it helps, and what was assumed."""
    with visit_file(pages["tried"]) as seen:
        card = seen.page.locator("article.finding", has_text="fragmentation").first
        assert "there is no fragmentation" in card.locator("dt:text-is('checked') + dd").inner_text()
        section = seen.page.locator("#what-if")
        assert "the same in all 11,344 steps" in section.inner_text()
        assert section.locator(".proposed li").all_inner_texts()[0].startswith("fragmentation avoided with allocator=")
        assert section.locator("thead th.best").inner_text().endswith("avoids fragmentation")
        assert section.locator("tbody tr").first.locator("th, td").all_inner_texts()[:2] == ["requests lost", "74"]
        assert "closed-loop" in section.locator(".notes").inner_text()
        assert seen.complaints == [] and seen.requests == [pages["tried"].resolve().as_uri()]


def test_what_was_asked_for_is_in_the_page(pages: dict[str, Path]) -> None:
    """Two changes side by side with letters; a sweep as a line each, the best named above; or nothing at all."""
    with visit_file(pages["asked"]) as seen:
        heads = seen.page.locator("#what-if thead th").all_inner_texts()
        assert [head.split() for head in heads] == [["recorded"], ["A", "allocator=paged", "best"], ["B", "retain=0"]]
    with visit_file(pages["sweep"]) as seen:
        rows = seen.page.locator("#what-if tbody tr")
        assert rows.count() == 13
        assert (
            "12 what-ifs; best: allocator=paged,block=16,pool=120%"
            in seen.page.locator("#what-if caption").inner_text()
        )
        assert "best" in rows.nth(3).inner_text() and "best" not in rows.nth(1).inner_text()
    with visit_file(pages["none"]) as seen:
        assert seen.page.locator("#what-if").count() == 0
        assert seen.page.get_by_role("link", name="What if").count() == 0
    assert all(page.stat().st_size < 8e6 for page in pages.values())


@pytest.mark.parametrize("name", ["tried", "sweep"])
@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_window_scrolls_the_table_by_keyboard_and_keeps_the_names(
    pages: dict[str, Path], name: str, dark: bool
) -> None:
    """The page itself does not scroll sideways; the first column stays in sight; every cell has its two headings."""
    with visit_file(pages[name], width=390, height=800, dark=dark) as seen:
        page = seen.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        region = page.get_by_role("region", name="what-if" if name == "sweep" else "tried")
        region.focus()
        before = region.locator("tbody th").first.bounding_box()
        for _ in range(40):
            page.keyboard.press("ArrowRight")
            if page.evaluate("document.querySelector('#what-if .scroll').scrollLeft") > 20:
                break
        else:
            pytest.fail("the table does not scroll")
        after = region.locator("tbody th").first.bounding_box()
        assert before is not None and after is not None and before["x"] == pytest.approx(after["x"], abs=1)
        assert region.locator("tbody th[scope=row]").count() == region.locator("tbody tr").count()
        assert region.locator("thead th[scope=col]").count() > 3
        paper = page.evaluate("getComputedStyle(document.querySelector('#what-if .best')).backgroundColor")
        assert paper == ("rgb(23, 48, 31)" if dark else "rgb(232, 245, 236)")
        assert seen.complaints == []


@pytest.mark.parametrize("name", ["tried", "sweep"])
def test_print_shows_every_line_and_column(pages: dict[str, Path], name: str) -> None:
    """Nothing is hidden in a box that paper cannot scroll; 700 pixels are A4 upright."""
    with visit_file(pages[name], width=700) as seen:
        seen.page.emulate_media(media="print")
        box = seen.page.locator("#what-if .scroll")
        assert box.evaluate("box => box.scrollHeight - box.clientHeight") <= 1
        assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 1

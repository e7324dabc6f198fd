"""The HTML report in a real browser: it needs nothing else, it zooms, it drills down, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmon.capture.layout import ChunkKind
from kvmon.capture.reader import CaptureReader
from kvmon.cli.main import run
from kvmon.replay.timeline import read_timelines
from kvmon.report.html import render_html
from kvmon.report.incident_collect import incident_report
from tests.browser import Visit, visit_file

SCENARIOS = ("post-incident", "server-failures", "deadlock", "leak", "space", "pool-starved")


def simulate(where: Path, scenario: str, *options: str) -> Path:
    """A capture of a scenario."""
    path = where / f"{scenario}.kvmon"
    command = [sys.executable, "-m", "kvmon", "simulate", "--scenario", scenario, "--out", str(path), *options]
    subprocess.run(command, check=True, capture_output=True)
    return path


def report(capture: Path, name: str = "incident.kvmon") -> str:
    """Its page."""
    return render_html(incident_report(name, read_timelines(capture), "1.2.3"))


@pytest.fixture(scope="module")
def incident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an incident with fragmentation."""
    where = tmp_path_factory.mktemp("report")
    page = where / "incident.html"
    page.write_text(report(simulate(where, "post-incident", "--seed", "3")), encoding="utf-8")
    return page


@pytest.fixture
def opened(incident: Path) -> Iterator[Visit]:
    """That page in a browser."""
    with visit_file(incident) as seen:
        yield seen


def shown_range(seen: Visit) -> str:
    """What the page says about the range of time that it shows."""
    return seen.page.locator(".zoom output").inner_text()


def picture(seen: Visit) -> str:
    """The pixels of the map, as text."""
    return str(seen.page.evaluate("document.querySelector('.map canvas').toDataURL()"))


def test_the_answer_comes_first_and_nothing_is_fetched(opened: Visit, incident: Path) -> None:
    """One file, no console message, no request but the page itself; below the size of a mail attachment."""
    page = opened.page
    assert page.locator("h1").inner_text() == "fragmentation"
    assert page.locator("h1").bounding_box()["y"] < 200  # type: ignore[index]
    assert page.evaluate("document.documentElement.dataset.ready") == ""
    assert opened.complaints == []
    assert opened.requests == [incident.resolve().as_uri()]
    assert incident.stat().st_size < 8e6


def test_a_drag_zooms_every_chart_and_the_map(opened: Visit) -> None:
    """All follow one range; All shows everything again."""
    page = opened.page
    whole, before = shown_range(opened), picture(opened)
    assert "all of it" in whole
    plot = page.locator(".plot .u-over").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40, steps=5)
    page.mouse.up()
    minutes, seconds, until_minutes, until = map(
        float, re.findall(r"(\d+):([\d.]+) to (\d+):([\d.]+)", shown_range(opened))[0]
    )
    assert minutes == until_minutes == 0
    assert 22 < seconds < 27 and 47 < until < 52
    assert picture(opened) != before
    page.get_by_role("button", name="All", exact=True).click()
    assert shown_range(opened) == whole
    assert picture(opened) == before


@pytest.mark.parametrize("target", [".plot", ".map canvas"])
def test_the_keyboard_zooms_and_moves(opened: Visit, target: str) -> None:
    """Plus, minus, arrows and 0, with a chart or the map in focus."""
    page = opened.page
    whole = shown_range(opened)
    page.locator(target).first.focus()
    page.keyboard.press("+")
    near = shown_range(opened)
    page.keyboard.press("ArrowRight")
    later = shown_range(opened)
    assert len({whole, near, later}) == 3
    page.keyboard.press("ArrowLeft")
    assert shown_range(opened) == near
    page.keyboard.press("0")
    assert shown_range(opened) == whole


def test_a_failure_shows_the_memory_just_before_it(opened: Visit) -> None:
    """Chosen by mouse or by arrow keys; the page zooms to it."""
    page = opened.page
    detail = page.locator(".failures .detail")
    first = detail.inner_text()
    assert "adjacent units" in first
    page.locator(".failures tbody tr").nth(2).click()
    third = detail.inner_text()
    page.keyboard.press("ArrowDown")
    fourth = detail.inner_text()
    assert len({first, third, fourth}) == 3
    assert page.locator(".failures tr[aria-selected=true] td").first.inner_text() == "4"
    shares = page.locator(".failures .bar span").evaluate_all("all => all.map((one) => parseFloat(one.style.width))")
    assert sum(shares) == pytest.approx(100, abs=0.1)
    page.get_by_role("button", name="Zoom to it").click()
    assert "all of it" not in shown_range(opened)


def test_hovering_says_the_numbers(opened: Visit) -> None:
    """A chart its values, the map the addresses."""
    page = opened.page
    for target, expected in ((".plot .u-over", "active"), (".map canvas", "units ")):
        place = page.locator(target).first
        place.scroll_into_view_if_needed()
        place.hover(position={"x": 300, "y": 60})
        tips = page.locator(".tip:visible").all_inner_texts()
        assert any(expected in tip for tip in tips), tips


def test_both_themes_are_drawn(opened: Visit) -> None:
    """The button changes the page, the map and the next reader's legend."""
    page = opened.page
    paper, before = page.evaluate("getComputedStyle(document.body).backgroundColor"), picture(opened)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != paper
    assert picture(opened) != before
    assert opened.complaints == []


def test_everything_can_be_read_without_a_script_and_by_a_screen_reader(opened: Visit) -> None:
    """Charts are images with words, sections have headings, tables captions; the curves are there as a table."""
    page = opened.page
    labels = page.locator("[role=img]").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert len(labels) > 8 and all(labels)
    assert any("largest free block: " in label for label in labels)
    assert page.locator("table caption").count() == page.locator("table").count()
    page.get_by_text("The same as a table").click()
    assert page.locator("details table").first.locator("tbody tr").count() == 20
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_narrow_window_has_no_sideways_scroll(incident: Path) -> None:
    """A phone shows everything; only wide tables scroll in themselves."""
    with visit_file(incident, width=390, height=800) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        assert seen.complaints == []


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_kind_of_incident_has_a_page(tmp_path: Path, scenario: str) -> None:
    """Paged and contiguous pools, two pools, seconds or minutes, healthy or not."""
    page = tmp_path / "page.html"
    text = report(simulate(tmp_path, scenario))
    page.write_text(text, encoding="utf-8")
    with visit_file(page) as seen:
        assert seen.page.evaluate("document.documentElement.dataset.ready") == ""
        assert seen.complaints == []
    assert text == report(tmp_path / f"{scenario}.kvmon")


def test_names_cannot_break_out_of_the_page(incident: Path, tmp_path: Path) -> None:
    """A hostile file name is text, in the page and in its data."""
    capture = incident.parent / "post-incident.kvmon"
    page = tmp_path / "page.html"
    hostile = "</script><script>document.title='broken'</script>.kvmon"
    page.write_text(report(capture, hostile), encoding="utf-8")
    with visit_file(page) as seen:
        assert "</script>" in seen.page.title()
        assert seen.complaints == []


def test_a_damaged_capture_says_what_is_not_known(incident: Path, tmp_path: Path) -> None:
    """The gap is in the completeness, and grey in the map; numbers there are not zero."""
    damaged = tmp_path / "damaged.kvmon"
    capture = incident.parent / "post-incident.kvmon"
    data = bytearray(capture.read_bytes())
    with CaptureReader(capture) as reader:
        last = [chunk for chunk in reader.streams[0].chunks if chunk.kind == ChunkKind.FRAMES][-1]
    begin = last.offset + last.stored_bytes // 2
    data[begin : begin + 64] = bytes(64)
    damaged.write_bytes(data)
    text = report(damaged)
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    with visit_file(page) as seen:
        assert "not known from" in seen.page.locator("#known-1").inner_text().lower()
        assert seen.complaints == []
    stream = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])["streams"][0]
    assert min(stream["times"]["known"]) == 0
    lost = stream["times"]["known"].index(0)
    assert stream["pools"][0]["charts"][0]["lines"][0]["last"][lost] is None


def test_the_command_writes_it_whole_or_not_at_all(
    incident: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer and exit code of the report; a file that is there stays, unless it is to be replaced."""
    capture, page = str(incident.parent / "post-incident.kvmon"), tmp_path / "report.html"
    assert run(["replay", capture, "--html", str(page)]) == 1
    assert capsys.readouterr().out.startswith("fragmentation: ")
    assert page.stat().st_mode & 0o777 == 0o600
    assert run(["replay", capture, "--html", str(page)]) == 3
    assert "--force" in capsys.readouterr().err
    assert run(["replay", capture, "--html", str(page), "--force"]) == 1
    assert run(["replay", capture, "--html", str(tmp_path / "none" / "report.html")]) == 3
    assert run(["replay", capture, "--html", capture, "--force"]) == 2
    assert run(["replay", capture, "--html", str(page), "--json"]) == 2
    assert run(["replay", capture, "--html", str(page), "--at", "worst"]) == 2
    assert sorted(tmp_path.iterdir()) == [page]

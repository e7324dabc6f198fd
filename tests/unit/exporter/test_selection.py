"""Which collectors run: by options for good, by `collect[]` and `exclude[]` for one scrape, and what changes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.errors import ConfigError
from kvmon.exporter.collectors import COLLECTORS
from kvmon.exporter.follow import DirectoryFollower
from kvmon.exporter.page import Page, own_series
from kvmon.exporter.selection import collectors_of_scrape, collectors_turned_on
from kvmon.exporter.sidecar import Sidecar
from kvmon.exporter.source import view
from tests.toy_engine import FakeClock, ToyEngine

NAMES = tuple(make.name for make in COLLECTORS)
ON = NAMES[:-1]  # without the GPUs that this machine may have


def page_of(followers: DirectoryFollower, on: Iterable[str] = ON, budget: int = 150, max_series: int = 0) -> Page:
    """A page with the collectors `on`, of what has been read."""
    ticks = itertools.count()
    return Page(
        lambda: view(followers.streams, budget),
        threading.Lock(),
        clock=lambda: next(ticks) / 1024,
        collectors=[make for make in COLLECTORS if make.name in set(on)],
        max_series=max_series,
    )


def series(page: Page, collect: Iterable[str] = (), exclude: Iterable[str] = ()) -> dict[str, float]:
    """Every series of a page with its value, in order."""
    text = page.render(False, list(collect), list(exclude)).decode()
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def of_engines(found: Iterable[str]) -> list[str]:
    """The series that are not about kvmon itself, in order."""
    return [name for name in found if 'rank="' in name]


def ran(found: Iterable[str]) -> set[str]:
    """Collectors that a page tells of."""
    return {name.split('"')[1] for name in found if name.startswith("kvmon_collector_success")}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> DirectoryFollower:
    """Three ranks that ran for a while, read to their end."""
    clock, directory = FakeClock(), tmp_path_factory.mktemp("three")
    engines = [ToyEngine(directory, rank=rank, seed=rank, clock=clock) for rank in range(3)]
    for engine in engines:
        engine.run(60)
    followers = DirectoryFollower(directory, fold_dead=False, clock=clock)
    followers.catch_up()
    return followers


# -- names --


@given(chosen=st.dictionaries(st.sampled_from(NAMES), st.booleans()), defaults=st.booleans())
def test_options_turn_collectors_on_and_off(chosen: dict[str, bool], defaults: bool) -> None:
    """What was chosen is so, the rest is as the defaults say, in the order of the registry; none at all is an error."""
    expected = tuple(name for name in NAMES if chosen.get(name, defaults))
    if expected:
        assert collectors_turned_on(NAMES, chosen, defaults=defaults) == expected
    else:
        with pytest.raises(ConfigError, match="every collector is off: turn one on"):
            collectors_turned_on(NAMES, chosen, defaults=defaults)


def test_what_cannot_be_asked_is_said_with_the_names() -> None:
    """Unknown, off, and both at once are errors; excluding what is off anyway is none."""
    every = "engine, diagnosis, memory, fragmentation, requests, trust, allocator, device"
    with pytest.raises(ConfigError, match=f"there is no collector 'memry': give one of {every}"):
        collectors_of_scrape(NAMES, ON, ["memory", "memry"], [])
    with pytest.raises(ConfigError, match=f"there is no collector 'x': give one of {every}"):
        collectors_of_scrape(NAMES, ON, [], ["x"])
    with pytest.raises(ConfigError, match=r"collect\[\] and exclude\[\] exclude each other"):
        collectors_of_scrape(NAMES, ON, ["memory"], ["engine"])
    with pytest.raises(ConfigError, match="the collector 'device' is off: start the exporter"):
        collectors_of_scrape(NAMES, ON, ["device"], [])
    assert collectors_of_scrape(NAMES, ON, [], ["device"]) == ON


def test_a_name_of_any_length_and_kind_makes_one_short_line() -> None:
    """What a stranger sends is quoted, not repeated whole."""
    with pytest.raises(ConfigError) as caught:
        collectors_of_scrape(NAMES, ON, ["a\nb\x1b[2J" + "c" * 10_000], [])
    message = str(caught.value)
    assert message.isprintable() and len(message) < 250


# -- pages --


@given(asked=st.sets(st.sampled_from(ON), min_size=1), excluding=st.booleans())
def test_a_filtered_page_is_part_of_the_whole_one(three: DirectoryFollower, asked: set[str], excluding: bool) -> None:
    """A filter leaves collectors out and changes nothing else; the success of those alone is told that ran."""
    page = page_of(three)
    whole = series(page)
    part = series(page, exclude=asked) if excluding else series(page, collect=asked)
    runs = set(ON) - asked if excluding else asked
    assert ran(part) == runs
    alone = series(page_of(three, on=runs)) if runs else {}
    assert of_engines(part) == of_engines(alone) == [name for name in of_engines(whole) if name in part]
    assert all(whole[name] == part[name] for name in of_engines(part))
    assert part["kvmon_series"] == len(of_engines(part))


@given(scrapes=st.lists(st.lists(st.sampled_from(ON), unique=True), min_size=1, max_size=6), budget=st.integers(1, 90))
def test_filtered_scrapes_never_disturb_the_count_of_dropped_series(
    three: DirectoryFollower, scrapes: list[list[str]], budget: int
) -> None:
    """It is the sum of what each scrape kept out of its own page: it never falls, and a filter alone drops nothing."""
    page, unlimited = page_of(three, budget=budget), page_of(three)
    dropped = 0.0
    for collect in scrapes:
        found, wanted = series(page, collect=collect), series(unlimited, collect=collect)
        dropped += len(of_engines(wanted)) - len(of_engines(found))
        assert found["kvmon_series_dropped_total"] == dropped
        assert set(of_engines(found)) <= set(of_engines(wanted))


def test_a_collector_that_is_off_is_not_even_made(three: DirectoryFollower) -> None:
    """Off is not constructed; left out of a scrape is not run."""
    calls: list[str] = []

    def watched(make: type) -> type:
        class Watched(make):  # type: ignore[misc]
            def __init__(self, source: object) -> None:
                calls.append(f"made {make.name}")  # type: ignore[attr-defined]
                super().__init__(source)

            def collect(self) -> object:
                calls.append(f"ran {make.name}")  # type: ignore[attr-defined]
                return super().collect()

        return Watched

    makes = [watched(make) for make in COLLECTORS if make.name in ("engine", "memory")]  # type: ignore[arg-type]
    page = Page(lambda: view(three.streams), threading.Lock(), collectors=makes)  # type: ignore[arg-type]
    page.render(False, ["engine"])
    page.render(False, [], ["engine", "trust"])
    assert calls == ["made engine", "made memory", "ran engine", "ran memory"]


def test_what_only_collectors_that_are_off_need_is_not_worked_out(tmp_path: Path) -> None:
    """Without memory and fragmentation no unit is surveyed, without diagnosis nothing is judged."""
    clock = FakeClock()
    ToyEngine(tmp_path, clock=clock).run(100, seconds=0.2)
    for collectors, surveyed, judged in ((None, True, True), (["engine", "requests"], False, False)):
        sidecar = Sidecar([tmp_path], collectors=collectors, clock=clock)
        sidecar.read_once()
        sidecar.render(False)
        follower = sidecar.followers.streams[0]
        assert bool(follower._surveys) == surveyed
        assert bool(follower.diagnosis.as_of_now().holding) == judged
        sidecar.stop()


# -- the limit of the page --


@given(limit=st.integers(own_series(len(ON)) + 1, 300))
def test_a_full_page_keeps_what_comes_first(three: DirectoryFollower, limit: int) -> None:
    """The page never has more series than it may, and what it keeps is how the unlimited page begins.

    So engines that are up stay visible before the lives of blocks, for every rank.
    """
    own = own_series(len(ON))
    whole, found = series(page_of(three)), series(page_of(three, max_series=limit))
    assert len(found) <= limit
    dropped = found["kvmon_series_dropped_total"]
    assert len(found) + dropped == len(whole)
    assert bool(dropped) == (len(whole) > limit)
    of = {make: of_engines(series(page_of(three), collect=[make])) for make in ON}
    lacking = [number for number, make in enumerate(ON) if not set(of[make]) <= set(found)]
    for later in ON[lacking[0] + 1 :] if lacking else ():
        assert not set(of[later]) & set(found), f"{ON[lacking[0]]} lacks series, and {later} has some"
    assert all(f'kvmon_engine_up{{engine="toy",rank="{rank}"}}' in found for rank in range(3)) or limit < own + 3


def test_who_drops_is_told_once(three: DirectoryFollower, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the collector, the ranks and the option to raise, once, however often the page is made."""
    page = page_of(three, budget=70)
    for _ in range(3):
        series(page)
        series(page, exclude=["engine"])
    messages = {(record.getMessage(), record.collector, record.of) for record in caplog.records}  # type: ignore[attr-defined]
    assert len(messages) == len(caplog.records) > 0
    assert all("raise --series-budget" in message for message, _, _ in messages)
    assert ("allocator", "toy/0, toy/1, toy/2") in {(collector, of) for _, collector, of in messages}
    caplog.clear()
    series(page_of(three, max_series=50))
    assert all("raise --max-series" in record.getMessage() for record in caplog.records)
    assert caplog.records[0].collector == "diagnosis"  # type: ignore[attr-defined]

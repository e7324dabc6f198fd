"""What `kvmon diff` says of recordings whose difference is known, and its numbers against a plain walk over events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmon.allocators import PagedConfig
from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.errors import ConfigError, InputError
from kvmon.events import Event, Kind
from kvmon.replay.diff import Diff, Side, diff, parse_side, split_at
from kvmon.replay.diff_changes import GROUPS, NUMBERS, POOL_NUMBERS, changes_between
from kvmon.replay.lives import open_lives
from kvmon.replay.picture import Picture, picture_of
from kvmon.replay.picture_sums import Measured
from kvmon.replay.simulated import record_setup
from kvmon.serving.scenarios import find
from kvmon.state import scan
from tests.naive.timeline import frames_of
from tests.unit.adapters.driven import OPTIONS
from tests.unit.replay.recorded import Recorded
from tests.unit.replay.replaying import words_of
from tests.unit.replay.written import Written

# Scenarios in which the cure is another setting, with a name that the setting has.
SETTINGS = {
    "fragmentation": "allocator",
    "post-incident": "allocator",
    "tail-waste": "pool page_tokens",
    "capacity": "pool tokens",
}


def _written(path: Path, *names: str, seed: int = 0, engine: str = "sim") -> Path:
    """A capture with a rank for each scenario."""
    with CaptureWriter(path, wall=lambda: 0) as writer:
        for rank, name in enumerate(names):
            setup = next(iter(find(name).setups(seed)[0].values()))
            record_setup(writer.add_stream(StreamFacts(engine, rank)).write, setup)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures that are written once, by the names of their scenarios."""
    return tmp_path_factory.mktemp("diff")


def written(folder: Path, *names: str) -> Path:
    """As `_written`, once a module."""
    path = folder / f"{'+'.join(names)}.kvmon"
    return path if path.exists() else _written(path, *names)


def between(before: Path | str, after: Path | str, **options: Any) -> Diff:
    """What changed between two sides as people write them."""
    return diff(parse_side(str(before)), parse_side(str(after)), **options)


def test_each_number_and_group_is_one_that_is_known() -> None:
    """Every number belongs to a group that is printed."""
    assert {number.group for number in (*NUMBERS.values(), *POOL_NUMBERS.values())} <= set(GROUPS)


@pytest.mark.parametrize(
    "name", ["fragmentation", "capacity", "leak", "stranded", "preemption-storm", "tail-waste", "post-incident"]
)
def test_a_sick_recording_beside_its_healthy_twin_leads_with_the_verdict(name: str, folder: Path) -> None:
    """The first sentence is the verdict, and the setting that was changed is named where it is one."""
    found = between(written(folder, f"{name}-healthy"), written(folder, name))
    (stream,) = found.streams
    first = stream.changes[0]
    assert found.changed and first.group == "verdicts" and first.after == find(name).verdict
    assert found.headline.startswith(f"{find(name).verdict} ")
    if name in SETTINGS:
        assert SETTINGS[name] in {change.name for change in stream.changes if change.group == "settings"}


@pytest.mark.parametrize("name", ["fragmentation", "leak-healthy"])
def test_a_recording_beside_itself_has_not_changed(name: str, folder: Path) -> None:
    """Nor does another run of the same."""
    path = written(folder, name)
    again = _written(folder / f"{name}-again.kvmon", name)
    for other in (path, again):
        found = between(path, other)
        assert not found.changed and found.headline == "nothing that matters has changed"
    again.unlink()


def test_another_draw_of_healthy_traffic_shows_no_verdict(folder: Path) -> None:
    """Chance alone is no change of a verdict, and no loss."""
    other = _written(folder / "other.kvmon", "capacity-healthy", seed=1)
    (stream,) = between(written(folder, "capacity-healthy"), other).streams
    assert not {"verdicts", "lost"} & {change.group for change in stream.changes}


@pytest.mark.parametrize("name", ["fragmentation", "preemption-storm", "stranded"])
def test_the_other_way_round_every_change_has_its_sides_exchanged(name: str, folder: Path) -> None:
    """The same names, groups, and sizes."""
    sides = written(folder, f"{name}-healthy"), written(folder, name)
    (there,), (back,) = between(*sides).streams, between(*reversed(sides)).streams
    assert [(one.group, one.name, one.before, one.after, one.size) for one in there.changes] == [
        (one.group, one.name, one.after, one.before, one.size) for one in back.changes
    ]


def test_it_is_the_same_every_time(folder: Path) -> None:
    """Plain data, in the same order."""
    sides = written(folder, "fragmentation-healthy"), written(folder, "fragmentation")
    assert between(*sides).as_json() == between(*sides).as_json()


# -- numbers against a plain walk --


class Naive:
    """Counts of a stretch of time, event by event."""

    def __init__(self, events: list[tuple[int, list[Event]]], begin_ns: int | None, end_ns: int | None) -> None:
        self.counts: Counter[str] = Counter()
        self.prompts: list[int] = []
        self.ended: list[int] = []
        self.lookup = self.hit = 0
        for time_ns, frame in events:
            if (begin_ns is not None and time_ns <= begin_ns) or (end_ns is not None and time_ns > end_ns):
                continue
            self.counts["frames"] += 1
            for event in frame:
                self._count(event)

    def _count(self, event: Event) -> None:
        fields = event.fields
        if event.kind == Kind.REQUEST_ARRIVED:
            self.counts["arrived"] += 1
            self.prompts.append(fields["prompt"])
        elif event.kind == Kind.REQUEST_FINISHED:
            self.counts["ended"] += 1
            self.ended.append(fields["output"])
        elif event.kind == Kind.ALLOC_FAILED:
            self.counts["refused"] += 1
        elif event.kind == Kind.PREEMPTED:
            self.counts["preemptions"] += 1
        elif event.kind == Kind.CACHE_HIT:
            self.lookup += fields["lookup_tokens"]
            self.hit += fields["hit_tokens"]


@cache
def _events(name: str) -> tuple[list[tuple[int, list[Event]]], tuple[int, ...]]:
    words = np.concatenate(words_of(next(iter(find(name).setups(0)[0].values()))))
    table = scan(words)
    return [(time_ns, list(events)) for time_ns, events in frames_of(words, table)], tuple(table.times.tolist())


def _picture(path: Path, begin_ns: int | None, end_ns: int | None) -> Picture:
    with open_lives(path) as source:
        return picture_of(source.lives[0], begin_ns, end_ns)


NAMES = ("capacity", "fragmentation", "prefix-mixed")


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_counts_everything_once_and_as_a_plain_walk_does(name: str, folder: Path, data: st.DataObject) -> None:
    """What came before a moment and what came since are together the whole."""
    path = written(folder, name)
    events, times = _events(name)
    cut = data.draw(st.integers(times[0], times[-1] - 1))
    whole, parts = _picture(path, None, None), (_picture(path, None, cut), _picture(path, cut, None))
    naive = Naive(events, None, None), (Naive(events, None, cut), Naive(events, cut, None))
    for picture, truth in zip((whole, *parts), (naive[0], *naive[1]), strict=True):
        for key in ("arrived", "ended", "refused", "preemptions"):
            assert picture.counts[key] == truth.counts[key], key
        assert picture.frames == truth.counts["frames"]
        if truth.prompts:
            assert picture.numbers["prompt_tokens_mean"].value == pytest.approx(float(np.mean(truth.prompts)))
        else:
            assert "prompt_tokens_mean" not in picture.numbers
        if truth.ended:
            assert picture.numbers["output_tokens_mean"].value == pytest.approx(float(np.mean(truth.ended)))
        if truth.lookup:
            assert picture.numbers["hit_ratio"].value == pytest.approx(truth.hit / truth.lookup)
    for key in whole.counts:
        assert whole.counts[key] == sum(part.counts[key] for part in parts), key
    for key in whole.causes:
        assert whole.causes[key] == sum(part.causes.get(key, 0) for part in parts), key


OF_A_NS = 1e-4  # these runs are 59,000 ns long, and a picture begins behind the first frame
# Allocators with one pool and with two, by their states.
ALLOCATORS = ("best-fit", "buddy", "compaction", "fifo", "leaks", "paged", "pins", "swap", "transfers", "window-own")


@pytest.mark.parametrize("name", ALLOCATORS)
def test_shares_of_the_pool_are_those_of_a_naive_model(name: str, tmp_path: Path) -> None:
    """Means by time, and extremes over every event."""
    recorded = Recorded(OPTIONS[name], 3, 60)
    picture = _picture(recorded.capture(tmp_path / "x.kvmon"), None, None)
    naive, edges = recorded.followed(), list(recorded.edges)
    for number, info in recorded.pools.items():
        numbers = picture.pools[number].numbers
        (available,) = naive.picture(f"{number} available", edges)
        assert numbers["use_mean"].value == pytest.approx(1 - available.mean / info.capacity_units, abs=OF_A_NS)
        assert numbers["use_peak"].value == pytest.approx(1 - available.least / info.capacity_units)
        for key, curve in (("cached_mean", "cached"), ("pinned_mean", "pinned"), ("deferred_mean", "deferred")):
            (truth,) = naive.picture(f"{number} {curve}", edges)
            assert numbers[key].value == pytest.approx(truth.mean / info.capacity_units, abs=OF_A_NS), key


# -- what is not known --


def test_a_number_that_one_side_does_not_know_is_never_compared(folder: Path) -> None:
    """A picture without it has no change of it, whatever the other one says."""
    whole = _picture(written(folder, "fragmentation"), None, None)
    for name in whole.numbers:
        less = replace(whole, numbers={key: value for key, value in whole.numbers.items() if key != name})
        assert changes_between(whole, less) == changes_between(less, whole) == ()


def test_a_gap_in_a_stretch_is_said_and_rates_are_over_what_was_seen(tmp_path: Path) -> None:
    """A recording that lost ten seconds of itself, beside the whole one."""
    setup = next(iter(find("capacity-healthy").setups(0)[0].values()))
    words = np.concatenate(words_of(setup))
    table = scan(words)
    begin = int(table.times[0])
    lost = (table.times > begin + 20_000_000_000) & (table.times <= begin + 30_000_000_000)
    first, behind = int(np.flatnonzero(lost)[0]), int(np.flatnonzero(lost)[-1]) + 1
    for name, pieces in (
        ("whole", [words]),
        ("gap", [words[: table.ends[first - 1]], words[table.ends[behind - 1] :]]),
    ):
        with CaptureWriter(tmp_path / f"{name}.kvmon", wall=lambda: 0) as writer:
            sink = writer.add_stream(StreamFacts("sim"))
            for piece in pieces:
                sink.write(piece)
    (stream,) = between(tmp_path / "whole.kvmon", tmp_path / "gap.kvmon").streams
    assert any("missing" in text for text in stream.after.missing) and not stream.before.missing
    assert stream.after.seen_s == pytest.approx(stream.before.seen_s - 10, abs=0.2)
    assert stream.after.known == pytest.approx(20 / stream.after.seconds, abs=0.01)
    assert stream.after.counts["arrived"] < stream.before.counts["arrived"]
    assert "arrivals_a_second" not in {change.name for change in stream.changes}


def test_ranks_are_compared_with_ranks_of_their_number(folder: Path) -> None:
    """The one with the graver change first; one that is on one side alone is named, and is a change."""
    two = written(folder, "capacity-healthy", "fragmentation-healthy")
    changed = written(folder, "capacity-healthy", "fragmentation")
    found = between(two, changed)
    assert [stream.name for stream in found.streams] == ["sim-1", "sim-0"]
    assert found.headline.startswith("sim-1: fragmentation ")
    assert not found.streams[1].changes
    alone = between(two, written(folder, "capacity-healthy", "fragmentation", "leak"))
    assert alone.only_after == ("sim-2",) and alone.only_before == () and alone.changed
    more = between(two, written(folder, "capacity-healthy", "fragmentation-healthy", "leak"))
    assert more.changed
    assert more.headline == "sim-2 is in B only; nothing that matters has changed in what both have"
    (chosen,) = between(two, changed, stream="sim-0").streams
    assert chosen.name == "sim-0" and not chosen.changes


# -- stretches of time --


def test_a_stretch_of_time_is_parsed_as_it_is_written(tmp_path: Path) -> None:
    """Either bound may be left out; a file of such a name is that file."""
    side = parse_side("x.kvmon@+10s..12m")
    assert side.path == Path("x.kvmon") and str(side.window) == "from +10s until 12m"
    assert str(parse_side("x@..12m").window) == "until 12m" and str(parse_side("x@-1h..").window) == "from -1h"
    assert parse_side("x.kvmon").window is None
    odd = tmp_path / "a@..b"
    odd.touch()
    assert parse_side(str(odd)) == Side(odd, None, str(odd))


@pytest.mark.parametrize("text", ["x@..", "x@a..b", "x@failure:1..", "x@..worst"])
def test_what_is_no_stretch_of_time_is_refused(text: str) -> None:
    """In a line that says how to write one."""
    with pytest.raises(ConfigError):
        parse_side(text)


def test_before_and_since_a_moment_are_the_whole(folder: Path) -> None:
    """And of the two the one behind it is the sick one."""
    path = written(folder, "leak")
    found = diff(*split_at(path, "+30s"))
    (stream,) = found.streams
    assert stream.before.end_ns == stream.after.begin_ns
    whole = _picture(path, None, None)
    for key in whole.counts:
        assert stream.before.counts[key] + stream.after.counts[key] == whole.counts[key]
    assert "unowned_peak" in str([change.name for change in stream.changes])


@pytest.mark.parametrize(
    ("before", "after", "error", "why"),
    [
        ("X@+10h..", "X", ConfigError, "holds nothing from +10h: it is "),
        ("X@+20s..+10s", "X", ConfigError, "holds nothing from +20s until +10s"),
        ("X", "Y", InputError, "no stream is on both sides: A has sim-0, sim-1, B has other-0, other-1"),
    ],
)
def test_what_cannot_be_compared_says_why(
    before: str, after: str, error: type[Exception], why: str, folder: Path
) -> None:
    """One line each."""
    two = written(folder, "capacity-healthy", "fragmentation-healthy")
    other = folder / "other-names.kvmon"
    if not other.exists():
        _written(other, "capacity-healthy", "capacity-healthy", engine="other")
    sides = (text.replace("X", str(two)).replace("Y", str(other)) for text in (before, after))
    with pytest.raises(error, match=why.replace("+", r"\+")):
        between(*sides)


def test_an_unknown_stream_names_those_there_are(folder: Path) -> None:
    """And the side that has it not."""
    path = written(folder, "capacity-healthy", "fragmentation-healthy")
    with pytest.raises(ConfigError, match="sim-0"):
        between(path, path, stream="sim-7")


@pytest.mark.parametrize("fidelity", ["cache_only", "counts"])
def test_what_an_adapter_cannot_see_is_absent(fidelity: str, tmp_path: Path) -> None:
    """Of a cache alone no request is counted and no verdict given; of counts no unit is without an owner."""
    with Written(PagedConfig(64, 16), config={"fidelity": fidelity}) as stream:
        for request in range(1, 6):
            stream.arrive(request, at=request * 1_000_000_000)
            stream.step(request * 1_000_000_000, 500_000_000)
    with CaptureWriter(tmp_path / "x.kvmon", wall=lambda: 0) as writer:
        writer.add_stream(StreamFacts("foreign")).write(np.array(stream.words, np.uint32))
    picture = _picture(tmp_path / "x.kvmon", None, None)
    if fidelity == "cache_only":
        assert not picture.counts and picture.verdict is None
        assert not {"refused_a_minute", "lost_a_minute", "arrivals_a_second"} & set(picture.numbers)
    else:
        assert picture.counts["arrived"] == 5 and picture.verdict == "healthy"
        assert "unowned_peak" not in picture.pools[1].numbers


def test_a_loss_where_none_was_is_told_and_the_same_losses_in_less_time_are_not(folder: Path) -> None:
    """One lost request is one too many; five in ten minutes are not fewer than five in nine."""
    whole = _picture(written(folder, "capacity-healthy"), None, None)

    def losing(count: int, seconds: float) -> Picture:
        return replace(whole, numbers={**whole.numbers, "lost_a_minute": Measured.rate(count, seconds, 60)})

    (change,) = changes_between(losing(0, 600), losing(1, 600))
    assert change.name == "lost_a_minute"
    assert changes_between(losing(5, 600), losing(5, 540)) == ()
    (change,) = changes_between(losing(5, 600), losing(80, 600))
    assert change.name == "lost_a_minute"

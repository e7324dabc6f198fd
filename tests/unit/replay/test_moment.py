"""The state at a moment: what the naive model has, at random instants and at refusals, for every allocator."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.cli.main import run
from kvmon.errors import ConfigError, InputError
from kvmon.events import Kind, decode
from kvmon.replay.lives import open_lives
from kvmon.replay.moment import find_failure, moments, until
from kvmon.replay.when import parse_when
from kvmon.state import scan
from tests.naive.state_at import assert_same_state
from tests.naive.timeline import frames_of
from tests.unit.adapters.driven import OPTIONS
from tests.unit.capture.traffic import record, words_of
from tests.unit.replay.recorded import Recorded

INSTANTS = 28  # for each of the options: more than a thousand in all


@pytest.mark.parametrize("name", OPTIONS)
def test_state_at_random_instants_is_the_naive_one(name: str, tmp_path: Path) -> None:
    """Units, tables, requests, slots, runs and queue, sought from checkpoints, at any time between two frames."""
    recorded = Recorded(OPTIONS[name], 4, 120)
    begin, end = recorded.edges
    draw = random.Random(name)
    instants = sorted(draw.randint(begin + 1, end) for _ in range(INSTANTS))
    naive, frames = recorded.naive(), frames_of(recorded.words, recorded.table)
    following = next(frames)
    with open_lives(recorded.capture(tmp_path / "x.kvmon")) as source:
        (life,) = source.lives
        assert life.stored_ns(), "seeking was from checkpoints"
        for time_ns in instants:
            while following is not None and following[0] <= time_ns:
                naive.frame(*following)
                following = next(frames, None)
            assert_same_state(life.state_at(time_ns), naive)


@pytest.mark.parametrize("name", ["paged", "buddy", "chunks", "quotas", "swap", "window-own"])
def test_state_before_a_refusal_is_the_naive_one(name: str, tmp_path: Path) -> None:
    """In the middle of its frame, after every record before it and none behind it."""
    recorded = Recorded(OPTIONS[name], 5, 150)
    refused = []
    naive = recorded.naive()
    with open_lives(recorded.capture(tmp_path / "x.kvmon")) as source:
        (life,) = source.lives
        total = len(recorded.followed().failures)
        assert total > 3
        chosen = {1, 2, total // 2, total}
        for time_ns, events in frames_of(recorded.words, recorded.table):
            naive.time_ns = time_ns
            for event in events:
                if event.kind is Kind.ALLOC_FAILED:
                    refused.append(event)
                    if len(refused) in chosen:
                        (moment,) = moments([life], parse_when(f"failure:{len(refused)}"))
                        assert moment.failure is not None and moment.time_ns == time_ns
                        assert moment.failure.refusal.need == event.fields["need"]
                        assert_same_state(moment.state, naive)
                naive.apply([event])
                naive._note(event)
        last = moments([life], parse_when("failure:-1"))[0].failure
        assert last is not None and last.number == total
        assert find_failure(life, -total) == find_failure(life, 1)
        assert find_failure(life, total + 1) is find_failure(life, -total - 1) is None
        with pytest.raises(ConfigError, match=f"has {total} refused allocations"):
            moments([life], parse_when(f"failure:{total + 1}"))


def test_a_recording_of_a_dead_engine(tmp_path: Path) -> None:
    """A directory is read as a capture is; what its writer never closed is part of the end, and it died."""
    record(tmp_path, 300, close=True)
    record(tmp_path, 200, close=True, seed=2)
    with open_lives(tmp_path) as source:
        assert [life.name for life in source.lives] == ["toy-0", "toy-0#2"]
        assert [life.died for life in source.lives] == [True, False]
        first, second = source.lives
        assert source.named("toy-0") == [first] or len(source.named("toy-0")) == 2
        assert source.named("toy-0#2") == [second]
        words = words_of(tmp_path / "toy-0")
        table = scan(words)
        assert first.first_ns == table.times[0]
        middle = (first.first_ns + (first.last_ns or 0)) // 2
        state = first.state_at(middle)
        assert state.time_ns <= middle and 0 < state.steps < 300
        with pytest.raises(ConfigError, match="no stream 'other' here: there is toy-0, toy-0#2"):
            source.named("other")


def test_a_time_is_the_same_for_all_streams(tmp_path: Path) -> None:
    """On the wall clock: a rank that began later, or on another machine's clock, is shown at the same instant."""
    recorded = Recorded(OPTIONS["paged"], 1, 60)
    second = 1_000_000_000
    facts = StreamFacts("a", wall_ns=1_800_000_000 * second, mono_ns=0)
    late = replace(facts, engine="b", wall_ns=facts.wall_ns + 20_000)
    path = recorded.capture(tmp_path / "x.kvmon", facts=(facts, late))
    with open_lives(path) as source:
        at = moments(source.lives, parse_when("+0.00003s"))
        assert [moment.life.name for moment in at] == ["a-0", "b-0"]
        assert at[0].time_ns - at[1].time_ns == 20_000
        (early,) = moments(source.lives, parse_when("+0.00001s"))
        assert early.life.name == "a-0"
        walls = moments(source.lives, parse_when("2027-01-15T09:00:00.00004+01:00"))
        assert [moment.time_ns for moment in walls] == [40_000, 20_000]
        (last,) = moments(source.lives, parse_when("-0s"))
        assert last.life.name == "b-0" and last.time_ns == last.life.last_ns
        with pytest.raises(ConfigError, match=r"outside of what was recorded: give .0:00.0 .2027-01-15T08:00"):
            moments(source.lives, parse_when("+10s"))


def test_what_happened_until_a_moment(tmp_path: Path) -> None:
    """Counts run from the first frame to the moment, and no further."""
    recorded = Recorded(OPTIONS["paged"], 2, 150)
    naive = recorded.naive()
    with open_lives(recorded.capture(tmp_path / "x.kvmon")) as source:
        (life,) = source.lives
        time_ns = int(recorded.table.times[100]) + 5
        for frame_ns, events in frames_of(recorded.words, recorded.table):
            if frame_ns <= time_ns:
                naive.frame(frame_ns, events)
        so_far = until(moments([life], parse_when(str(time_ns)))[0])
        assert so_far.buckets == 1 and so_far.failure_count == len(naive.failures)
        assert so_far.counts["preemptions"].tolist() == naive.counted("preemptions", so_far.edges_ns.tolist())


def test_nothing_is_said_of_a_gap(tmp_path: Path) -> None:
    """A line that says from when to when nothing is known; before it and behind it everything is as before."""
    engine = record(tmp_path, 400)
    words = words_of(tmp_path / "toy-0")
    table, at = scan(words), 150
    path = tmp_path / "x.kvmon"
    with CaptureWriter(path, checkpoint_operations=None) as writer:
        sink = writer.add_stream(StreamFacts("toy"))
        sink.write(words[: table.ends[at]])
        rest = words[table.ends[at + 3] :]
        sink.write(rest)
    assert engine.units == 256
    with open_lives(path) as source:
        (life,) = source.lives
        lost = int(table.times[at + 4])
        with pytest.raises(InputError, match=r"nothing is known of toy-0 at .*: frames are missing, from .0:01.5.* to"):
            moments([life], parse_when(str(lost)))
        assert moments([life], parse_when(str(int(table.times[at]))))[0].state.converged
        assert moments([life], parse_when("-0s"))[0].state.converged


def test_the_command_shows_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eighty columns: the verdict that held, the map, the holders by state, class and age, the need at the head."""
    assert run(["simulate", "--scenario", "post-incident", "--out", str(tmp_path / "x.kvmon"), "--json"]) == 0
    capsys.readouterr()
    path = str(tmp_path / "x.kvmon")
    assert run(["replay", path, "--at", "worst"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for part in ("fragmentation: a request needed", "at the head: no room", "lost(236)", "class 2, running, 1 to 10 s"):
        assert part in text
    assert run(["replay", path, "--at", "failure:3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    (moment,) = said["moments"]
    assert said["schema"] == 1 and moment["failure"]["number"] == 3 and moment["verdict"] == "fragmentation"
    pool = moment["stream"]["pools"][0]
    assert pool["refused"] == moment["failure"]["need"] > pool["largest_free"]
    assert sum(pool["units"].values()) == pool["capacity"] == sum(map(sum, pool["map"]["cells"]))
    assert sum(pool["failures"].values()) == 2, "the third one has not been refused yet"
    assert run(["replay", path, "--at", "+30s", "--json"]) == 0
    head = json.loads(capsys.readouterr().out)["moments"][0]["head"]
    assert head["need_units"] > head["largest_free_units"] and not head["fits"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--at", "noon"], 2, "names no moment"),
        (["--at", "failure:0"], 2, "there is no failure:0"),
        (["--at", "failure:9999"], 2, "simulator-0 has "),
        (["--at", "+2h"], 2, "outside of what was recorded: give +0:00.0 ("),
        (["--at", "2026-01-01T00:00:00"], 2, "has no zone"),
        (["--at", "2026-13-01T00:00:00Z"], 2, "is no date and time"),
        (["--at", "2026-01-01T00:00:00Z"], 2, "no wall clock"),
        (["--at", "worst", "--stream", "nobody-0"], 2, "there is simulator-0"),
        (["--stream", "simulator-0"], 2, "give --at too"),
    ],
)
def test_one_line_for_a_moment_that_is_not_there(
    arguments: list[str], code: int, says: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be shown is said in a line that says what can."""
    assert run(["replay", str(small), *arguments]) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and says in said.err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of a scenario that takes no time."""
    path = tmp_path_factory.mktemp("captures") / "x.kvmon"
    assert run(["simulate", "--scenario", "deadlock", "--out", str(path), "--json"]) == 0
    return path


def test_a_damaged_capture_shows_what_is_sound(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut off before its index it is shown as far as it goes, and the damage is said."""
    cut = tmp_path / "cut.kvmon"
    cut.write_bytes(small.read_bytes()[:-40])
    capsys.readouterr()
    assert run(["replay", str(cut), "--at", "worst", "--json"]) == 0
    said = capsys.readouterr()
    assert "the part that can be read" in said.err
    assert json.loads(said.out)["moments"][0]["stream"]["pools"]
    cut.write_bytes(small.read_bytes()[:900])
    assert run(["replay", str(cut), "--at", "worst"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_decoding_is_not_needed() -> None:
    """The helper of these tests takes frames apart as the wire format says."""
    recorded = Recorded(OPTIONS["paged"], 1, 5)
    assert sum(len(events) for _, events in frames_of(recorded.words, recorded.table)) == len(
        list(decode(recorded.words.tolist()))
    )

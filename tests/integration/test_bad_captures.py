"""What every verb that reads a capture or a recording says of a bad one: one line that says what to do, the documented
exit code, and nothing half written. What is sound of a damaged one is told, with a word about the rest.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.integration.bad_captures import DAMAGED, NOTHING_THERE, UNUSABLE, Inputs
from tests.integration.verbs_asked import READS, SHARES, STATUS, Command, ask, command
from tests.unit.capture.traffic import record

#: What is damaged in a stream, and not in the file around it.
HOLES = tuple(
    name
    for name in DAMAGED
    if (name.startswith("flipped: ") and not re.search("header|STREAM|INDEX|trailer", name))
    or name in ("cut in the frames", "cut before the index", "cut in the index")
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """All inputs by name."""
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("verb", [*READS, "capture --share"])
def test_a_sound_one_is_read_without_a_word(inputs: Inputs, verb: str) -> None:
    """What the others are compared with."""
    said = ask((READS | SHARES)[verb], inputs["sound"])
    assert said.code == 0 and said.err == "" and not said.damage, said


@pytest.mark.parametrize("verb", [*READS, *SHARES, "status"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_capture_is_refused(inputs: Inputs, name: str, verb: str) -> None:
    """Exit code 3, one line that says what it is and what to give instead, no output."""
    said = ask((READS | SHARES | STATUS)[verb], inputs[name])
    assert said.code == 3 and said.one_line and not said.out and not said.left, said
    expected = UNUSABLE[name] + ("|is a file|no engine has recorded|is not a directory" if verb == "status" else "")
    if verb == "capture" and "is a director" not in expected:
        expected += "|is not a directory"
    assert re.search(expected, said.err), said.err
    assert ": " in said.err.removeprefix("kvmon: "), said.err


@pytest.mark.parametrize("verb", [*READS, *SHARES])
@pytest.mark.parametrize("name", NOTHING_THERE)
def test_where_nothing_can_be_read_it_says_so(inputs: Inputs, name: str, verb: str) -> None:
    """As above; `verify` is what such a file is for, and finds it not clean. `capture` wants a directory."""
    said = ask({**READS, **SHARES}[verb], inputs[name])
    if verb == "verify":
        assert said.code == 1 and "not clean" in said.out and not said.err, said
        return
    assert said.code == 3 and said.one_line and not said.out and not said.left, said
    assert "kvmon verify" in said.err or verb in ("fit", "capture"), said.err


@pytest.mark.parametrize("verb", READS)
@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_sound_of_a_damaged_one_is_told_with_a_word_about_the_rest(
    inputs: Inputs, name: str, verb: str
) -> None:
    """Code 0, or 1 where something was found; 3 only where what is asked for was in what is lost. Never silence."""
    said = ask(READS[verb], inputs[name])
    begin_lost = name == "flipped: the first frames"
    of_the_begin = ("replay --at", "replay --what-if", "replay --sweep", "holders")
    if verb == "verify":
        assert said.code == 1 and "not clean" in said.out
    elif begin_lost and verb in of_the_begin:
        assert said.code == 3 and not said.out and not said.left, said
    else:
        assert said.code in (0, 1), said
        assert bool(said.left) == ("OUT" in str(READS[verb](Path(), Path("OUT")))), said.left
    assert all(line.startswith("kvmon: ") for line in said.err.splitlines()), said.err
    assert said.damage or (verb == "fit" and name == "flipped: HOLE"), said


@pytest.mark.parametrize("verb", ["capture --share", "capture --share --dry-run"])
@pytest.mark.parametrize("name", HOLES)
def test_what_is_lost_of_a_damaged_one_is_a_hole_of_its_copy(inputs: Inputs, name: str, verb: str) -> None:
    """And it is listed."""
    said = ask(SHARES[verb], inputs[name])
    assert said.code == 0 and said.err == "" and "hole: " in said.out, said
    assert said.left == ([] if "dry" in verb else ["x.kvmon"])


@pytest.mark.parametrize("kind", ["STREAM", "FRAMES", "CHECKPOINT", "TAIL"])
def test_verify_sees_a_damaged_header_though_the_index_has_it(inputs: Inputs, kind: str) -> None:
    """Everything can still be read, but without its index the file would lose a chunk."""
    said = ask(READS["verify"], inputs[f"flipped: the header of {kind}"])
    assert said.code == 1 and "the header of this chunk is damaged; the index has it" in said.out
    assert ask(READS["why"], inputs[f"flipped: the header of {kind}"])[:3] == ask(READS["why"], inputs["sound"])[:3]


def test_a_damaged_checkpoint_changes_no_answer(inputs: Inputs) -> None:
    """It is folded from further back; `verify` names it."""
    assert ask(READS["verify"], inputs["flipped: CHECKPOINT"]).code == 1
    for verb in ("why", "holders", "fit"):
        whole, without = (ask(READS[verb], inputs[name]) for name in ("sound", "flipped: CHECKPOINT"))
        assert (whole.code, whole.out.count("\n")) == (without.code, without.out.count("\n")) and without.err == ""


def test_a_lost_begin(inputs: Inputs) -> None:
    """What needs the past says that it is not known; nothing is guessed."""
    path = inputs["lost begin"]
    assert "no pool was seen" in ask(READS["replay"], path).out
    assert "as far as was seen: its past is not known" in ask(READS["why"], path).out
    for verb, why in (
        ("replay --at", "whose past is known"),
        ("replay --what-if", "its begin is lost"),
        ("replay --sweep", "its begin is lost"),
        ("holders", "nothing is known of its memory"),
    ):
        said = ask(READS[verb], path)
        assert said.code == 3 and said.one_line and why in said.err, said
    assert ask(READS["verify"], path).code == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [("no demand", "it holds no request"), ("fidelity cache_only", "sees the prefix cache alone")],
)
def test_without_demand_a_what_if_says_what_is_missing(inputs: Inputs, name: str, why: str) -> None:
    """The rest of the report is there without it."""
    for verb in ("replay --what-if", "replay --sweep"):
        said = ask(READS[verb], inputs[name])
        assert said.code == 3 and said.one_line and why in said.err, said
    assert ask(READS["replay"], inputs[name]).code == 0


def test_who_sees_the_cache_alone_says_nothing_of_requests(inputs: Inputs) -> None:
    """Unknown is absent, never zero."""
    path = inputs["fidelity cache_only"]
    assert "as far as was seen: its adapter sees the prefix cache alone" in ask(READS["why"], path).out
    said = ask(READS["holders"], path)
    assert said.code == 3 and said.one_line and "sees the prefix cache alone" in said.err
    assert ask(READS["why"], inputs["fidelity counts"]).out == "No allocation was refused.\n"
    assert ask(STATUS["status"], path).out.endswith("its adapter sees the prefix cache alone\n")


def test_status_names_an_engine_that_it_cannot_read(inputs: Inputs, tmp_path: Path) -> None:
    """Beside one that it can: the answer is not whole, so the exit code is not 0."""
    both = tmp_path / "both"
    shutil.copytree(inputs["a newer recording"], both)
    record(both, 60, name="other")
    said = ask(STATUS["status"], both)
    assert said.code == 1 and said.out.startswith("other-0 kv ") and said.one_line and "upgrade kvmon" in said.err


@pytest.mark.parametrize("name", ["several engines", "several recordings"])
@pytest.mark.parametrize("verb", READS)
def test_several_engines_are_told_apart(inputs: Inputs, name: str, verb: str) -> None:
    """Each is told by its name; where one has to be chosen, it says how."""
    said = ask(READS[verb], inputs[name])
    if verb == "fit":
        assert said.code == 3 and said.one_line and "choose one with --engine" in said.err
        return
    assert said.code == 0 and said.err == ""
    names = {"several engines": ("a-0", "b-0", "b-1"), "several recordings": ("other-0", "toy-0", "toy-1")}[name]
    if verb in ("replay", "holders", "verify", "replay --what-if", "replay --at", "diff"):
        assert all(one in said.out for one in names), said.out


def test_ways_to_write_a_path(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slash at the end, words and signs in a name, a link, a way around."""
    for path in (inputs["a path of words \N{SNOWMAN}"], inputs["several engines"].parent / "." / "sound.kvmon"):
        assert ask(READS["why"], path)[:3] == ask(READS["why"], inputs["sound"])[:3]
    recording = inputs["recording"]
    slash: Command = lambda path, out: ["verify", f"{path}/"]  # noqa: E731
    assert ask(slash, recording).code == 0
    monkeypatch.chdir(recording)
    assert ask(command("verify", "."), recording).code == 0

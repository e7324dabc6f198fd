"""A recording that lacks some steps: what it says of them, and that everything else is as if nothing were missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmon.adapters.described import pool_info, second_pool_info
from kvmon.adapters.journal_words import JournalWords
from kvmon.adapters.lossy import LossySink
from kvmon.allocators import journal as entries
from kvmon.allocators.journal import iterate
from kvmon.capture import CaptureWriter, StreamFacts
from kvmon.capture.verification import verify_path
from kvmon.events import Event, Kind, decode
from kvmon.state import StreamState, scan
from tests.unit.adapters.driven import OPTIONS, STEP_NS, TOKEN_BYTES, Traffic

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
FROM, UNTIL = 30 * STEP_NS, 34 * STEP_NS
STEPS = 90


class Journals:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.written: list[Ints] = []
        self.overlooked: list[Ints] = []

    def __call__(self, journal: Ints) -> None:
        self.written.append(journal.copy())

    def overlook(self, journal: Ints) -> None:
        """Not to be written."""
        self.overlooked.append(journal.copy())


def served(name: str) -> list[Ints]:
    """The journals of a run with these options, step by step."""
    traffic = Traffic(OPTIONS[name], 4)
    return [traffic.step() for _ in range(STEPS)]


def translated(name: str, pieces: list[Ints], write: Callable[[Words], None], lost: tuple[int, int] | None) -> None:
    """Write the words of a run, without what is lost."""
    options = OPTIONS[name]
    first = pool_info(options.allocator, TOKEN_BYTES)
    second = second_pool_info(options.allocator, options.scheduler, TOKEN_BYTES)
    words = JournalWords(write, "{}", first, second=second, requests=STEPS * 2 + 10)
    lossy = LossySink(words, *(lost or (0, 0)))
    for piece in pieces:
        lossy(piece)
    lossy.close()
    words.close()


def frames_of(name: str, pieces: list[Ints], lost: tuple[int, int] | None = None) -> list[tuple[int, Words]]:
    """Start of the step (0: none) and the words of each frame."""
    kept: list[Words] = []
    translated(name, pieces, lambda piece: kept.append(piece.copy()), lost)
    words, frames, begin = np.concatenate(kept), [], 0
    for end in scan(words).ends.tolist():
        last = list(decode(words[begin:end].tolist()))[-1]
        frames.append((int(last.fields.get("start", 0)), words[begin:end]))
        begin = end
    return frames


def said(words: Words) -> list[tuple[Kind, dict[str, object]]]:
    """The records of a frame, without what framing adds."""
    framing = {"seq", "words", "time", "checksum"}

    def fields(event: Event) -> dict[str, object]:
        return {name: value for name, value in event.fields.items() if name not in framing}

    return [(event.kind, fields(event)) for event in decode(words.tolist())]


@pytest.mark.parametrize("name", ["paged", "swap", "window-own", "retained-many"])
def test_what_is_lost_is_told_and_nothing_else_changes(name: str) -> None:
    """Steps of the loss hold their step record and a gap with the number of records; all others are the same words."""
    pieces = served(name)
    whole, broken = frames_of(name, pieces), frames_of(name, pieces, (FROM, UNTIL))
    assert [start for start, _ in whole] == [start for start, _ in broken], "time goes on"
    lost = 0
    for (start, complete), (_, told) in zip(whole, broken, strict=True):
        if not FROM <= start < UNTIL:
            assert said(told) == said(complete)
            continue
        missing, rest = said(complete)[:-1], said(told)
        assert rest[-1] == said(complete)[-1]
        assert [kind for kind, _ in rest[:-1]] == ([Kind.GAP] if missing else [])
        lost += len(missing)
    assert lost > 20


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, STEPS), st.integers(0, STEPS))
def test_pieces_may_be_cut_anywhere_between_entries(cuts: list[int], first: int, last: int) -> None:
    """However the journal comes, the same is written, and what is missing was seen by the adapter."""
    lost = (1000 + first * STEP_NS, 1000 + last * STEP_NS)
    journal = np.concatenate(served("swap"))
    begins, at = [], 0
    for _, fields in iterate(journal):
        begins.append(at)
        at += 1 + len(fields)
    places = sorted({begins[cut % len(begins)] for cut in cuts})
    once, in_pieces = Journals(), Journals()
    for sink, pieces in ((once, [journal]), (in_pieces, np.split(journal, places))):
        lossy = LossySink(sink, *lost)
        for piece in pieces:
            scratch = piece.copy()
            lossy(scratch)
            scratch[:] = -1  # a piece is valid during the call only
        lossy.close()
    assert np.concatenate(once.written).tolist() == np.concatenate(in_pieces.written).tolist()
    gone = [entry for part in once.overlooked for entry in iterate(part)]
    assert gone == [entry for part in in_pieces.overlooked for entry in iterate(part)]
    told = [fields for code, fields in iterate(np.concatenate(once.written)) if code == entries.LOST]
    assert sum(fields[0] for fields in told) == len(gone)
    assert len(gone) + sum(len(iterate(part)) for part in once.written) == len(begins) + len(told)


def test_the_fold_does_not_know_after_a_loss_and_says_so() -> None:
    """Before the loss all is known; from then on nothing is, and the fold names how many records are missing."""
    state, lost = StreamState(verify=True), 0
    for start, words in frames_of("paged", served("paged"), (FROM, UNTIL)):
        lost += sum(event.fields["lost"] for event in decode(words.tolist()) if event.kind is Kind.GAP)
        state.apply(words)
        assert state.converged == (start < FROM or not lost)
    assert state.lost_records == lost > 0
    assert {fault.kind.name for fault in state.faults()} == {"RECORDS_LOST"}
    assert sum(fault.value or 0 for fault in state.faults()) == lost
    assert not state.missing_frames


def test_verify_names_the_loss(tmp_path: Path) -> None:
    """A capture with a loss is not clean: where, how much, and that its end is not verified."""
    path, pieces = tmp_path / "lossy.kvmon", served("swap")
    with CaptureWriter(path, wall=lambda: 0) as writer:
        translated("swap", pieces, writer.add_stream(StreamFacts("lossy")).write, (FROM, UNTIL))
    found = verify_path(path)
    report = found.streams[0]
    first = next(number for number, (start, _) in enumerate(frames_of("swap", pieces)) if start >= FROM)
    assert not found.clean and not found.damage
    assert not report.converged and report.verified_from == 0
    assert report.lost_records > 0 and report.frames == len(frames_of("swap", pieces))
    assert {(fault.kind.name, first <= fault.frame < first + 4) for fault in report.faults} == {("RECORDS_LOST", True)}

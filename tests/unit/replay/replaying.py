"""Recordings in memory, and the truth of a what-if: the same setup, really run with the change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, StreamFacts
from kvmon.replay.changes import WhatIf, changed
from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.followed import Followed
from kvmon.replay.outcome import Outcome
from kvmon.replay.recordings import Recording, read_stream
from kvmon.replay.simulated import record_setup
from kvmon.replay.whatif import LINGER_S
from kvmon.serving.scenarios import Setup
from kvmon.state import scan

__all__ = ["recording_of", "recording_of_words", "truth_of", "words_of"]

Words = npt.NDArray[np.uint32]


def words_of(setup: Setup) -> list[Words]:
    """Every event of a simulated run."""
    pieces: list[Words] = []
    record_setup(lambda words: pieces.append(words.copy()), setup)
    return pieces


def recording_of_words(pieces: list[Words], name: str = "simulator") -> Recording:
    """A stream of whole frames as a recording."""
    return read_stream(StreamDiagnosis(StreamFacts(name)), (Frames(words, scan(words)) for words in pieces))


def recording_of(setup: Setup) -> Recording:
    """A simulated run as a recording."""
    return recording_of_words(words_of(setup))


def truth_of(setup: Setup, recording: Recording, what_if: WhatIf) -> Outcome:
    """What really happens with the change: the setup itself run with it, not its recording."""
    new = changed(recording.demand.described(), what_if, recording.demand.hash_tokens)
    followed = Followed()
    record_setup(
        followed.write,
        replace(
            setup, allocator=new.allocator, scheduler=new.scheduler, faults=new.faults, linger_s=LINGER_S, lost_s=()
        ),
    )
    return followed.outcome(len(setup.workload))

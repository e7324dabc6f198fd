"""Edges of the logs: the first frame, a table of requests that grows, and a look in between that changes nothing."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import Diagnosis
from kvmon.events import Contiguity, FailureOutcome, FailureReason, Kind, encode
from kvmon.state import StreamState
from kvmon.state.watch import R

SECOND = 1_000_000_000


class Frames:
    """Frames by hand: records, closed by a step at a time."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.frame: list[int] = []
        self.number = 0
        pool = {"capacity_units": 100, "unit_tokens": 16, "fresh": True}
        self.say(Kind.POOL_ATTACHED, pool=1, restated=0, text=json.dumps(pool))

    def say(self, kind: Kind, **fields: object) -> None:
        """One record of the open frame."""
        self.frame += encode(kind, **fields)

    def arrive(self, request: int) -> None:
        """A request that waits."""
        self.say(Kind.REQUEST_ARRIVED, request=request, at=1, class_id=0, prompt=160, limit=None, intended=None)

    def refuse(self, request: int, outcome: FailureOutcome) -> None:
        """It is refused 10 of 0 free units."""
        self.say(
            Kind.ALLOC_FAILED,
            request=request,
            need=10,
            contiguity=int(Contiguity.NONE),
            free=0,
            evictable=0,
            largest=None,
            reason=int(FailureReason.EXHAUSTED),
            outcome=int(outcome),
        )

    def close(self, seconds: float, waiting: int = 0) -> None:
        """The step that closes the frame."""
        size = len(self.frame) + 17
        numbers = dict.fromkeys(("start", "duration", "prefill", "decode", "context", "running"), 1)
        self.words += self.frame + encode(
            Kind.STEP,
            seq=self.number,
            words=size,
            time=int(seconds * SECOND),
            head_need=None,
            waiting=waiting,
            checksum=1,
            **numbers,
        )
        self.frame, self.number = [], self.number + 1

    def array(self) -> npt.NDArray[np.uint32]:
        """Every closed frame."""
        return np.array(self.words, np.uint32)


def followed(words: npt.NDArray[np.uint32]) -> Diagnosis:
    """The diagnosis of these frames."""
    state, diagnosis = StreamState(), Diagnosis()
    diagnosis.follow(state)
    state.apply(words, verify_checksums=False)
    return diagnosis


def test_a_refusal_in_the_first_frame_counts() -> None:
    """The first window holds the frame that it begins with."""
    frames = Frames()
    frames.arrive(1)
    frames.refuse(1, FailureOutcome.REFUSED)
    frames.close(1.0)
    frames.close(1.5)
    assert [finding.verdict for finding in followed(frames.array()).findings()] == ["capacity"]


def test_a_wait_survives_the_growth_of_the_table() -> None:
    """The end of a wait finds its begin although the table of requests doubled in between."""
    frames = Frames()
    for request in range(1, 201):
        frames.arrive(request)
    frames.refuse(150, FailureOutcome.WAITS)
    frames.close(1.0, waiting=200)
    for request in range(201, 400):
        frames.arrive(request)
    frames.close(2.0, waiting=399)
    frames.say(Kind.REQUEST_ADMITTED, request=150)
    frames.close(3.0, waiting=398)
    logged: list[npt.NDArray[np.int64]] = []
    state = StreamState()
    state.log_to(lambda refusals, windows: logged.append(refusals.copy()))
    state.apply(frames.array(), verify_checksums=False)
    state.drain()
    begun, ended = np.concatenate(logged)
    assert begun[R.KIND] == R.REFUSED and ended[R.KIND] == R.ENDED
    assert begun[R.SEQ] == ended[R.SEQ] > 0 and ended[R.TIME] - ended[R.SINCE] == 2 * SECOND


def test_a_look_in_between_changes_nothing() -> None:
    """A wait whose end was lost in a gap is over at the end of its window, whoever looked before that."""
    frames = Frames()
    frames.arrive(1)
    frames.refuse(1, FailureOutcome.WAITS)
    frames.close(1.0, waiting=1)
    frames.number += 1  # one frame is missing
    frames.close(2.0)
    cut = len(frames.words)
    frames.close(7.0)
    waited = []
    for look in (False, True):
        state, diagnosis = StreamState(), Diagnosis()
        diagnosis.follow(state)
        for words in (frames.array()[:cut], frames.array()[cut:]):
            state.apply(words, verify_checksums=False)
            if look:
                diagnosis.findings()
        state.drain()
        waited.append(diagnosis.minutes[1].waiting_s)
    assert waited == [4.0, 4.0]

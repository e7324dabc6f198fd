"""Edges of the logs: the first frame, a table of requests that grows, and a look in between that changes nothing."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis import Diagnosis
from kvmon.events import Contiguity, FailureOutcome, FailureReason, Kind, encode
from kvmon.state import StreamState
from kvmon.state.device import STALE_NS
from kvmon.state.watch import R, W

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

    def sample(self, device: int, free: int, **more: int | None) -> None:
        """A device of 1000 bytes of which torch reserved 500 and allocated 400."""
        numbers = {"used": 1000 - free, "free": free, "total": 1000, "reserved": 500, "allocated": 400, "inactive": 80}
        self.say(Kind.DEVICE_SAMPLE, device=device, **{**numbers, **more}, uuid="GPU-1")

    def fail_elsewhere(self, asked: int) -> None:
        """An error of another allocator, which says only what it asked for."""
        self.say(Kind.ENGINE_ERROR, error=1, asked=asked, free=0, reserved=0)

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


def rows_of(frames: Frames) -> list[list[int]]:
    """The window that is open."""
    state = StreamState()
    state.apply(frames.array(), verify_checksums=False)
    return state.open_window().tolist()


def test_an_error_is_kept_with_the_sample_before_it() -> None:
    """Of the device with the least free; what was sampled after the error is of another moment."""
    frames = Frames()
    frames.close(1.0)
    frames.sample(0, 300, largest_free=60)
    frames.sample(1, 200)
    frames.close(2.0)
    frames.fail_elsewhere(250)
    frames.sample(1, 900, largest_free=99)
    frames.close(2.5)
    row = rows_of(frames)[0]
    assert (row[W.ERRORS], row[W.ASKED], row[W.ERROR_FREE]) == (1, 250, 0)
    assert row[W.DEVICE_TOTAL : W.WIDTH] == [1000, 200, 500, 400, -1]
    assert row[W.SAMPLE_NS] == SECOND // 2


def test_of_several_errors_in_a_window_the_one_that_asked_for_the_most_is_kept() -> None:
    """And the next window begins without one."""
    frames = Frames()
    frames.sample(0, 300, largest_free=60)
    for asked in (250, 700, 600):
        frames.fail_elsewhere(asked)
    frames.close(1.0)
    row = rows_of(frames)[0]
    assert (row[W.ERRORS], row[W.ASKED], row[W.TORCH_LARGEST]) == (3, 700, 60)
    frames.close(6.0)
    assert rows_of(frames)[0][W.ASKED : W.WIDTH] == [0] * (W.WIDTH - W.ASKED)


def test_an_error_long_after_the_last_sample_stands_alone() -> None:
    """A sampler that stopped says nothing of the device now, and the finding is as if there were none."""
    stale, bare = Frames(), Frames()
    stale.sample(0, 300, largest_free=60)
    for frames in (stale, bare):
        frames.close(1.0)
        frames.close(1.0 + STALE_NS / SECOND)
        frames.fail_elsewhere(700)
        frames.close(2.0 + STALE_NS / SECOND)
    assert rows_of(stale)[0][W.DEVICE_TOTAL] == 0
    assert [f.to_json() for f in followed(stale.array()).findings()] == [
        f.to_json() for f in followed(bare.array()).findings()
    ]


def test_a_worse_minute_of_a_finding_brings_its_own_levers() -> None:
    """The first error had no sample; the second one has, and its words and levers are those of the finding."""
    frames = Frames()
    frames.fail_elsewhere(100)
    frames.close(1.0)
    frames.sample(0, 300, largest_free=60)
    frames.fail_elsewhere(350)
    frames.close(7.0)
    findings = followed(frames.array()).findings()
    assert [finding.verdict for finding in findings] == ["not_kv"]
    assert "fragmentation of torch's own memory" in findings[0].summary and "expandable" in findings[0].avoided


def test_absurd_sizes_fold() -> None:
    """Words that were not written by a probe can say more bytes than any number here holds: they are cut, not fatal."""
    frames = Frames()
    frames.sample(0, 300)
    frames.fail_elsewhere(5)
    largest = 0xFFFFFFFE
    frames.frame[-6:] = [largest] * 6  # asked, free, reserved
    frames.close(1.0)
    assert rows_of(frames)[0][W.ASKED] == rows_of(frames)[0][W.ERROR_FREE] == 1 << 61
    assert [finding.verdict for finding in followed(frames.array()).findings()] == ["not_kv"]

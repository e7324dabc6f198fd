"""Follow a stream from its frames to its outcome: folded, diagnosed and measured in one pass.

One class for a recording and for a simulated run, so that what is compared was measured by the same code.

Invariant: memory is bounded but for 40 bytes a step and 8 a wait; nothing of the words is kept.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from kvmon.capture.pieces import Frames, Piece, StreamFacts
from kvmon.errors import InputError
from kvmon.events import FAILURE_REASONS, FailureReason, FinishReason
from kvmon.replay.findings import StreamDiagnosis
from kvmon.replay.outcome import Outcome
from kvmon.replay.trail import AGAIN_HIT, HIT, LOOKUP, LOST, OUTPUT, PREEMPTIONS, Trail, TrailReader
from kvmon.state import StreamState, scan
from kvmon.state.watch import R

__all__ = ["Followed"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]

_P95 = 95
_NO_RUN = int(FailureReason.NO_CONTIGUOUS_RUN)
_COUNTED = ("exact", "counts", "sampled")  # fidelities that know how many units are in use


class Followed:
    """One stream on its way to an outcome; None: of a simulator. `numbers`: see `TrailReader`."""

    def __init__(self, stream: StreamDiagnosis | None = None, numbers: Ints | None = None) -> None:
        self.stream = stream or StreamDiagnosis(StreamFacts("simulator"))
        self.stream.state.log_to(self._take)
        self._trail = TrailReader(numbers)
        self._arrived = 0
        self._waited: list[Ints] = []
        self._failures: Counter[int] = Counter()
        self._mid_stream = 0
        self._fragmented = np.zeros(3, np.float64)  # failures, free share of the pool, largest of what was free

    @property
    def state(self) -> StreamState:
        """The fold so far."""
        return self.stream.state

    def write(self, words: Words) -> None:
        """Follow words of whole frames that nobody has to check."""
        self.apply(Frames(words, scan(words, verify=False)))

    def apply(self, piece: Piece) -> None:
        """Follow the next piece of a stream."""
        self.stream.apply(piece)
        if isinstance(piece, Frames):
            self._trail.apply(piece.words, piece.table)

    def trail(self) -> Trail:
        """What was done so far, step by step."""
        return self._trail.trail()

    def outcome(self, requests: int, *, cut_short: bool = False) -> Outcome:
        """What was measured; `requests` = how many arrived. Raises InputError where no pool was seen."""
        state, trail = self.state, self.trail()
        state.drain()
        if 1 not in state.pools:
            raise InputError("no pool was seen: the recording has lost its begin, or the engine had none")
        pool, counts = state.pools[1], trail.counts
        ended = {reason: int(counts[reason]) for reason in FinishReason}
        findings = self.stream.findings
        units = state.config.get("fidelity", "exact") in _COUNTED
        waits = np.concatenate([np.zeros(0, np.int64), *self._waited, self._still_waiting()])
        failures = int(self._fragmented[0])
        return Outcome(
            verdict=self.stream.verdict,
            verdicts=tuple(dict.fromkeys(finding.verdict for finding in findings)),
            requests=requests,
            finished=ended[FinishReason.STOP] + ended[FinishReason.LENGTH] + ended[FinishReason.UNKNOWN],
            lost=ended[FinishReason.ERROR] + ended[FinishReason.REFUSED],
            hung_up=ended[FinishReason.ABORT],
            unfinished=max(requests - sum(ended.values()), 0),
            failures={FAILURE_REASONS[reason]: count for reason, count in sorted(self._failures.items())},
            failures_mid_stream=self._mid_stream,
            capacity_units=pool.capacity_units,
            unit_tokens=pool.unit_tokens,
            unit_bytes=int(pool.info.get("unit_bytes", 0)),
            peak_units=trail.peak if units else None,
            mean_units=trail.mean if units else None,
            waits=len(waits),
            wait_s=float(waits.sum()) / 1e9,
            wait_p95_s=float(np.percentile(waits, _P95)) / 1e9 if len(waits) else None,
            preemptions=int(counts[PREEMPTIONS]),
            recomputed_tokens=max(int(counts[LOST] - counts[AGAIN_HIT]), 0),
            lookup_tokens=int(counts[LOOKUP]),
            hit_tokens=int(counts[HIT]),
            evictions=pool.evicted if units else None,
            output_tokens=int(counts[OUTPUT]),
            fragmented=failures,
            free_at_fragmentation_ratio=float(self._fragmented[1]) / failures if failures else None,
            largest_at_fragmentation_ratio=float(self._fragmented[2]) / failures if failures else None,
            steps=len(trail),
            begin_ns=int(trail.start[0]) if len(trail) else 0,
            end_ns=int(trail.start[-1] + trail.duration[-1]) if len(trail) else 0,
            cut_short=cut_short,
        )

    def _still_waiting(self) -> Ints:
        """How long those wait that wait for memory at the end."""
        requests = self.state.requests
        since: Ints = requests.starved[(requests.id != 0) & (requests.starved > 0)]
        return self.state.time_ns - since

    def _take(self, refusals: Ints, windows: Ints) -> None:
        """Measure what the diagnosis takes in."""
        ended = refusals[refusals[:, R.KIND] == R.ENDED]
        self._waited.append(ended[:, R.TIME] - ended[:, R.SINCE])
        begun = refusals[refusals[:, R.KIND] == R.REFUSED]
        self._failures.update(begun[:, R.REASON].tolist())
        self._mid_stream += int(begun[:, R.MID_STREAM].sum())
        scattered = begun[(begun[:, R.REASON] == _NO_RUN) & (begun[:, R.FREE] > 0)]
        known = scattered[scattered[:, R.LARGEST] >= 0]
        self._fragmented += (
            len(known),
            float((known[:, R.FREE] / np.maximum(known[:, R.CAPACITY], 1)).sum()),
            float((known[:, R.LARGEST] / known[:, R.FREE]).sum()),
        )
        self.stream.take(refusals, windows)

"""The diagnosis of one stream: rows of the logs in, findings out, live and after the fact by the same code.

Windows are judged one by one, each with the minute before it; windows in which a verdict goes on holding are one
finding. Memory is bounded however long the stream is: a minute of windows, the waits that are open, and MOST_FINDINGS.

Invariant: what holds at the end of a window follows from the rows up to there, however they were cut into batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kvmon.diagnosis.catalogue import HEALTHY, VERDICTS
from kvmon.diagnosis.failures import CAUSES, causes
from kvmon.diagnosis.finding import Completeness, Finding
from kvmon.diagnosis.minute import Minute, Refused
from kvmon.diagnosis.thresholds import (
    COMPLETE,
    FORGOTTEN_SHARE,
    GAUGE_OFF,
    MINUTE_WINDOWS,
    NAMED_SHARE,
    STORM_SHARE,
)
from kvmon.diagnosis.verdict import Holds
from kvmon.events import FailureOutcome
from kvmon.state.faults import FaultKind
from kvmon.state.watch import WINDOW_NS, R, W

if TYPE_CHECKING:
    from kvmon.state import StreamState

__all__ = ["MOST_FINDINGS", "Diagnosis"]

Ints = npt.NDArray[np.int64]

MOST_FINDINGS = 200
_SAMPLES = 3
_PREEMPTING = (int(FailureOutcome.PREEMPTED_ANOTHER), int(FailureOutcome.PREEMPTED_ITSELF))
_LOST = (int(FailureOutcome.REFUSED), int(FailureOutcome.ABORTED))
_FAULTS = {
    "double_free": (FaultKind.DOUBLE_FREE, FaultKind.ALLOC_IN_USE),
    "leak": (FaultKind.UNOWNED, FaultKind.RESIDUAL),
}
_CARRIED = ("_windows", "_known", "_gaps", "_state", "holding", "minutes")
_OF_WINDOWS = tuple((name, verdict) for name, verdict in VERDICTS.items() if not verdict.of_refusals)
_OPEN = np.iinfo(np.int64).max
# What makes a window worth a look whatever else happened in it.
_NOTED = (W.ERRORS, W.GAPS, W.DOUBLES)


class _Waits:
    """Refused allocations of one pool: their causes, and the waits that they began, until they are of the past."""

    def __init__(self) -> None:
        self.rows = np.zeros((0, R.WIDTH), np.int64)
        self.cause = np.zeros(0, np.int64)
        self.lost = np.zeros(0, np.bool_)
        self.preempting = np.zeros(0, np.bool_)
        self.end = np.zeros(0, np.int64)

    def copy(self) -> _Waits:
        """One that can go its own way; the other columns are replaced, never written to."""
        other = copy.copy(self)
        other.end = self.end.copy()
        return other

    def add(self, rows: Ints, cause: Ints) -> None:
        self.rows = np.concatenate([self.rows, rows])
        self.cause = np.concatenate([self.cause, cause])
        self.lost = np.concatenate([self.lost, np.isin(rows[:, R.OUTCOME], _LOST)])
        self.preempting = np.concatenate([self.preempting, np.isin(rows[:, R.OUTCOME], _PREEMPTING)])
        # a request that waits already, or that nobody knows, begins no wait of its own
        ends = np.where(rows[:, R.SEQ] > 0, _OPEN, rows[:, R.TIME])
        self.end = np.concatenate([self.end, ends])

    def over(self, ended: Ints) -> None:
        """Note the ends of waits; `ended` rows have R.SEQ and R.TIME."""
        begun = np.flatnonzero(self.rows[:, R.SEQ] > 0)  # numbered in their order
        sequence = self.rows[begun, R.SEQ]
        at = np.searchsorted(sequence, ended[:, R.SEQ])
        at[at == len(sequence)] = 0
        mine = sequence[at] == ended[:, R.SEQ] if len(sequence) else np.zeros(len(ended), np.bool_)
        self.end[begun[at[mine]]] = ended[mine, R.TIME]

    def settle(self, end: int) -> None:
        """Nobody waits at `end`, or nobody knows: waits that seem to last were over by then."""
        last = (self.end == _OPEN) & (self.rows[:, R.TIME] <= end)
        if last.any():
            self.end[last] = end

    def forget(self, before: int) -> None:
        """Drop what ended, and was refused, before this time, once it is the better part."""
        keep = (self.end > before) | (self.rows[:, R.TIME] > before)
        if 2 * np.count_nonzero(keep) <= len(keep):
            self.rows, self.cause, self.lost = self.rows[keep], self.cause[keep], self.lost[keep]
            self.end, self.preempting = self.end[keep], self.preempting[keep]

    def during(self, begin: int, end: int) -> tuple[dict[str, Refused], float]:
        """What was refused after `begin` and until `end`, and the seconds in which somebody waited."""
        times = self.rows[:, R.TIME]  # in their order
        first, last = np.searchsorted(times, [begin, end], side="right").tolist()
        begins, ends = np.maximum(times[:last], begin), np.minimum(self.end[:last], end)
        waited = np.maximum(ends - begins, 0)
        waits = waited > 0
        shown = waits.copy()
        shown[first:] = True
        if not shown.any():
            return {}, 0.0
        causes = self.cause[:last]
        count = np.bincount(causes[first:], minlength=len(CAUSES)).tolist()
        lost = np.bincount(causes[first:][self.lost[first:last]], minlength=len(CAUSES)).tolist()
        took = np.bincount(causes[first:][self.preempting[first:last]], minlength=len(CAUSES)).tolist()
        seconds = (np.bincount(causes, waited, len(CAUSES)) / 1e9).tolist()
        found: dict[str, Refused] = {}
        for number, name in enumerate(CAUSES):
            if count[number] or seconds[number]:
                some = np.flatnonzero(shown & (causes == number))
                places = [int(some[waited[some].argmax()]), *some[: _SAMPLES - 1].tolist()]
                samples = self.rows[sorted(set(places))].tolist()
                found[name] = Refused(count[number], lost[number], took[number], seconds[number], samples)
        return found, _together(begins[waits], ends[waits])


class Diagnosis:
    """Findings of one stream, kept up with its logs.

    `on_window` is told, for each window and pool, when it ended and which verdicts hold (in their order).
    """

    def __init__(self, on_window: Callable[[int, int, tuple[str, ...]], None] | None = None) -> None:
        self.holding: dict[int, dict[str, Holds]] = {}
        self.minutes: dict[int, Minute] = {}
        self.dropped = 0
        self._on_window = on_window
        self._findings: list[Finding] = []
        self._open: dict[tuple[int, str], tuple[Finding, float]] = {}
        self._minutes: dict[int, tuple[list[list[int]], list[bool]]] = {}
        self._waits: dict[int, _Waits] = {}
        self._windows = self._known = self._gaps = 0
        self._state: StreamState | None = None

    def follow(self, state: StreamState) -> None:
        """Take the logs of `state` from now on."""
        self._state = state
        state.log_to(self.take)

    # -- what is found --

    def findings(self) -> list[Finding]:
        """Everything found so far, most important first; the window that is still open counts as if it ended now."""
        now = self.as_of_now()
        seen = Completeness(now._known / max(now._windows, 1), now._gaps)
        found = [
            replace(finding, events=self._shown(finding), completeness=_merged(seen, finding.completeness))
            for finding in now._findings
        ]
        return sorted(found, key=lambda finding: (VERDICTS[finding.verdict].rank, -finding.paid, finding.start_ns))

    def _shown(self, finding: Finding) -> tuple[tuple[int, int], ...]:
        """Events that show a finding: those of the fold's own faults where it is about them."""
        kinds = _FAULTS.get(finding.verdict, ())
        faults = [] if self._state is None or not kinds else self._state.faults()
        mine = [
            (fault.frame, fault.word)
            for fault in faults
            if fault.kind in kinds
            and fault.pool == finding.pool
            and finding.start_ns <= fault.time_ns <= finding.end_ns
        ]
        return tuple(mine[:_SAMPLES]) or finding.events

    def verdict(self) -> str:
        """The one word: what was found first, or that nothing was."""
        found = self.findings()
        return found[0].verdict if found else HEALTHY

    def as_of_now(self) -> Diagnosis:
        """This diagnosis as if the open window ended with the last frame: what `holding` and `minutes` have is about
        the minute that ends now. It follows nothing, and this one is as it was.
        """
        if self._state is None:
            return self
        self._state.drain()
        open_rows = self._state.open_window()
        if not len(open_rows):
            return self
        later = Diagnosis()
        for name in _CARRIED:
            setattr(later, name, copy.copy(getattr(self, name)))
        later._waits = {pool: waits.copy() for pool, waits in self._waits.items()}
        later._findings = [copy.copy(finding) for finding in self._findings]
        places = {id(finding): place for place, finding in enumerate(self._findings)}
        later._open = {
            key: (later._findings[places[id(finding)]], weight)
            for key, (finding, weight) in self._open.items()
            if id(finding) in places
        }
        later._minutes = {pool: (list(rows), list(loud)) for pool, (rows, loud) in self._minutes.items()}
        later._windows_ended(open_rows)
        return later

    # -- taking rows --

    def take(self, refusals: Ints, windows: Ints) -> None:
        """Rows of the two logs, in their order; they are copied."""
        if len(refusals):
            begun = refusals[refusals[:, R.KIND] == R.REFUSED]
            for pool in np.unique(begun[:, R.POOL]).tolist():
                rows = begun[begun[:, R.POOL] == pool].copy()
                self._waits.setdefault(pool, _Waits()).add(rows, causes(rows, self._exact))
            ended = refusals[refusals[:, R.KIND] == R.ENDED]
            if len(ended):
                for waits in self._waits.values():
                    waits.over(ended)
        if len(windows):
            self._windows_ended(windows)

    @property
    def _exact(self) -> bool:
        return self._state is None or self._state.config.get("fidelity", "exact") == "exact"

    def _windows_ended(self, windows: Ints) -> None:
        loud = _loud(windows)
        for row, noise in zip(windows.tolist(), loud.tolist(), strict=True):
            pool = row[W.POOL]
            minute, noises = self._minutes.setdefault(pool, ([], []))
            minute.append(row)
            noises.append(noise)
            del minute[:-MINUTE_WINDOWS], noises[:-MINUTE_WINDOWS]
            self._windows += 1
            self._known += row[W.KNOWN]
            self._gaps += row[W.GAPS] if pool == 1 else 0
            waits = self._waits.get(pool)
            if waits is not None and (row[W.GAPS] or not row[W.STARVED]):
                waits.settle(row[W.END])
            if waits is None and not any(noises):
                self.minutes[pool] = Minute(minute, {}, 0.0, self._exact)
                self._tell(row[W.END], pool, {})
            else:
                self._judge(pool, minute, waits)

    def _judge(self, pool: int, minute: Sequence[list[int]], waits: _Waits | None) -> None:
        begin, end = minute[0][W.BEGIN], minute[-1][W.END]
        refused, waiting_s = ({}, 0.0) if waits is None else waits.during(begin, end)
        look = self.minutes[pool] = Minute(minute, refused, waiting_s, self._exact)
        holds = {}
        for name, verdict in VERDICTS.items() if refused else _OF_WINDOWS:
            found = verdict.holds(look)
            if found is not None:
                holds[name] = found
                self._note(name, pool, minute[-1], found)
        if waits is not None:
            waits.forget(begin)
            if not len(waits.rows):
                del self._waits[pool]
        self._tell(end, pool, holds)

    def _tell(self, end: int, pool: int, holds: dict[str, Holds]) -> None:
        self.holding[pool] = holds
        for key in [key for key in self._open if key[0] == pool and key[1] not in holds]:
            finding, _ = self._open[key]
            if end - finding.end_ns > MINUTE_WINDOWS * WINDOW_NS:
                del self._open[key]
        if self._on_window is not None:
            self._on_window(end, pool, tuple(holds))

    def _note(self, name: str, pool: int, row: list[int], found: Holds) -> None:
        """A verdict holds: go on with its finding, or begin one."""
        verdict, end = VERDICTS[name], row[W.END]
        before = self._open.get((pool, name))
        if before is not None:
            finding, weight = before
            finding.end_ns = end
            finding.lost = max(finding.lost, found.lost)
            finding.waited_s = max(finding.waited_s, found.waited_s)
            if found.weight > weight:
                finding.confidence, finding.summary, finding.evidence = found.confidence, found.summary, found.evidence
                finding.avoided, finding.lever = found.avoided or verdict.avoided, found.lever or verdict.lever
                finding.events = finding.events or found.events
                self._open[pool, name] = (finding, found.weight)
            return
        if len(self._findings) >= MOST_FINDINGS:
            self.dropped += 1
            return
        finding = Finding(
            name,
            pool,
            self._name_of(pool),
            row[W.BEGIN],
            end,
            found.confidence,
            found.summary,
            found.evidence,
            found.events or ((row[W.FRAME], 0),),
            found.avoided or verdict.avoided,
            found.lever or verdict.lever,
            found.lost,
            found.waited_s,
            Completeness(missing=found.missing),
        )
        self._findings.append(finding)
        self._open[pool, name] = (finding, found.weight)

    def _name_of(self, pool: int) -> str:
        known = None if self._state is None else self._state.pools.get(pool)
        return str(pool) if known is None else known.name


def _together(begins: Ints, ends: Ints) -> float:
    """Seconds that these intervals, ordered by their begin, cover together."""
    if not len(begins):
        return 0.0
    covered = np.maximum.accumulate(np.concatenate([begins[:1], ends[:-1]]))
    return float(np.maximum(ends - np.maximum(begins, covered), 0).sum()) / 1e9


def _loud(windows: Ints) -> npt.NDArray[np.bool_]:
    """Windows in which something happened that a verdict may be about; most are quiet, and cost nothing."""
    claimed = (windows[:, W.MOST_RESIDUAL] < 0) | (windows[:, W.LEAST_RESIDUAL] > 0)
    claimed |= (windows[:, W.LEAST_DRIFT] > 0) | (windows[:, W.LEAST_GAUGE] >= GAUGE_OFF * 1e6)
    claimed &= windows[:, W.CLAIMS] > 0
    loud: npt.NDArray[np.bool_] = claimed | (windows[:, W.LEAST_UNOWNED] > 0)
    loud |= (windows[:, _NOTED] != 0).any(axis=1)
    loud |= (windows[:, W.STUCK_NS] > 0) & (windows[:, W.PROGRESS] == 0)
    loud |= windows[:, W.LEAST_DEFERRED] >= NAMED_SHARE * np.maximum(windows[:, W.CAPACITY], 1)
    # a minute has such a share only where one of its windows has
    loud |= (windows[:, W.FORGOTTEN] > 0) & (windows[:, W.FORGOTTEN] >= FORGOTTEN_SHARE * windows[:, W.LOOKUP])
    loud |= (windows[:, W.PREEMPTED] > 0) & (windows[:, W.LOST] >= STORM_SHARE * windows[:, W.PREFILL])
    return loud


def _merged(seen: Completeness, own: Completeness) -> Completeness:
    missing = list(own.missing)
    if seen.known_ratio < COMPLETE:
        missing.append(f"{1 - seen.known_ratio:.0%} of the windows have a past that is not whole")
    return Completeness(seen.known_ratio, seen.gaps, tuple(missing))

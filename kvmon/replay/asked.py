"""What was asked of a recording's streams, answered stream by stream: what-ifs, a sweep, or what would have avoided
each finding.

Invariant: a stream that cannot be replayed says why and holds up none of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kvmon.capture.pieces import StreamFacts
from kvmon.errors import ConfigError, InputError
from kvmon.replay.changes import WhatIf
from kvmon.replay.proposals import Proposal, propose
from kvmon.replay.recordings import Recording
from kvmon.replay.sweep import Progress, sweep
from kvmon.replay.whatif import Comparison, begin_comparison, compare

__all__ = ["MOST_STEPS", "Answered", "avoided", "compared", "swept", "too_long"]

MOST_STEPS = 200_000
"""Recordings with more steps are not replayed unless somebody asks: a few seconds is what nobody minds."""


@dataclass(frozen=True)
class Answered:
    """Of one stream: what was compared, what would have avoided its findings, or why it cannot be replayed.

    facts       of the stream; two recordings of one life have the same
    source      what it was read from, where there are several; else empty
    """

    facts: StreamFacts
    comparison: Comparison | None = None
    proposals: tuple[Proposal, ...] = ()
    missing: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """Engine and rank, and the source where it is not the only one."""
        return f"{self.facts.name} of {self.source}" if self.source else self.facts.name

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "engine": self.facts.engine,
            "rank": self.facts.rank,
            "source": self.source or None,
            "missing": self.missing or None,
            "comparison": None if self.comparison is None else self.comparison.to_json(),
            "proposals": [one.to_json() for one in self.proposals],
        }


def too_long(steps: int) -> str:
    """Why a recording of so many steps is not replayed unless somebody asks; empty where it is."""
    if steps <= MOST_STEPS:
        return ""
    return f"{steps:,} steps are not replayed unless asked for: add --what-if pool=+25%, or another one"


def compared(recordings: Sequence[Recording], what_ifs: Sequence[WhatIf]) -> list[Answered]:
    """Each stream with every what-if. Raises what the first one raised where no stream has an answer."""
    return _each(recordings, lambda recording: Answered(recording.stream.facts, compare(recording, what_ifs)))


def swept(
    recordings: Sequence[Recording],
    what_ifs: Sequence[WhatIf],
    *,
    executor: str,
    workers: int | None,
    ray_address: str | None,
    progress: Progress,
) -> list[Answered]:
    """The same, by several processes or Ray; see `sweep`."""
    able = [recording for recording in recordings if not recording.demand.missing]
    if not able:
        recordings[0].demand.described()  # says what is missing
    found = iter(sweep(able, what_ifs, executor=executor, workers=workers, ray_address=ray_address, progress=progress))
    return [
        Answered(recording.stream.facts, missing=_reason(recording))
        if recording.demand.missing
        else Answered(recording.stream.facts, next(found))
        for recording in recordings
    ]


def avoided(recordings: Sequence[Recording]) -> list[Answered]:
    """What would have avoided each finding of each stream that has one; a stream without findings is left out."""
    return [_avoided(recording) for recording in recordings if recording.stream.findings]


def _avoided(recording: Recording) -> Answered:
    if said := too_long(recording.steps):
        return Answered(recording.stream.facts, missing=said)
    demand = recording.demand
    if demand.missing:
        return Answered(recording.stream.facts, missing=_reason(recording))
    begun = begin_comparison(recording)
    verdicts = dict.fromkeys(finding.verdict for finding in recording.stream.findings)
    proposals = (propose(verdict, demand, begun) for verdict in verdicts)
    return Answered(recording.stream.facts, begun, tuple(one for one in proposals if one is not None))


def _each(recordings: Sequence[Recording], ask: Callable[[Recording], Answered]) -> list[Answered]:
    found: list[Answered] = []
    first: ConfigError | InputError | None = None
    for recording in recordings:
        try:
            found.append(ask(recording))
        except (ConfigError, InputError) as error:
            first = first or error
            found.append(Answered(recording.stream.facts, missing=str(error)))
    if first is not None and not any(one.comparison for one in found):
        raise first
    return found


def _reason(recording: Recording) -> str:
    return f"{recording.name} cannot be replayed: {recording.demand.missing}"

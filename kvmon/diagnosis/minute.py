"""What a verdict looks at: the windows of the last minute of one pool, and the refused allocations in them by cause.

Invariant: a minute depends on the rows of the logs alone, so that a verdict is the same live and in a replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kvmon.diagnosis.thresholds import (
    NAMED_SHARE,
    PERSISTENT_WINDOWS,
    SHORTEST_LIFE_S,
    WAITED_SHARE,
)
from kvmon.state.watch import W

__all__ = ["Minute", "Refused"]


@dataclass
class Refused:
    """Refused allocations of one cause in a minute: how many began, requests lost by them, those that cost somebody its
    memory, request-seconds of waiting in the minute, and a row of the log (`state.watch.R`) to show."""

    count: int = 0
    lost: int = 0
    preempting: int = 0
    waited_s: float = 0.0
    samples: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Minute:
    """Rows of up to MINUTE_WINDOWS windows (`state.watch.W`), the last one last; what was refused by cause, and for how
    long somebody waited for memory in it. `exact`: the recording has every unit."""

    rows: Sequence[Sequence[int]]
    refused: Mapping[str, Refused]
    waiting_s: float
    exact: bool
    _totals: dict[int, int] = field(default_factory=dict, compare=False)

    @property
    def now(self) -> Sequence[int]:
        """The last window."""
        return self.rows[-1]

    @property
    def of_stream(self) -> bool:
        """Whether this is the pool under which what is about the whole stream is said: the first one."""
        return self.rows[-1][W.POOL] == 1

    @property
    def seconds(self) -> float:
        """How long the minute is: less at the begin of a recording."""
        return float(self.rows[-1][W.END] - self.rows[0][W.BEGIN]) / 1e9

    def total(self, column: int) -> int:
        """Sum over the minute."""
        known = self._totals.get(column)
        if known is None:
            known = self._totals[column] = sum([row[column] for row in self.rows])
        return known

    def of_last(self, windows: int, column: int) -> list[int]:
        """Values of a column in the last `windows`; fewer where there are no more."""
        return [row[column] for row in self.rows[-windows:]]

    def share(self, column: int) -> float:
        """A number of units at the end of the last window, as a share of the pool."""
        return self.now[column] / max(self.now[W.CAPACITY], 1)

    def known(self, windows: int = PERSISTENT_WINDOWS) -> bool:
        """Whether the whole past was known in the last `windows`."""
        return all(self.of_last(windows, W.KNOWN))

    @property
    def waited_s(self) -> float:
        """Request-seconds of waiting for memory in the minute, whatever the cause."""
        return sum(refused.waited_s for refused in self.refused.values())

    @property
    def waits_matter(self) -> bool:
        """Whether there was somebody waiting for long enough that somebody minds."""
        return self.waiting_s >= WAITED_SHARE * max(self.seconds, SHORTEST_LIFE_S)

    def explains(self, *names: str) -> Refused | None:
        """What was refused for these causes, where requests were lost by it or waited and it is a part worth naming."""
        parts = [self.refused[name] for name in names if name in self.refused]
        lost, waited = sum(part.lost for part in parts), sum(part.waited_s for part in parts)
        preempting = sum(part.preempting for part in parts)
        if not (lost or (self.waits_matter and waited >= NAMED_SHARE * self.waited_s)):
            return None
        samples = [sample for part in parts for sample in part.samples]
        return Refused(sum(part.count for part in parts), lost, preempting, waited, samples)

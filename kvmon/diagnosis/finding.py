"""What a diagnosis says: a verdict with the numbers and the events that a sceptical engineer can check."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Completeness", "Confidence", "Evidence", "Finding"]

Confidence = str
"""`certain`: follows from the events by definition; `likely`: a threshold was passed; `possible`: part of what would
tell was not seen."""


@dataclass(frozen=True)
class Evidence:
    """One number: what it is, its value, and in which unit (`units`, `tokens`, `s`, `ratio`, `requests`, `bytes`)."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Completeness:
    """How much was seen: the share of windows with the whole past known, gaps, and what could not be told."""

    known_ratio: float = 1.0
    gaps: int = 0
    missing: tuple[str, ...] = ()


@dataclass
class Finding:
    """One verdict over one range of time.

    pool            its number and name; the verdict is about the stream where it names none
    start_ns, end_ns    of the engine's clock, the ends of the windows in which it held
    lost, waited_s  requests that were refused or aborted, request-seconds spent waiting, in that time
    events          (frame, word) of events that show it, the first ones
    avoided         what would have avoided it
    lever           what is safest to do now
    """

    verdict: str
    pool: int
    pool_name: str
    start_ns: int
    end_ns: int
    confidence: Confidence
    summary: str
    evidence: tuple[Evidence, ...]
    events: tuple[tuple[int, int], ...]
    avoided: str
    lever: str
    lost: int = 0
    waited_s: float = 0.0
    completeness: Completeness = field(default_factory=Completeness)

    @property
    def paid(self) -> float:
        """What requests paid, in request-seconds; one that was lost counts as ten."""
        return self.lost * 10 + self.waited_s

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        said = asdict(self)
        said["events"] = [{"frame": frame, "word": word} for frame, word in self.events]
        said["completeness"]["missing"] = list(self.completeness.missing)
        said["evidence"] = [asdict(part) for part in self.evidence]
        return said

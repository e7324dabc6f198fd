"""What a verdict is: when it holds, how to say it, what would have avoided it, and what is safest to do now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmon.diagnosis.finding import Confidence, Evidence
from kvmon.diagnosis.minute import Minute, Refused
from kvmon.events import Contiguity
from kvmon.state.watch import R
from kvmon.units import counted

__all__ = ["Holds", "Verdict", "at_failure", "explained", "refusals"]


@dataclass(frozen=True)
class Holds:
    """A verdict holds in a minute: how surely, in a sentence, by which numbers and events, and what requests paid.

    `avoided` and `lever` stand for those of the verdict where the numbers tell more than it does.
    """

    confidence: Confidence
    summary: str
    evidence: tuple[Evidence, ...]
    events: tuple[tuple[int, int], ...] = ()
    weight: float = 0.0  # to find the worst minute of a finding
    lost: int = 0
    waited_s: float = 0.0
    missing: tuple[str, ...] = ()
    avoided: str = ""
    lever: str = ""


@dataclass(frozen=True)
class Verdict:
    """One verdict.

    rank        the order among findings, smallest first: what explains failures, conditions over time, what is left,
                what cannot be trusted
    holds       whether it holds in a minute, None where it does not
    of_refusals     it is about refused allocations alone, and need not be asked where there are none
    """

    name: str
    rank: int
    holds: Callable[[Minute], Holds | None]
    avoided: str
    lever: str
    of_refusals: bool = True


def at_failure(sample: list[int]) -> tuple[Evidence, ...]:
    """Need, free, evictable, largest block and capacity at a refused allocation."""
    names = (("need", R.NEED), ("free", R.FREE), ("evictable", R.EVICTABLE), ("largest free block", R.LARGEST))
    wanted = names if sample[R.CONTIGUITY] == Contiguity.REQUIRED else names[:-1]  # else any free units will do
    said = [Evidence(f"{name} at a failure", float(sample[at]), "units") for name, at in wanted if sample[at] >= 0]
    return (*said, Evidence("capacity", float(sample[R.CAPACITY]), "units"))


def refusals(refused: Refused) -> str:
    """`72 requests lost, 17 waits of 10.0 s in all`."""
    parts = []
    if refused.lost:
        parts.append(f"{counted(refused.lost, 'request')} lost")
    if refused.waited_s >= 0.05:
        parts.append(f"{refused.waited_s:,.1f} request-seconds of waiting")
    if refused.preempting:
        parts.append(counted(refused.preempting, "preemption"))
    return ", ".join(parts) or counted(refused.count, "refused allocation")


def explained(
    minute: Minute, refused: Refused | None, sentence: Callable[[list[int]], str], *more: Evidence, sure: bool = True
) -> Holds | None:
    """A cause of failures holds: the sentence about one of them, their number, and the numbers at that one."""
    if refused is None or not refused.samples:
        return None
    sample = max(refused.samples, key=lambda row: row[R.NEED])
    seen = bool(sample[R.KNOWN]) and minute.exact
    missing = () if seen else ("who held the memory: the recording does not have every unit",)
    costs = (
        Evidence("requests lost", float(refused.lost), "requests"),
        Evidence("request-seconds of waiting", round(refused.waited_s, 3), "s"),
    )
    paid = tuple(cost for cost in costs if cost.value)
    return Holds(
        "certain" if sure and seen else "likely" if seen or sure else "possible",
        f"{sentence(sample)}; {refusals(refused)} in the worst minute",
        (*at_failure(sample), *more, *paid),
        tuple((row[R.FRAME], row[R.WORD]) for row in refused.samples[:3]),
        weight=refused.lost * 10 + refused.waited_s,
        lost=refused.lost,
        waited_s=refused.waited_s,
        missing=missing,
    )
